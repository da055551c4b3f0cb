"""``moesim sweep``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from moesim.cli.choices import choice
from moesim.cli.run import check_out
from moesim.errors import InputError
from moesim.report.sweep import write_sweep
from moesim.specs.sweep import SweepEngine
from moesim.study.sweep import SweepResult, Tick, load_sweep, run_sweep

__all__ = ["sweep_command"]


def sweep_command(sweep: str, out: Path | None, jobs: int, engine: str | None, scheduler: str | None) -> None:
    """Run what is not answered yet, write the report, and say what came out."""
    began = time.monotonic()
    if jobs == 0 or jobs < -1:
        raise InputError("must be 1 or more, or -1 for all cores", field="--jobs", value=jobs)
    chosen = choice(SweepEngine, engine, "--engine") if engine is not None else None
    spec, file = load_sweep(sweep)
    out_dir = out if out is not None else Path("reports") / f"sweep-{file.stem}"
    check_out(out_dir)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<58.58}"), BarColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("planning", total=1.0)

        def tell(tick: Tick) -> None:
            bar.update(task, description=_words(tick), completed=tick.n_done, total=max(1, tick.n_total))

        result = run_sweep(
            spec,
            out_dir=out_dir,
            engine=chosen,
            n_jobs=jobs,
            scheduler=scheduler,
            file=file,
            name=file.stem,
            progress=tell,
        )
    if result.interrupted:
        n = int(result.done.sum())
        print(
            f"interrupted with {n:,} of {result.n_cases:,} cases kept in {out_dir}; run again to go on", file=sys.stderr
        )
        raise KeyboardInterrupt
    sentences = write_sweep(result, out_dir)
    _say(result, sentences, out_dir, time.monotonic() - began)


def _words(tick: Tick) -> str:
    text = f"{tick.n_done:,} of {tick.n_total:,} cases"
    if tick.n_kept:
        text += f" ({tick.n_kept:,} from before)"
    if tick.left_s is not None:
        text += f", {tick.cases_per_s:,.0f}/s, {_clock(tick.left_s)} left"
    return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _say(result: SweepResult, sentences: tuple[str, ...], out_dir: Path, seconds: float) -> None:
    counts = ", ".join(f"{n:,} {word}" for word, n in result.outcomes().items())
    print(f"\n{result.spec.title}: {result.n_cases:,} cases ({counts})")
    for line in sentences:
        print(f"- {line}")
    print(f"\nwritten to {out_dir / 'report.html'} in {seconds:.1f} s")
