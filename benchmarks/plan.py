"""How long a plan takes: processor time (machines are shared) and wall time, of the search and of the check in simulation.

Run: python benchmarks/plan.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from moesim.study.plan import PlanSpec, plan

#: name, hardware, devices; the target of the first is 5 s (aiconfigurator: 33.5 s for this search).
QUESTIONS = (
    ("deepseek-v3", "h200_x4_nodes", 32),
    ("deepseek-v3", "h100_x128_nodes", 64),
    ("mixtral-8x7b", "hgx_h100", 8),
    ("llama-3.1-70b", "hgx_h100", 8),
)


def timed(spec: PlanSpec) -> tuple[float, float, int]:
    cpu, wall = time.process_time(), time.perf_counter()
    result = plan(spec)
    n = sum(p.n_options for p in result.plans)
    return time.process_time() - cpu, time.perf_counter() - wall, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for model, hardware, n_devices in QUESTIONS:
        spec = PlanSpec(model=model, hardware=(hardware,), n_devices=n_devices, input_tokens=4096, output_tokens=512, ttft_s=3.0,
                        tpot_s=0.05, n_confirm=0)  # fmt: skip
        search = min(timed(spec) for _ in range(2))
        whole = timed(spec.model_copy(update={"n_confirm": 3}))
        row = {"model": model, "hardware": hardware, "n_devices": n_devices, "n_options": search[2]}
        row |= {"search_cpu_s": search[0], "search_wall_s": search[1]}
        rows.append(row | {"with_simulation_cpu_s": whole[0], "with_simulation_wall_s": whole[1]})
        print(f"{model} on up to {n_devices} of {hardware}: {search[2]} deployments searched in {search[0]:.2f} s"
              f" ({search[1]:.2f} s wall), with 3 simulated {whole[0]:.2f} s ({whole[1]:.2f} s wall)")  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
