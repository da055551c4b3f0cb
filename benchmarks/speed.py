"""How fast moesim answers, with ratios taken within this one run; see benchmarks/README.md.

Run: python benchmarks/speed.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import simpy

from moesim.analytic import estimate
from moesim.cost import CostModel
from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.sim import simulate
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.study.calibrated import calibration_for
from moesim.study.grid import time_grid
from moesim.study.instance import Instance, build_instance


def best_of(work: Callable[[], object], n: int = 5) -> float:
    """Shortest of `n` runs, seconds: the machine is shared, so the least disturbed run counts."""
    times = []
    for _ in range(n):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def deepseek(hardware: str, dp: int, tp: int = 1, preset: bool = False) -> Instance:
    """DeepSeek-V3; beyond 256 expert ranks each holds one expert, 64 of them copies, as in DeepSeek's own deployment."""
    extra = max(0, dp - 256)
    split = ParallelSpec(tp_size=tp, dp_size=dp, ep_size=dp if dp > 1 else 1, redundant_experts=extra)
    family = {"family": RouterFamily.PRESET, "preset": "deepseek-v3"} if preset else {"family": RouterFamily.UNIFORM}
    placement = PlacementSpec(kind=PlacementKind.EPLB_GLOBAL if extra else PlacementKind.CONTIGUOUS)
    routing = RoutingSpec(**family, placement=placement)
    hw = load_hardware(hardware, split.n_ranks)
    return build_instance(load_model("deepseek-v3"), split, hw, routing, rng=np.random.default_rng(0))


def cold_estimate() -> float:
    command = [
        sys.executable,
        "-m",
        "moesim",
        "estimate",
        "--hardware",
        "hgx_h200",
        "--model",
        "deepseek-v3",
        "--tp",
        "8",
        "--batch",
        "32",
    ]
    return best_of(lambda: subprocess.run(command, check=True, capture_output=True), 7)


def bare_python() -> float:
    return best_of(lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True, capture_output=True), 7)


def bare_holds_per_s(n_processes: int, n_holds: int) -> float:
    """simpy timeouts per second with as many processes as ranks, in this run."""

    def run() -> None:
        env = simpy.Environment()

        def process() -> object:
            for _ in range(n_holds):
                yield env.timeout(1.0)

        for _ in range(n_processes):
            env.process(process())
        env.run()

    return n_processes * n_holds / best_of(run, 7)


def flow_row(hardware: str, dp: int, overlap: Overlap, per_rank: int = 128) -> dict[str, float]:
    """Draw, lower and simulate one DeepSeek-V3 decode pass, every MoE layer with its own load."""
    instance = replace(deepseek(hardware, dp, preset=True), overlap=overlap)
    step = Pass(Phase.DECODE, float(dp * per_rank), 1.0, 4096.0)
    rng = np.random.default_rng(1)
    n_holds = [0]

    def whole() -> None:
        program = instance.program(step, instance.draw(step, rng))
        n_holds[0] = simulate(program, instance.cost, record=False).n_holds

    total = best_of(whole, 3)
    program = instance.program(step, instance.draw(step, rng))
    sim_only = best_of(lambda: simulate(program, instance.cost, record=False), 7)
    rate = n_holds[0] / sim_only
    bare = bare_holds_per_s(dp, max(1, n_holds[0] // dp))
    return {
        "total_s": total,
        "simulate_s": sim_only,
        "n_holds": n_holds[0],
        "holds_per_s": rate,
        "share_of_bare_simpy": rate / bare,
    }


def calibrated_rows(instance: Instance, step: Pass, points: tuple[np.ndarray, ...]) -> dict[str, float]:
    """The same estimate by the H200 calibration: shapes it has costed before, shapes it has not, and the grid."""
    known = calibration_for("vllm", "h200_sxm")
    calibrated = replace(instance, cost=CostModel.of(instance.hardware, known))
    seen = best_of(lambda: estimate(calibrated.program(step), calibrated.cost), 50)
    times = []
    for i in range(60):  # every pass has a batch and a context of its own
        other = replace(step, batch=600.0 + i, cached_tokens=3000.0 + 7.0 * i)
        times.append(best_of(lambda other=other: estimate(calibrated.program(other), calibrated.cost), 1))
    batch, context, experts, top_k = points

    def grid() -> object:
        return time_grid(calibrated, Phase.DECODE, batch, context, n_experts=experts, top_k=top_k)

    return {
        "the same with the H200 calibration, shapes seen before, ms": round(seen * 1e3, 3),
        "the same with the H200 calibration, new shapes, ms": round(statistics.median(times) * 1e3, 3),
        "vectorised points per second with the calibration": round(len(batch) / best_of(grid, 3)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: dict[str, object] = {}

    python_s, cold_s = bare_python(), cold_estimate()
    rows["cold `moesim estimate`, s"] = round(cold_s, 3)
    rows["of which starting Python with numpy, s"] = round(python_s, 3)

    instance = deepseek("hgx_h200", 1, tp=8)
    step = Pass(Phase.DECODE, 32.0, 1.0, 4096.0)
    one = statistics.median(best_of(lambda: estimate(instance.program(step), instance.cost), 50) for _ in range(3))
    rows["one analytic DeepSeek-V3 decode estimate, ms"] = round(one * 1e3, 3)

    rng = np.random.default_rng(0)
    n = 100_000
    batch, context = rng.integers(1, 512, n), rng.integers(128, 32768, n)
    experts, top_k = rng.choice([64, 128, 256, 512], n), rng.choice([2, 4, 8, 16], n)
    grid_s = best_of(lambda: time_grid(instance, Phase.DECODE, batch, context, n_experts=experts, top_k=top_k), 3)
    rows["vectorised (batch, context, experts, top-k) points per second"] = round(n / grid_s)
    rows["vectorised over one by one, ratio"] = round(one / (grid_s / n))

    rows |= calibrated_rows(instance, step, (batch, context, experts, top_k))
    for name, hardware, dp in (
        ("EP8", "h100_x128_nodes", 8),
        ("EP16", "h100_x128_nodes", 16),
        ("EP32", "h100_x128_nodes", 32),
        ("EP64", "h100_x128_nodes", 64),
        ("EP256", "h100_x128_nodes", 256),
        ("EP320", "h800_x40_nodes", 320),
    ):
        for overlap, words in ((Overlap.NONE, ""), (Overlap.TWO_BATCH, ", two micro-batches")):
            row = flow_row(hardware, dp, overlap)
            rows[f"flow, DeepSeek-V3 decode, {name}{words}"] = {k: round(v, 3) for k, v in row.items()}

    for key, value in rows.items():
        print(f"{key}: {value}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
