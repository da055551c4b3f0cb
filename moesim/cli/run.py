"""``moesim run`` and ``moesim report``."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moesim.cli.choices import choice
from moesim.report import load_result, render, write_report
from moesim.specs.scenario import Engine
from moesim.study.results import RunResult
from moesim.study.run import load_scenario, run_scenario

__all__ = ["report_command", "run_command"]


def run_command(scenario: str, out: Path | None, engine: str | None, seed: int | None) -> None:
    """Run, write, and say where."""
    began = time.monotonic()
    chosen = choice(Engine, engine, "--engine") if engine is not None else None
    spec, file = load_scenario(scenario)
    out_dir = out if out is not None else Path("reports") / file.stem
    with _progress() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(what: str, done: float) -> None:
            bar.update(task, description=what, completed=done * 0.9)

        run = run_scenario(spec, name=file.stem, engine=chosen, seed=seed, file=file, progress=tell)
        bar.update(task, description="writing the report", completed=0.9)
        write_report(run.result, out_dir, run.timeline)
        bar.update(task, description="done", completed=1.0)
    _say(run.result, out_dir, time.monotonic() - began)


def report_command(directory: Path) -> None:
    """Render again and say where."""
    result = load_result(directory)
    render(directory)
    _say(result, directory, None)


def _say(result: RunResult, out_dir: Path, seconds: float | None) -> None:
    print(f"\n{result.scenario.title}\n")
    for line in result.headline:
        print(f"- {line}")
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    print(f"\nwritten to {out_dir / 'report.html'}{took}")


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<52.52}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
