"""How quickly serving is simulated. Run: python benchmarks/serving.py [AZURE_CONV.csv] [--million]

One run each, no warm-up: seconds of wall time to build the lookups (once per deployment) and to simulate.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.specs.scenario import SystemKind, SystemSpec
from moesim.specs.serving import ArrivalSpec, LengthSpec, RequestFileSpec, SchedulerSpec, ServeScenarioSpec, ServingSpec
from moesim.study.serve import simulate_requests
from moesim.study.serve_build import build_deployment

DENSE = SystemSpec(name="dense", kind=SystemKind.DENSE, model="qwen2.5-7b")
MOE = SystemSpec(
    name="moe", kind=SystemKind.MOE, model="qwen3-30b-a3b", parallel=ParallelSpec(),
    routing=RoutingSpec(family=RouterFamily.PRESET, preset="olmoe-1b-7b"),
)  # fmt: skip
SCHEDULER = SchedulerSpec(max_num_seqs=128, max_num_batched_tokens=4096)


def workload(trace: Path | None, n: int, rate: float) -> ServingSpec:
    if trace is not None:
        return ServingSpec(requests=RequestFileSpec(file=str(trace), limit=n, rate_per_s=rate), scheduler=SCHEDULER)
    return ServingSpec(
        arrivals=ArrivalSpec(rate_per_s=rate, n_requests=n),
        input=LengthSpec(kind="lognormal", median=928, sigma=1.0, low=2, high=3500),
        output=LengthSpec(kind="lognormal", median=129, sigma=1.0, low=1, high=1000),
        scheduler=SCHEDULER,
    )


def measure(label: str, system: SystemSpec, hardware: str, serving: ServingSpec, calibration: str | None) -> None:
    began = time.perf_counter()
    scenario = ServeScenarioSpec(
        title=label, hardware=hardware, n_devices=1, calibration=calibration, system=system, serving=serving
    )
    deployment = build_deployment(scenario, 0)
    built = time.perf_counter()
    recorder, _ = simulate_requests(deployment, 0)
    seconds = time.perf_counter() - built
    t = recorder.totals
    end = max(recorder.times["finish_s"])
    print(
        f"{label}: {t.finished} requests, {t.passes} passes, {end:.0f} simulated s; lookups {built - began:.2f} s, "
        f"simulation {seconds:.3f} s = {t.finished / seconds:,.0f} requests/s, {end / seconds:,.0f} x real time; "
        f"with lookups {t.finished / (time.perf_counter() - began):,.0f} requests/s; "
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?")
    parser.add_argument("--million", action="store_true")
    arguments = parser.parse_args()
    measure("dense 7B, 2 requests/s", DENSE, "a100_sxm", workload(arguments.trace, 1000, 2.0), "none")
    measure("MoE 30B-A3B, 2 requests/s", MOE, "h100_sxm", workload(arguments.trace, 1000, 2.0), "none")
    if arguments.million:
        measure("dense 7B, a million at 4 requests/s", DENSE, "h100_sxm", workload(None, 1_000_000, 4.0), "none")


if __name__ == "__main__":
    main()
