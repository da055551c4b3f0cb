"""``moesim run`` and ``moesim report``."""

from __future__ import annotations

import time
from pathlib import Path

from moesim.cli.choices import choice
from moesim.cli.progress import progress_bar
from moesim.cli.table import table
from moesim.errors import InputError
from moesim.report import load_result, render, write_report
from moesim.report.host import HOST_TITLE, run_host_note
from moesim.specs.scenario import Engine
from moesim.study.results import RunResult, SystemResult
from moesim.study.run import load_scenario, run_scenario

__all__ = ["check_out", "refused", "report_command", "run_command"]


def run_command(scenario: str, out: Path | None, engine: str | None, seed: int | None) -> None:
    """Run, write, and say where."""
    began = time.monotonic()
    chosen = choice(Engine, engine, "--engine") if engine is not None else None
    spec, file = load_scenario(scenario)
    out_dir = out if out is not None else Path("reports") / file.stem
    check_out(out_dir)
    with progress_bar() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(what: str, done: float) -> None:
            bar.update(task, description=what, completed=done * 0.9)

        run = run_scenario(spec, name=file.stem, engine=chosen, seed=seed, file=file, progress=tell)
        bar.update(task, description="writing the report", completed=0.9)
        write_report(run.result, out_dir, run.timeline, run.prefill_timeline)
        bar.update(task, description="done", completed=1.0)
    _say(run.result, out_dir, time.monotonic() - began)


def check_out(out_dir: Path) -> None:
    """Refuse what cannot become a folder before the work is done."""
    first = next((path for path in (out_dir, *out_dir.parents) if path.exists()), None)
    if first is not None and not first.is_dir():
        raise InputError("is a file where a directory is meant", file=str(first), hint="name another with --out")


def report_command(directory: Path) -> None:
    """Render again and say where."""
    result = load_result(directory)
    render(directory)
    _say(result, directory, None)


def _say(result: RunResult, out_dir: Path, seconds: float | None) -> None:
    at = result.scenario.workload.middle
    print(f"\n{result.scenario.title}, {at} requests in flight")
    header = ("system", "active", "TTFT ms", "TPOT ms", "90%", "tok/s", "GB/rank", "J/tok", "$/Mtok")
    table(header, [_row(system, at) for system in result.systems])
    for line in refused(result):
        print(line)
    note = run_host_note(result)
    if note:
        print(f"{HOST_TITLE}. {note}")
    for line in result.headline:
        print(f"- {line}")
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    print(f"\nwritten to {out_dir / 'report.html'}{took}")


def refused(result: RunResult) -> list[str]:
    """Loads that do not run and why the smallest does not: a line for systems of which the same is true."""
    found: dict[str, list[str]] = {}
    for system in result.systems:
        out = [p for p in system.points if p.outcome != "ok"]
        if out:
            first, loads = out[0], ", ".join(f"{p.concurrency:,}" for p in out)
            why = (
                f" ({first.reason.rstrip('.')}{f', at {first.concurrency:,}' * (len(out) > 1)})" if first.reason else ""
            )
            found.setdefault(f"{loads} in flight: {first.outcome.replace('_', ' ')}{why}", []).append(system.name)
    return [f"! {', '.join(names)} with {what}" for what, names in found.items()]


def _row(system: SystemResult, at: int) -> tuple[str, ...]:
    p = next(point for point in system.points if point.concurrency == at)
    size = (system.name, f"{system.n_active_params / 1e9:.1f}/{system.n_params / 1e9:.0f}B")
    memory = "?" if p.memory_bytes_per_device is None else f"{p.memory_bytes_per_device / 1e9:.0f}"
    if p.ttft_s is None or p.tpot_s is None or p.output_tokens_per_s is None:
        return (*size, p.outcome, "", "", "", memory, "", "")
    energy = "" if p.energy_j_per_output_token is None else f"{p.energy_j_per_output_token:.2f}"
    usd = "" if p.usd_per_million_output_tokens is None else f"{p.usd_per_million_output_tokens:.2f}"
    times = (f"{p.ttft_s * 1e3:.0f}", f"{p.tpot_s * 1e3:.1f}", f"{p.output_tokens_per_s:,.0f}")
    ends = p.intervals.get("tpot_s")
    interval = "assumption only" if ends is None else f"{ends[0] * 1e3:.1f}-{ends[1] * 1e3:.1f}"
    return (*size, *times[:2], interval, times[2], memory, energy, usd)
