"""Replay real vLLM runs and print how far the simulation is off, per quantity; optionally plot throughput over time.

Run: python benchmarks/serving_validation.py DATA [--fit] [--plot FILE.svg]; DATA holds `serving_logs` and `rtxpro6000_ops`.
Time to first token is counted from when the engine queued the request, as in the logs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.sim.serving.metrics import Recorder
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import SystemKind, SystemSpec
from moesim.specs.serving import RequestFileSpec, SchedulerSpec, ServeScenarioSpec, ServingSpec
from moesim.study.serve import simulate_requests
from moesim.study.serve_build import Deployment, build_deployment

MODELS = {"meta-llama/Llama-3.1-8B": "llama-3.1-8b", "Qwen/Qwen3-32B": "qwen3-32b"}
NAMES = ("mean", "p50", "p90", "p95", "p99")
TARGETS = {"ttft": (5.0, 10.0, None, None, None), "tpot": (2.0,) * 5, "e2e": (2.5,) * 5}


@dataclass(frozen=True)
class Log:
    """One measured run."""

    name: str
    file: Path
    meta: dict[str, Any]
    rows: list[dict[str, Any]]
    series: list[dict[str, str]]

    def real(self) -> dict[str, np.ndarray]:
        """What was measured, in seconds, per request."""
        queued, first, last, output = (
            np.array([row[key] for row in self.rows])
            for key in ("queued_ts", "first_token_ts", "last_token_ts", "output_toks")
        )
        return {"ttft": first - queued, "tpot": (last - first) / (output - 1), "e2e": last - queued}


def read_logs(data: Path) -> list[Log]:
    logs = []
    for meta_file in sorted((data / "serving_logs").glob("*.meta.json")):
        stem = meta_file.name.removesuffix(".meta.json")
        meta = json.loads(meta_file.read_text())
        if meta["model"] not in MODELS:
            continue
        file = meta_file.with_name(f"{stem}.requests.jsonl")
        with meta_file.with_name(f"{stem}.timeseries.csv").open() as stream:
            series = list(csv.DictReader(stream))
        logs.append(Log(stem, file, meta, [json.loads(line) for line in file.read_text().splitlines()], series))
    return logs


def deployment_of(log: Log, data: Path) -> Deployment:
    settings = log.meta["engine_kwargs"]
    model, tp = MODELS[log.meta["model"]], settings["tensor_parallel_size"]
    scenario = ServeScenarioSpec(
        title=log.name,
        hardware="rtx_pro_6000" if tp == 1 else "rtx_pro_6000_2",
        operator_tables=str(data / "rtxpro6000_ops"),
        system=SystemSpec(name=model, kind=SystemKind.DENSE, model=model, parallel=ParallelSpec(tp_size=tp)),
        serving=ServingSpec(
            requests=RequestFileSpec(file=str(log.file)),
            scheduler=SchedulerSpec(
                max_num_seqs=settings["max_num_seqs"], max_num_batched_tokens=settings["max_num_batched_tokens"]
            ),
        ),
    )
    return build_deployment(scenario, 0)


def simulated(log: Log, recorder: Recorder) -> dict[str, np.ndarray]:
    place = {name: i for i, name in enumerate(recorder.ids)}
    order = [place[row["request_id"]] for row in log.rows]
    t = {name: np.asarray(column)[order] for name, column in recorder.times.items()}
    return {
        "ttft": t["first_token_s"] - t["queued_s"],
        "tpot": t["tpot_s"],
        "e2e": t["finish_s"] - t["queued_s"],
    }


def errors(log: Log, recorder: Recorder) -> tuple[dict[str, list[float]], float]:
    """Errors in percent of mean and percentiles, and the mean absolute error of each request's end-to-end time."""
    real, sim = log.real(), simulated(log, recorder)
    table = {}
    for key, measured in real.items():
        pairs = [(sim[key].mean(), measured.mean())]
        pairs += [(np.percentile(sim[key], p), np.percentile(measured, p)) for p in (50, 90, 95, 99)]
        table[key] = [100.0 * (a / b - 1.0) for a, b in pairs]
    return table, float(100.0 * np.abs(sim["e2e"] / real["e2e"] - 1.0).mean())


def show(log: Log, table: dict[str, list[float]], per_request: float) -> None:
    print(f"\n{log.name}\n{'':6}" + "".join(f"{name:>9}" for name in NAMES))
    for key, row in table.items():
        cells = []
        for value, target in zip(row, TARGETS[key], strict=True):
            cells.append(f"{value:+8.2f}{'!' if target is not None and abs(value) > target else ' '}")
        print(f"{key:6}" + "".join(cells))
    print(f"each request's end-to-end time: mean absolute error {per_request:.2f}% (target 5%)")


def badness(table: dict[str, list[float]]) -> float:
    """Mean square of errors over their targets."""
    ratios = [e / t for key, row in table.items() for e, t in zip(row, TARGETS[key], strict=True) if t is not None]
    return float(np.mean(np.square(ratios)))


def fit(logs: list[Log], deployments: list[Deployment]) -> None:
    """Fit the two overheads on each log and apply them to the other."""
    grid = list(itertools.product(np.arange(0.0, 1.45e-3, 0.1e-3), np.arange(0.0, 4.1e-3, 1e-3)))
    found = {}
    for log, deployment in zip(logs, deployments, strict=True):
        scores = {}
        for pass_s, prefill_s in grid:
            overheads = replace(deployment.overheads, pass_s=float(pass_s), prefill_s=float(prefill_s))
            recorder, _ = simulate_requests(replace(deployment, overheads=overheads), 0)
            scores[pass_s, prefill_s] = badness(errors(log, recorder)[0])
        found[log.name] = min(scores, key=scores.__getitem__)
    for fitted_on, (pass_s, prefill_s) in found.items():
        print(
            f"\n== fitted on {fitted_on}: {pass_s * 1e3:.1f} ms per pass, {prefill_s * 1e3:.0f} ms per pass with prefill"
        )
        for log, deployment in zip(logs, deployments, strict=True):
            overheads = replace(deployment.overheads, pass_s=float(pass_s), prefill_s=float(prefill_s))
            recorder, _ = simulate_requests(replace(deployment, overheads=overheads), 0)
            show(log, *errors(log, recorder))


def plot(logs: list[Log], recorders: list[Recorder], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(logs)), layout="constrained")
    for i, (log, recorder) in enumerate(zip(logs, recorders, strict=True)):
        axes = figure.add_subplot(len(logs), 1, i + 1)
        measured = [float(row["gen_throughput"]) for row in log.series]
        rows = recorder.bins.rows()["output_tokens"] / recorder.bins.width_s
        axes.plot([float(row["t"]) for row in log.series], measured, label="measured", color="#777777")
        axes.plot((np.arange(len(rows)) + 1) * recorder.bins.width_s, rows, label="simulated", color="#0068b5")
        axes.set(title=log.name, xlabel="time (s)", ylabel="output tokens/s")
        axes.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    logs = read_logs(arguments.data)
    deployments = [deployment_of(log, arguments.data) for log in logs]
    recorders = [simulate_requests(deployment, 0)[0] for deployment in deployments]
    print("shipped overheads:", deployments[0].overheads)
    for log, recorder in zip(logs, recorders, strict=True):
        show(log, *errors(log, recorder))
    if arguments.fit:
        fit(logs, deployments)
    if arguments.plot:
        plot(logs, recorders, arguments.plot)


if __name__ == "__main__":
    main()
