"""``moesim serve``."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moesim.report.serve_page import serve_page
from moesim.study.serve import load_serve_scenario, run_serve
from moesim.study.serve_files import summary_text, write_serve

__all__ = ["serve_command"]


def serve_command(scenario: str, requests: Path | None, out: Path | None, seed: int | None) -> None:
    """Serve, write, and say what came out."""
    began = time.monotonic()
    spec, file = load_serve_scenario(scenario)
    out_dir = out if out is not None else Path("reports") / f"serve-{file.stem}"
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<40.40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(what: str, done: float) -> None:
            bar.update(task, description=what, completed=done)

        run = run_serve(spec, name=file.stem, requests=requests, seed=seed, file=file, progress=tell)
        bar.update(task, description="writing the report", completed=1.0)
        write_serve(run, out_dir, serve_page(run))
    print(summary_text(run.result))
    print(f"written to {out_dir} in {time.monotonic() - began:.1f} s")
