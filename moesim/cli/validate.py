"""``moesim validate ...``, ``moesim explain`` and ``moesim calibrate runs``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.exits import EXIT_CODES

__all__ = ["explain_command", "runs_command", "validate_app"]

validate_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EXIT_CODES,
    help="Predictions against measured runs, and against published single cases.",
)


def _one_thread() -> None:
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


@validate_app.command(epilog=EXIT_CODES)
def serving(
    table: Annotated[
        Path, typer.Argument(help="CSV of serving runs; measured columns are optional (docs/validation.md).")
    ],
    out: Annotated[Path | None, typer.Option(help="CSV with predictions; an interrupted run goes on from it.")] = None,
    html: Annotated[Path | None, typer.Option(help="A folder for the validation page.")] = None,
) -> None:
    """Predict TTFT and TPOT of every run, with 90% intervals, and say how far they are from what was measured."""
    _one_thread()
    from moesim.cli.progress import progress_bar
    from moesim.study.validate.accuracy import accuracy_table
    from moesim.study.validate.serving import judged, validate_serving

    began = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("predicting runs", total=None)
        results = validate_serving(
            table, out, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    n_answered = sum(r.projected is not None for r in results)
    print(f"{n_answered} of {len(results)} runs answered in {time.monotonic() - began:.1f} s")
    for reason in sorted({f"{r.outcome}: {r.reason}" for r in results if r.projected is None})[:5]:
        print(f"  {reason}")
    known = accuracy_table(judged(results))
    if known:
        _accuracy(known)
        print("The shipped parameters were fitted on public runs; errors on groups left out: docs/validation.md.")
    if out is not None:
        print(f"written to {out}")
    if html is not None:
        from moesim.report.validation import write_validation

        print(f"page: {write_validation(judged(results), html, table.name)}")


def _accuracy(rows: Sequence[object]) -> None:
    from moesim.cli.table import table as show
    from moesim.study.validate.accuracy import Accuracy

    header = ("runs", "what", "n", "mean", "median", "bias", "in 90%")
    show(
        header,
        [
            (a.name, a.metric, str(a.n), f"{a.mean_abs_frac:.1%}", f"{a.median_abs_frac:.1%}", f"{a.bias_frac:+.1%}",
             f"{a.coverage_frac:.0%}")
            for a in rows
            if isinstance(a, Accuracy)
        ],
    )  # fmt: skip


@validate_app.command(epilog=EXIT_CODES)
def published(
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    case: Annotated[str | None, typer.Option(help="Only cases whose id or group holds this text.")] = None,
) -> None:
    """Run the shipped file of single, well-sourced cases: setup, measured, projected, interval, error, verdict."""
    _one_thread()
    from moesim.cli.table import print_json
    from moesim.cli.table import table as show
    from moesim.study.validate.published import run_cases

    found = run_cases(case)
    if json:
        print_json([f.as_dict() for f in found])
        return
    header = ("case", "setup", "measured", "projected", "90%", "error", "verdict", "source")
    show(header, [f.cells() for f in found], text=("setup", "source"))
    held = [f for f in found if f.is_inside is not None]
    print(f"{sum(bool(f.is_inside) for f in held)} of {len(held)} measurements lie inside the 90% interval")


def explain_command(row: str, table: Path | None, json: bool) -> None:
    """Print the step's operators, what queueing added, and whose uncertainty dominates."""
    _one_thread()
    from moesim.cli.table import print_json
    from moesim.cli.table import table as show
    from moesim.study.validate.explain import explain_row

    found = explain_row(row, table)
    if json:
        print_json(found.as_dict())
        return
    print(found.heading)
    show(("operator", "time", "share", "bound", "tables"), found.operator_cells())
    for sentence in found.sentences:
        print(sentence)


def runs_command(tables: list[Path], out: Path, name: str | None, defaults: list[str]) -> None:
    """Fit the few parameters of a stack to measured runs, cross-validate, warn, and write a layered calibration."""
    _one_thread()
    from moesim.study.validate.own_runs import calibrate_runs

    found = calibrate_runs(tables, out, name, defaults)
    for sentence in found.sentences:
        print(sentence)
    print(f"written to {found.path}")
