"""Experts as grouped products behind an exchange: efficiencies of six devices, fitted, with errors on left-out EP sizes.

Run: python benchmarks/grouped_fit.py FOLDER
FOLDER is an unpacked aiconfigurator-core 0.12.0, whose `wideep_context_moe` and `wideep_generation_moe` time DeepSeek-V3's routed
experts of one rank as SGLang runs them with DeepEP (DeepGEMM and the small kernels around it), uniform and power-law loads.
Times of contiguous calls (prefill) have a floor of 0.3 to 1 ms, the host's, as they ran eagerly: fitted along, not kept, and rows
of fewer than 4,096 pairs are not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from moesim.calibrate.importers.synthetic_loads import power_law, rank_load, summarise
from moesim.cost.efficiency import DEFAULT_EFFICIENCY
from moesim.cost.estimate import roofline
from moesim.cost.grouped import GROUPED, GroupedTimes
from moesim.lowering.load import tile_rows
from moesim.ops import MoeShape, Op, OpKind, Work
from moesim.specs.catalog import load_device
from moesim.specs.dtypes import Dtype

HIDDEN, WIDTH, EXPERTS, TOP_K = 7168.0, 2048.0, 256, 8
NARROW = 1.0 + 4.0 / 128.0
FEWEST_PAIRS = 4096
N_DRAWS = 8
SYSTEMS = ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300")
DEFAULT = GroupedTimes(0.55, 0.70, 0.75, 6e-6, 0.3)


def rows_of(root: Path, system: str) -> pd.DataFrame:
    """Loads of the measured rank and seconds, of all versions."""
    found = []
    for path in sorted(root.glob(f"aiconfigurator_core/systems/data/{system}/moe/sglang/*/wideep_*_moe_perf.parquet")):
        d = pd.read_parquet(path)
        d = d[d.latency > 0]
        phase = "context" if "context" in path.name else "generation"
        for r in d.itertuples():
            pairs, hit = load_of(int(r.num_tokens), int(r.moe_ep_size), r.distribution)
            if phase == "generation" or pairs >= FEWEST_PAIRS:
                found.append(
                    (phase, path.parts[-2], r.moe_ep_size, r.distribution, r.num_tokens, pairs, hit, r.latency * 1e-3)
                )
    return pd.DataFrame(found, columns=["phase", "version", "ep", "load", "tokens", "pairs", "hit", "time_s"])


def load_of(n_tokens: int, ep: int, distribution: str) -> tuple[float, float]:
    """Pairs and experts hit of the rank that was timed: the fullest of a power law's draws, by the table's own rule."""
    if distribution == "uniform":
        pairs = n_tokens * TOP_K / ep
        return pairs, min(EXPERTS / ep, pairs)
    rng = np.random.default_rng([n_tokens, EXPERTS, TOP_K, ep])
    exponent = float(distribution.removeprefix("power_law_"))
    draws = [power_law(n_tokens, EXPERTS, TOP_K, ep, exponent, rng) for _ in range(N_DRAWS)]
    s = summarise([rank_load(d, EXPERTS // ep) for d in draws])
    return s.n_assignments, s.n_experts_hit


def op_of(r: pd.DataFrame, phase: str) -> Op:
    """The operator as a program has it; in contiguous calls the table gives all tokens of the group to every rank."""
    tokens, pairs, hit = (r[c].to_numpy(dtype=float) for c in ("tokens", "pairs", "hit"))
    tile = tile_rows(pairs / np.maximum(hit, 1e-9))
    padded = hit * np.maximum(np.ceil(pairs / np.maximum(hit, 1e-9) / tile - 1e-9), 1.0) * tile
    if phase == "context":
        side = (tokens + pairs) * HIDDEN * (NARROW + 2.0) + pairs * WIDTH * (6.0 + 2.0 + NARROW)
    else:
        side = pairs * WIDTH * (4.0 + NARROW)
    read = hit * 3.0 * HIDDEN * WIDTH + pairs * (HIDDEN + WIDTH)
    work = Work(padded * 6.0 * HIDDEN * WIDTH, read, pairs * (HIDDEN * 2.0 + WIDTH * 4.0))
    local = EXPERTS / r["ep"].to_numpy(dtype=float)
    shape = MoeShape(tokens, pairs, padded, hit, pairs / local, local, HIDDEN, WIDTH, float(TOP_K))
    n_side = 4 if phase == "context" else 1
    return Op("experts", OpKind.GROUPED_GEMM, work, shape, Dtype.FP8_BLOCK, side_bytes=side, n_side_kernels=n_side)


def predict(r: pd.DataFrame, system: str, times: GroupedTimes, host_s: float) -> np.ndarray:
    """Seconds of every row; contiguous calls take no less than the host."""
    table = times.within(DEFAULT_EFFICIENCY)
    out = np.empty(len(r))
    for phase in ("context", "generation"):
        at = (r.phase == phase).to_numpy()
        if at.any():
            device_s = np.asarray(roofline(op_of(r[at], phase), load_device(system), table).time_s)
            out[at] = (device_s**4 + host_s**4) ** 0.25 if phase == "context" else device_s
    return out


def fit(r: pd.DataFrame, system: str) -> tuple[GroupedTimes, float]:
    """Four numbers and the host's time by least squares of log errors, both phases alike."""
    weight = 1.0 / np.sqrt(r.groupby("phase")["time_s"].transform("size").to_numpy())
    measured = r.time_s.to_numpy()

    def of(x: Sequence[float]) -> tuple[GroupedTimes, float]:
        return GroupedTimes(*np.exp(x[:4]).tolist(), 0.0), float(np.exp(x[4]))

    def residual(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(predict(r, system, *of(x)) / measured) * weight)

    start = np.log([0.6, 0.75, 0.7, 1.5e-5, 4e-4])
    return of(least_squares(residual, start, loss="soft_l1", f_scale=0.1 * float(weight.mean())).x)


def words(off: np.ndarray) -> str:
    e = np.abs(off)
    return f"median {np.median(e):5.1%} bias {np.median(off):+6.1%} p90 {np.quantile(e, 0.9):4.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    args = parser.parse_args()
    every = {s: rows_of(args.root, s) for s in SYSTEMS}
    for system, r in every.items():
        left = np.empty(len(r))
        for ep in sorted(r.ep.unique()):
            at = (r.ep == ep).to_numpy()
            left[at] = predict(r[at], system, *fit(r[~at], system)) / r.time_s.to_numpy()[at] - 1
        times, host_s = fit(r, system)
        default = predict(r, system, DEFAULT, 1e-9) / r.time_s.to_numpy() - 1
        p90 = float(np.quantile(np.abs(left), 0.9))
        print(f"{system}: {times}, host {host_s * 1e3:.2f} ms; p90 of left-out EP sizes {p90:.2f}")
        print(f"  shipped {GROUPED[system]}")
        for phase in ("context", "generation"):
            at = (r.phase == phase).to_numpy()
            print(f"  {phase:<11} n {at.sum():4d}  default: {words(default[at])}  left-out EP sizes: {words(left[at])}")
        for other in SYSTEMS:
            if other != system and other[0] == system[0]:
                o = predict(every[other], other, times, host_s) / every[other].time_s.to_numpy() - 1
                print(f"  on {other}, not fitted: {words(o)}")


if __name__ == "__main__":
    main()
