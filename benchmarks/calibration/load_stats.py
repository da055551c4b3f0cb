"""MoE kernel times with recorded load statistics (A800): error of the fit on left-out splits of the model over ranks.

    python benchmarks/calibration/load_stats.py ../shared/data/moe_kernels_with_load.csv.gz

The file holds one model in many expert- and tensor-parallel splits, timed with CUDA events around the call (0.12-0.17 ms of
launch time inside); kernel-only rows are not in it, so the target on those cannot be checked here.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys

import pandas as pd

from moesim.calibrate.fit import FitSettings, fit_with_errors
from moesim.calibrate.tables import MeasurementTable
from moesim.specs.catalog import load_device


def table(path: str) -> MeasurementTable:
    raw = pd.read_csv(path)
    raw = raw[raw["load_imbalance_cv"].notna() & (raw["total_routed_tokens"] > 0) & (raw["moe_grouped_gemm_ms"] > 0)]
    mean_load = raw["total_routed_tokens"] / raw["num_experts_per_device"]
    tp, ep = raw["num_tensor_parallel_workers"], raw["expert_parallel_size"]
    frame = pd.DataFrame(
        {
            "op_kind": "moe",
            "device": "a800_sxm",
            "stack": "torch",
            "version": "",
            "dtype": "bf16",
            "kernel": raw["measurement_type"].fillna("") + " " + raw["routing_assignment_policy"].fillna(""),
            "model_shape": raw["model"] + " ep" + ep.astype(str) + " tp" + tp.astype(str),
            "n_tokens": raw["num_tokens"],
            "n_assignments": raw["total_routed_tokens"],
            "n_experts_hit": raw["expert_utilization"] * raw["num_experts_per_device"],
            "max_expert_tokens": raw["max_load_ratio"] * mean_load,
            "n_local_experts": raw["num_experts_per_device"],
            "hidden_size": raw["hidden_dim"],
            "inter_size": raw["expert_hidden_dim"] / tp,
            "top_k": raw["router_topk"],
            "measured_s": raw["moe_grouped_gemm_ms"] * 1e-3,
        }
    )
    return MeasurementTable.of(frame, path)


def main() -> None:
    device = load_device("a800_sxm")
    for rows in table(sys.argv[1]).families():
        family, held_out = fit_with_errors(rows, device, settings=FitSettings(n_folds=13))
        print(f"{rows.name}: {len(rows.frame)} rows, {rows.groups.nunique()} splits")
        if held_out is not None and family.held_out is not None:
            e = family.held_out
            print(f"  left-out splits: median {e.median_frac:.1%} mean {e.mean_frac:.1%} bias {e.bias_frac:+.1%} "
                  f"P90 {e.p90_frac:.0%} coverage {e.coverage_frac:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
