"""Cases per second of `moesim sweep`, against its targets and against one case at a time, all in one run.

    python benchmarks/sweep.py [--jobs N] [--quick]

Prints one row per mix: cases, cases per second end to end (planning, identities and gathering included), the target, and the
ratio to `measure_point` on systems built for each case, timed in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np

from moesim.specs.catalog import load_hardware
from moesim.specs.scenario import Engine, ScenarioSpec
from moesim.specs.sweep import SweepSpec
from moesim.study.calibrated import calibration_for
from moesim.study.points import measure_point
from moesim.study.resolve import resolve_model
from moesim.study.sweep import run_sweep
from moesim.study.systems import build_system

BASE: dict[str, Any] = {
    "title": "DeepSeek-V3 on 32 H200", "hardware": "h200_x4_nodes", "workload": {"input_tokens": 2048, "output_tokens": 512},
    "systems": [{"name": "m", "kind": "moe", "model": "deepseek-v3", "parallel": {"dp_size": 32, "ep_size": 32}}],
}  # fmt: skip


def splits(n: int) -> list[tuple[int, int, int, int]]:
    """All (TP, DP, EP, PP) in powers of two on `n` devices or a part of them."""
    powers = [2**i for i in range(n.bit_length())]
    return [
        (tp, dp, ep, pp) for tp, dp, ep, pp in itertools.product(powers, repeat=4)
        if tp * dp * pp <= n and (tp * dp) % ep == 0 and tp <= 16
    ]  # fmt: skip


def mixes(quick: bool) -> dict[str, tuple[list[dict[str, Any]], int]]:
    """Axes of each mix with its target in cases per second."""
    n = 20 if quick else 40
    every = splits(32)[:: 3 if quick else 1]
    split = {"zip": [
        {"path": f"parallel.{name}_size", "values": [s[i] for s in every]} for i, name in enumerate(("tp", "dp", "ep", "pp"))
    ]}  # fmt: skip
    batch = [16, 64, 256, 512, 1024, 2048, 4096, 8192]
    return {
        "numbers": ([
            {"path": "workload.concurrency", "log_range": {"start": 1, "stop": 8192, "n": n, "whole": True}},
            {"path": "workload.input_tokens", "log_range": {"start": 128, "stop": 32768, "n": n, "whole": True}},
            {"path": "workload.output_tokens", "values": [128, 512, 2048]},
            {"path": "model.num_experts_per_tok", "values": [1, 2, 4, 8]},
            {"path": "model.n_routed_experts", "values": [32, 64, 128, 256, 512]},
        ], 100_000),
        "shapes": ([
            {"path": "model.n_routed_experts", "values": [32, 64, 128, 256, 512]},
            {"path": "model.num_experts_per_tok", "values": [1, 2, 4, 8, 16]},
            {"path": "model.moe_intermediate_size", "values": [512, 1024, 2048, 4096]},
            {"path": "model.n_layers", "values": [12, 24, 48, 61]},
            {"path": "workload.concurrency", "values": batch},
        ], 1500),
        "splits x batch": ([split, {"path": "workload.concurrency", "values": batch}], 1500),
        "splits alone": ([split], 1500),
    }  # fmt: skip


def one_at_a_time(calibration: str | None, n: int = 30) -> float:
    """Seconds per case of `measure_point` on a system built for it, best of three."""
    scenario = ScenarioSpec.model_validate({**BASE, "calibration": calibration})
    hardware = load_hardware(scenario.hardware)
    found = calibration_for(calibration, hardware.device.name)
    spec, best = scenario.systems[0], float("inf")
    for repeat in range(3):
        began = time.perf_counter()
        for i in range(n):
            rng = np.random.default_rng(0)
            system = build_system(spec, resolve_model(spec), hardware, found, rng)
            # other numbers every time, as in a sweep
            measure_point(
                system, hardware, scenario.workload, 100 + 7 * i + repeat, Engine.ANALYTIC, rng, explain=False
            )
        best = min(best, (time.perf_counter() - began) / n)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    for calibration in ("none", None):
        alone = one_at_a_time(calibration)
        print(f"\ncalibration {calibration or 'h200_sxm'}: one case at a time {1 / alone:,.0f}/s; --jobs {given.jobs}")
        print(
            f"{'mix':<16}{'cases':>9}{'seconds':>9}{'cases/s':>11}{'target':>9}{'of target':>11}{'of one by one':>15}"
        )
        for name, (axes, target) in mixes(given.quick).items():
            spec = SweepSpec.model_validate({"title": name, "base": {**BASE, "calibration": calibration}, "axes": axes})
            best = float("inf")
            for _ in range(2):
                began = time.perf_counter()
                result = run_sweep(spec, n_jobs=given.jobs)
                best = min(best, time.perf_counter() - began)
            rate = result.n_cases / best
            measured = f"{name:<16}{result.n_cases:>9,}{best:>9.2f}{rate:>11,.0f}"
            print(f"{measured}{target:>9,}{rate / target:>10.2f}x{rate * alone:>14.1f}x")


if __name__ == "__main__":
    main()
