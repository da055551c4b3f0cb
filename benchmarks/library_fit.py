"""Start-up and rates of collectives on devices without a calibration: fitted on three devices, shown on all others.

Run: python benchmarks/library_fit.py FOLDER
FOLDER is an unpacked aiconfigurator-core 0.12.0. Rings are fitted to NCCL's tables of A100, H100 and H200 (two with one chip,
half each), without the large all-reduces of 8 GPUs that go through the switch; direct kernels and the switch's way to the
all-reduce tables of vLLM, SGLang and TensorRT-LLM of the same devices. Blackwell and PCIe devices are left out.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from moesim.cost.collectives import collective_cost
from moesim.cost.efficiency import DEFAULT_EFFICIENCY
from moesim.cost.library import LIBRARIES, LibraryTimes
from moesim.cost.network import Network
from moesim.ops import CollectiveShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware

WEIGHTS = {"a100_sxm": 1.0, "h100_sxm": 0.5, "h200_sxm": 0.5}
SYSTEMS = {
    **{name: name for name in (*WEIGHTS, "b200_sxm", "b300_sxm", "gb200", "gb300", "l40s")},
    "rtx_pro_6000_server": "rtx_pro_6000",
    "b60": "arc_pro_b60",
}
KINDS = {
    "all_reduce": OpKind.ALL_REDUCE,
    "all_gather": OpKind.ALL_GATHER,
    "reduce_scatter": OpKind.REDUCE_SCATTER,
}


def nccl_rows(root: Path, system: str) -> pd.DataFrame:
    """The newest NCCL (or oneCCL) table, 16-bit."""
    path = sorted(root.glob(f"aiconfigurator_core/systems/data/{system}/comm/*ccl/*/*.parquet"))[-1]
    d = pd.read_parquet(path)
    dtype = next(c for c in d.columns if c.endswith("ccl_dtype"))
    return _rows(d[d[dtype].isin(["half", "float16", "bfloat16"]) & d.op_name.isin(list(KINDS))], system, "nccl")


def stack_rows(root: Path, system: str) -> pd.DataFrame:
    """The newest all-reduce table of each serving stack, as replayed in CUDA graphs."""
    parts = []
    for stack in ("vllm", "sglang", "trtllm"):
        paths = sorted(
            root.glob(f"aiconfigurator_core/systems/data/{system}/comm/{stack}/*/custom_allreduce_perf.parquet")
        )
        if paths:
            d = pd.read_parquet(paths[-1])
            parts.append(_rows(d[~d.kernel_source.str.contains("eager")], system, stack))
    return pd.concat(parts) if parts else pd.DataFrame()


def _rows(d: pd.DataFrame, system: str, source: str) -> pd.DataFrame:
    d = d[d.latency > 0]
    return pd.DataFrame(
        {"system": system, "source": source, "kind": d.op_name, "n": d.num_gpus, "bytes": d.message_size * 2.0,
         "time_s": d.latency * 1e-3}
    )  # fmt: skip


def predicted(rows: pd.DataFrame, library: LibraryTimes | None) -> np.ndarray:
    """Every row's time through `collective_cost`, with what the cost model takes for a device without a calibration."""
    out, e = np.empty(len(rows)), DEFAULT_EFFICIENCY
    for (system, kind, n), at in rows.reset_index(drop=True).groupby(["system", "kind", "n"]).groups.items():
        network = Network.of(load_hardware(SYSTEMS[system], int(n)), e.scale_up_frac, e.scale_out_frac, library)
        op = Op("x", KINDS[kind], Work(), CollectiveShape(int(n), rows["bytes"].to_numpy()[at]))
        out[at] = collective_cost(op, network).time_s
    return out


def only(library: LibraryTimes, *, switch: bool) -> LibraryTimes:
    """Without direct kernels, and without the switch unless asked for: NCCL's ways."""
    never = {"one_shot_s": 1e3, "two_shot_s": 1e3} | ({} if switch else {"in_switch_s": 1e3})
    return replace(library, **never)


def fit(rings: pd.DataFrame, kernels: pd.DataFrame) -> LibraryTimes:
    """Rings by least squares of log errors, then the rest with a loss that bears rows of other kernels."""
    is_through_switch = (rings.kind == "all_reduce") & (rings.n == 8) & (rings.system != "a100_sxm")
    rings = rings[~(is_through_switch & (rings["bytes"] > 4e6))]
    names = ("start_s", "step_s", "bulk_frac", "half_bytes", "quick_frac")
    library = _fit(only(LIBRARIES, switch=False), names, rings, loss="linear")
    library = replace(LIBRARIES, **{name: getattr(library, name) for name in names})
    rest = ("one_shot_s", "one_shot_frac", "two_shot_s", "two_shot_frac", "in_switch_s", "in_switch_frac")
    return _fit(library, rest, kernels, loss="soft_l1")


def _fit(start: LibraryTimes, names: tuple[str, ...], rows: pd.DataFrame, *, loss: str) -> LibraryTimes:
    weight = np.sqrt(rows.system.map(WEIGHTS).to_numpy())

    def of(x: np.ndarray) -> LibraryTimes:
        return replace(start, **dict(zip(names, np.exp(x).tolist(), strict=True)))

    def residual(x: np.ndarray) -> np.ndarray:
        return np.log(predicted(rows, of(x)) / rows.time_s.to_numpy()) * weight

    x0 = np.log([getattr(start, name) for name in names])
    return of(least_squares(residual, x0, loss=loss, f_scale=0.2).x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    args = parser.parse_args()
    rings = {s: nccl_rows(args.root, s) for s in SYSTEMS}
    kernels = {s: stack_rows(args.root, s) for s in SYSTEMS}
    found = fit(pd.concat([rings[s] for s in WEIGHTS]), pd.concat([kernels[s] for s in WEIGHTS]))
    print("fitted ", {k: float(f"{v:.3g}") for k, v in asdict(found).items()})
    print("shipped", asdict(LIBRARIES))
    for system in SYSTEMS:
        for rows in (rings[system], kernels[system]):
            if rows.empty:
                continue
            measured = rows.time_s.to_numpy()
            # NCCL alone has no direct kernels; its rings are what the table times
            is_ring = rows.source.iloc[0] == "nccl"
            used = only(LIBRARIES, switch=True) if is_ring else LIBRARIES
            errors = {
                "links alone": predicted(rows, None) / measured - 1, "shipped": predicted(rows, used) / measured - 1,
            }  # fmt: skip
            words = "  ".join(
                f"{name}: median {np.median(abs(e)):5.1%} bias {np.median(e):+6.1%} p90 {np.quantile(abs(e), 0.9):5.0%}"
                for name, e in errors.items()
            )
            part = "fitted  " if system in WEIGHTS else "left out"
            print(f"  {system:<20} {rows.source.iloc[0] if is_ring else 'stacks':<7} {part} n {len(rows):4d}  {words}")


if __name__ == "__main__":
    main()
