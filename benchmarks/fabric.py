"""Communication and whole passes against published measurements: every target table of the fabric.

Run: python benchmarks/fabric.py [--aic FOLDER] [--passes]
FOLDER is an unpacked aiconfigurator-core 0.12.0; ../shared holds the published tables. Sections whose data is absent say so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from fabric_rows import SHARED, aiconfigurator_rows, h800_rows, logical_bytes, traffic

from moesim.cost import CostModel
from moesim.cost.exchange import port_times
from moesim.ops import CollectiveShape, ExchangeShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware
from moesim.specs.hardware import Hardware

CLUSTER = {"h800_sxm": "h800_x40_nodes", "h100_sxm": "h100_x128_nodes", "h200_sxm": "h200_x4_nodes",
           "b200_sxm": "b200_x8_nodes"}  # fmt: skip


def predicted_s(row: dict[str, object], hardware: Hardware, n_sms: int | None = None, *, notify: bool = False) -> float:
    """A row's time through `CostModel`'s own path; the exchange of counts apart, as benchmarks time it."""
    from dataclasses import replace

    network = CostModel.of(hardware).network
    if n_sms is not None and network.fabric is not None:
        network = replace(network, fabric=network.fabric.model_copy(update={"n_sms": n_sms}))
    r = {k: float(v) if isinstance(v, (int, float, np.number)) else v for k, v in row.items()}
    kind = OpKind.DISPATCH if r["kind"] == "dispatch" else OpKind.COMBINE
    is_low_latency = r["mode"] == "low_latency"
    shape = ExchangeShape(int(r["n_ranks"]), r["up"], r["up"], r["nic"], r["nic"], r["n_ranks"] - 1, r["m"], r["own"],
                          r["experts"], is_low_latency=is_low_latency)  # fmt: skip
    time_s = float(port_times(Op(str(r["kind"]), kind, Work(), shape), network).total_s)
    if not notify and not is_low_latency and r["n_domains"] > 1 and network.fabric is not None:
        fit = network.fabric.exchange("normal", kind is OpKind.COMBINE)
        time_s -= fit.notify_s + fit.notify_doubling_s * float(np.log2(r["n_domains"] / 2))
    return time_s


def errors(name: str, ratio: pd.Series) -> None:
    e = (ratio - 1).abs()
    print(f"  {name:<66} n {len(e):5d}  median {e.median():6.1%}  p90 {e.quantile(0.9):6.1%}  worst {e.max():6.1%}")


def deepep_h800() -> None:
    print("\nDeepEP on H800, published table (fitted: see hardware/calibrations/fabrics/h800_cx7.yaml)")
    rows = h800_rows()
    rows["predicted_s"] = [
        predicted_s(r, load_hardware("h800_x40_nodes", int(r["n_ranks"]))) for r in rows.to_dict("records")
    ]
    for r in rows.itertuples():
        if r.mode == "normal":
            measured, predicted, unit = r.bw, r.logical / r.predicted_s / 1e9, "GB/s"
        else:
            measured, predicted, unit = r.time_s * 1e6, r.predicted_s * 1e6, "us"
        print(
            f"  {r.mode:<11} {r.kind:<9} EP{r.n_ranks:<4} measured {measured:6.1f} {unit:<4}  predicted {predicted:6.1f}"
        )
    for mode, g in rows.groupby("mode"):
        errors(f"{mode}, fitted", g.predicted_s / g.time_s)
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


def other_publications() -> None:
    print("\nNever fitted: DeepEP on H200 as measured by others (MLSys 2026, arXiv 2510.27656), and DeepEP V2")
    d = pd.read_csv(SHARED / "ep_alltoall_published.csv")
    for name, use in (("decode", d["mode"] == "decode"), ("prefill", d["mode"] == "prefill")):
        ratios = []
        for r in d[use & d.library.eq("DeepEP V1")].itertuples():
            mode = "low_latency" if name == "decode" else "normal"
            limits = (r.nodes, min(r.nodes, 4)) if mode == "normal" and r.nodes > 1 else (1, 1)
            row = traffic(r.ep, 8, r.tokens_per_rank, 256, r.topk, mode, r.op, r.hidden, *limits)
            p = predicted_s(row, load_hardware("h200_x4_nodes", 32).with_n_devices(r.ep), notify=True)
            ratios.append(p / (r.latency_us * 1e-6))
            print(f"  {name:<8} {r.op:<9} EP{r.ep:<4} measured {r.latency_us:7.1f} us  predicted {p * 1e6:7.1f}")
        errors(f"{name}", pd.Series(ratios))
    for r in d[d.version.eq("V2") & d.nodes.gt(1)].itertuples():
        limits = (r.nodes, min(r.nodes, 4))
        row = traffic(r.ep, 8, r.tokens_per_rank, 256, r.topk, "normal", r.op, r.hidden, *limits)
        cluster = "h100_x128_nodes" if "SM90" in r.gpu else "b200_x8_nodes"
        p = predicted_s(row, load_hardware(cluster, int(r.ep)), 20)
        print(f"  V2 {r.gpu:<18} {r.op:<9} EP{r.ep:<4} measured {r.bw_GBps:5.1f} GB/s logical  predicted (V1 kernels) "
              f"{logical_bytes(row, 8) / p / 1e9:5.1f}")  # fmt: skip


def nccl(root: Path) -> None:
    print(
        "\nNCCL in a node: closed forms without calibration (assumed fractions), and the device's calibration where it has one"
    )
    from moesim.study.calibrated import calibration_for

    kinds = {"all_reduce": OpKind.ALL_REDUCE, "all_gather": OpKind.ALL_GATHER, "reduce_scatter": OpKind.REDUCE_SCATTER}
    for system in ("h100_sxm", "h200_sxm", "b200_sxm", "a100_sxm"):
        folder = root / "aiconfigurator_core/systems/data" / system / "comm/nccl"
        versions = sorted(p.name for p in folder.iterdir())
        d = pd.read_parquet(folder / versions[-1] / "nccl_perf.parquet")
        d = d[d.nccl_dtype == "half"]
        hardware = load_hardware(system, 8)
        try:
            calibration = calibration_for("nccl", system)
        except Exception as error:  # a missing file is a gap in the table, not a failure of it
            print(f"  {system}: no NCCL calibration ({error})")
            calibration = None
        for op_name, g in d.groupby("op_name"):
            if op_name not in kinds:
                continue
            for label, model in (
                ("closed form", CostModel.of(hardware)),
                ("calibrated", CostModel.of(hardware, calibration)),
            ):
                if label == "calibrated" and calibration is None:
                    continue
                ops = (Op("x", kinds[op_name], Work(), CollectiveShape(int(r.num_gpus), r.message_size * 2.0))
                       for r in g.itertuples())  # fmt: skip
                ratio = [float(model.cost(op).time_s) / (ms * 1e-3) for op, ms in zip(ops, g.latency, strict=True)]
                errors(f"{system} {op_name} {label}", pd.Series(ratio))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aic", type=Path)
    parser.add_argument("--passes", action="store_true", help="whole passes against published serving figures")
    args = parser.parse_args()
    if SHARED.is_dir():
        deepep_h800()
        other_publications()
    else:
        print("no ../shared/data: published tables skipped")
    if args.aic:
        deepep_tables(args.aic)
        nccl(args.aic)
    else:
        print("no --aic: operator tables skipped")
    if args.passes:
        from fabric_passes import passes

        passes()


if __name__ == "__main__":
    main()
