"""Communication and whole passes against published measurements: every target table of the fabric.

Run: python benchmarks/fabric.py [--aic FOLDER] [--passes]
FOLDER is an unpacked aiconfigurator-core 0.12.0; ../shared holds the published tables. Sections whose data is absent say so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from fabric_csv import GROUPS, csv_rows
from fabric_published import published
from fabric_rows import SHARED, aiconfigurator_rows, traffic
from fabric_time import predicted_s
from nccl_fit import DEVICES, table_of

from moesim.calibrate.store import find_calibration
from moesim.calibrate.tables import shape_of
from moesim.cost import CostModel
from moesim.ops import CollectiveShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware

KINDS = {k.value: k for k in (OpKind.ALL_REDUCE, OpKind.ALL_GATHER, OpKind.REDUCE_SCATTER)}
CLUSTER = {"h800_sxm": "h800_x40_nodes", "h100_sxm": "h100_x128_nodes", "h200_sxm": "h200_x4_nodes",
           "b200_sxm": "b200_x8_nodes"}  # fmt: skip


def errors(name: str, ratio: pd.Series) -> None:
    e = (ratio - 1).abs()
    print(f"  {name:<66} n {len(e):5d}  median {e.median():6.1%}  p90 {e.quantile(0.9):6.1%}  worst {e.max():6.1%}")


def published_rows() -> None:
    """Every row of the published table."""
    rows = list(csv_rows())
    for group, fitted in GROUPS.items():
        print(f"\n{group}" + (f" ({fitted})" if fitted else ""))
        own = [r for r in rows if r.group == group]
        for r in own:
            if r.logical_bytes is None:
                measured, predicted, unit = r.measured_s * 1e6, r.predicted_s * 1e6, "us"
            else:
                measured, predicted = (r.logical_bytes / s / 1e9 for s in (r.measured_s, r.predicted_s))
                unit = "GB/s"
            print(f"  row {r.number:2d}  {r.what:<44} measured {measured:7.1f} {unit:<4}  predicted {predicted:7.1f}")
        errors(group, pd.Series([r.predicted_s / r.measured_s for r in own]))
    print_held_out("h800_x40_nodes", 16)


def print_held_out(cluster: str, n: int) -> None:
    fabric = load_hardware(cluster, n).fabric
    for h in fabric.held_out if fabric else ():
        what = f"{h.mode}, {h.what}: n {h.n_points}"
        print(f"  left out: {what}, median {h.median_frac:.1%}, p90 {h.p90_frac:.1%}, worst {h.worst_frac:.1%}")


def deepep_tables(root: Path) -> None:
    print("\nDeepEP tables of aiconfigurator-core 0.12.0 (sound rows; SMs as in the row)")
    for system, versions in (
        ("h100_sxm", ("0.5.6.post2", "0.5.12")),
        ("h200_sxm", ("0.5.12",)),
        ("b200_sxm", ("0.5.12",)),
    ):
        rows = pd.concat([aiconfigurator_rows(root, system, v) for v in versions], ignore_index=True)
        rows = rows[~((rows["mode"] == "normal") & (rows.n_domains == 8))]
        rows = rows[
            ~((rows["mode"] == "normal") & (rows.n_domains == 1) & (rows.index % 5 != 0))
        ]  # a fifth of the largest part
        records = rows.to_dict("records")
        rows["predicted_s"] = [
            predicted_s(r, load_hardware(CLUSTER[system], int(r["n_ranks"])), int(r["sms"])) for r in records
        ]
        for (mode, n), g in rows.groupby(["mode", "n_domains"]):
            errors(f"{system} {mode} {n} node(s), fitted", g.predicted_s / g.time_s)
        print_held_out(CLUSTER[system], 8)


def nvl72_tables(root: Path) -> None:
    """Low-latency mode on NVL72 against TensorRT-LLM's kernels in the same package, 8 ranks and more: never fitted."""
    print(
        "\nTensorRT-LLM's all-to-alls on GB200, EP8 to EP64, against DeepEP's low-latency mode as fitted on four GPUs"
    )
    path = "aiconfigurator_core/systems/data/gb200/comm/trtllm/1.3.0rc10/trtllm_alltoall_perf.parquet"
    d = pd.read_parquet(root / path)
    d = d[(d.moe_ep_size >= 8) & (d.num_tokens >= 128)]
    row_bytes = {"bfloat16": 14352.0, "fp8": 7408.0, "nvfp4": 4048.0}
    for (source, op_name, dtype), g in d.groupby(["kernel_source", "op_name", "moe_dtype"]):
        kind = op_name.removeprefix("alltoall_")
        if kind not in ("dispatch", "combine"):
            continue
        size = row_bytes[str(dtype)] if kind == "dispatch" else row_bytes["bfloat16"]
        ratios = [
            predicted_s(
                traffic(int(r.moe_ep_size), 72, r.num_tokens, 256, 8, "low_latency", kind, 7168, row_bytes=size),
                load_hardware("gb200_nvl72", int(r.moe_ep_size)),
            ) / (r.latency * 1e-3)
            for r in g.itertuples()
        ]  # fmt: skip
        errors(f"{source} {kind}, {dtype} experts, 128 tokens and more", pd.Series(ratios))


def nccl(root: Path) -> None:
    """Closed forms with default library times, and the device's calibration: fitted, and on left-out sizes by its own file."""
    print("\nNCCL in a node: closed form with default library times, and the device's calibration")
    for system in DEVICES:
        rows = table_of(str(root), system).frame
        calibration, hardware = find_calibration(f"{system}/nccl"), load_hardware(system, 8)
        for family in calibration.families:
            g = rows[rows.op_kind == family.key.kind]
            measured = g.measured_s.to_numpy()
            if family.key.kind in KINDS:
                model = CostModel.of(hardware)
                ops = (Op("x", KINDS[family.key.kind], Work(), CollectiveShape(int(r.n_ranks), r.message_bytes))
                       for r in g.itertuples())  # fmt: skip
                found = [float(model.cost(op).time_s) for op in ops]
                errors(f"{system} {family.key.kind} closed form", pd.Series(found / measured))
            found = family.predict(shape_of(family.key.kind, g)).time_s
            errors(f"{system} {family.key.kind} calibrated, fitted", pd.Series(found / measured))
            if family.held_out is not None:
                h = family.held_out
                print(f"      left-out sizes: median {h.median_frac:.1%}, p90 {h.p90_frac:.1%}, n {h.n:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aic", type=Path)
    parser.add_argument("--passes", action="store_true", help="whole passes against published serving figures")
    args = parser.parse_args()
    if SHARED.is_dir():
        published_rows()
    else:
        print("no ../shared/data: its published table skipped")
    published()
    if args.aic:
        deepep_tables(args.aic)
        nvl72_tables(args.aic)
        nccl(args.aic)
    else:
        print("no --aic: operator tables skipped")
    if args.passes:
        from fabric_passes import passes

        passes()


if __name__ == "__main__":
    main()
