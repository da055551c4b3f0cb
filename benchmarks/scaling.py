"""How the cost of one simulated pass grows with expert-parallel ranks: seconds of each step, peak memory, exponents of growth.

Run: python benchmarks/scaling.py [--phase decode|prefill] [--ranks 64,128,...,2048] [--json FILE]

DeepSeek-V3 on paper hardware: as many H100 nodes of 8 as are needed. Every size runs in a process of its own, so that the peak
is its own; seconds are of the processor (one thread), the least of three passes, as the machine is shared. Beyond 256 ranks each
holds one expert slot.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.sim import simulate
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.hardware import Hardware
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.study.instance import Instance, build_instance

STEPS = ("build_s", "draw_s", "lower_s", "simulate_s", "pass_s", "peak_mb")
PASSES = {Phase.DECODE: (128.0, 1.0, 4096.0), Phase.PREFILL: (2.0, 2048.0, 0.0)}


class PaperHardware(Hardware):
    """A cluster without an end."""

    def with_n_devices(self, n_devices: int) -> PaperHardware:
        """As many devices as are asked for."""
        return self.model_copy(update={"n_devices": n_devices})


def paper_instance(n_ranks: int, overlap: Overlap) -> Instance:
    """DeepSeek-V3 with a replica's slot on each rank beyond its 256 experts."""
    extra = max(0, n_ranks - 256)
    split = ParallelSpec(dp_size=n_ranks, ep_size=n_ranks, redundant_experts=extra)
    placement = PlacementSpec(kind=PlacementKind.EPLB_GLOBAL if extra else PlacementKind.CONTIGUOUS)
    routing = RoutingSpec(family=RouterFamily.PRESET, preset="deepseek-v3", placement=placement)
    cluster = load_hardware("h100_x128_nodes", 8)
    paper = PaperHardware.model_construct(**{name: getattr(cluster, name) for name in Hardware.model_fields})
    rng = np.random.default_rng(0)
    return build_instance(load_model("deepseek-v3"), split, paper, routing, overlap=overlap, rng=rng)


def one_size(n_ranks: int, overlap: Overlap, phase: Phase) -> dict[str, float]:
    """Seconds of each step and the peak memory of this process."""
    times = [time.process_time()]
    instance = paper_instance(n_ranks, overlap)
    build_s = time.process_time() - times[0]
    per_rank, new, cached = PASSES[phase]
    step, rng = Pass(phase, n_ranks * per_rank, new, cached), np.random.default_rng(1)
    rows = []
    for _ in range(3):
        times = [time.process_time()]
        counts = instance.draw(step, rng)
        times.append(time.process_time())
        program = instance.program(step, counts)
        times.append(time.process_time())
        simulate(program, instance.cost, record=False)
        times.append(time.process_time())
        rows.append(np.diff(times))
        del counts, program
    least = np.min(rows, axis=0)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    return dict(zip(STEPS, (build_s, *least.tolist(), float(np.min(np.sum(rows, axis=1))), peak_mb), strict=True))


def exponents(rows: dict[int, dict[str, float]]) -> dict[str, float]:
    """Slope of log cost over log ranks, least squares over all sizes."""
    x = np.log([float(n) for n in rows])
    return {name: float(np.polyfit(x, np.log([row[name] for row in rows.values()]), 1)[0]) for name in STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase", default="decode", choices=["decode", "prefill"])
    parser.add_argument("--ranks", default="64,128,256,512,1024,2048")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_size(int(args.ranks), Overlap(args.one), Phase(args.phase))))
        return
    found = {}
    for overlap in (Overlap.NONE, Overlap.TWO_BATCH):
        rows = {}
        print(f"{args.phase}, {overlap.value}: ranks, {', '.join(STEPS)}")
        for n in map(int, args.ranks.split(",")):
            command = [sys.executable, __file__, "--one", overlap.value, "--ranks", str(n), "--phase", args.phase]
            rows[n] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(n, *(f"{rows[n][name]:.3g}" for name in STEPS), flush=True)
        if len(rows) > 1:
            print("exponent", *(f"{slope:.2f}" for slope in exponents(rows).values()))
        found[overlap.value] = rows
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
