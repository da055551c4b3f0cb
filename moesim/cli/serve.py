"""``moesim serve``."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from moesim.cli.progress import progress_bar
from moesim.cli.run import check_out
from moesim.cli.table import table
from moesim.report.serve_page import serve_page
from moesim.study.serve import load_serve_scenario, run_serve
from moesim.study.serve_files import LATENCY_HEADER, latency_rows, rate_rows, summary_lines, write_serve
from moesim.study.serve_results import ServeResult

__all__ = ["serve_command"]


def serve_command(scenario: str, requests: Path | None, out: Path | None, seed: int | None) -> None:
    """Serve, write, and say what came out."""
    began = time.monotonic()
    spec, file = load_serve_scenario(scenario)
    out_dir = out if out is not None else Path("reports") / f"serve-{file.stem}"
    check_out(out_dir)
    with progress_bar() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(what: str, done: float) -> None:
            bar.update(task, description=what, completed=done)

        run = run_serve(spec, name=file.stem, requests=requests, seed=seed, file=file, progress=tell)
        bar.update(task, description="writing the report", completed=1.0)
        write_serve(run, out_dir, serve_page(run))
    _say(run.result)
    print(f"\nwritten to {out_dir / 'report.html'} in {time.monotonic() - began:.1f} s")


def _say(r: ServeResult) -> None:
    """What was served: an overload first and in red, where it can be."""
    console = Console(soft_wrap=True, highlight=False)
    print(f"\n{r.scenario.title}")
    first, *rest = summary_lines(r)
    console.print(f"- {first}", style="bold red" if r.outcome == "unstable" else None, markup=False)
    for line in rest:
        print(f"- {line}")
    table(LATENCY_HEADER, latency_rows(r))
    table(("", "value"), rate_rows(r))
