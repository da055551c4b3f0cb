"""A plan's report on disk: page, Markdown, figures, and the result with its tables."""

from __future__ import annotations

from pathlib import Path

from moesim.errors import InputError
from moesim.report.markdown import FIGURE_FOLDER, render_markdown
from moesim.report.page import plot_style
from moesim.report.plan_page import build_plan, render_plan
from moesim.report.svg import standalone
from moesim.study.files import write_text
from moesim.study.plan import PlanResult
from moesim.study.plan.files import write_plan

__all__ = ["write_plan_report"]


def write_plan_report(result: PlanResult, out_dir: Path) -> None:
    """Write ``report.html``, ``report.md``, ``figures/``, ``plan.json``, ``points.csv`` and ``near_misses.csv``.

    Raises:
        InputError: the folder cannot be written.
    """
    document = build_plan(result)
    try:
        write_plan(result, out_dir)
        (out_dir / FIGURE_FOLDER).mkdir(exist_ok=True)
        for figure in document.figures():
            write_text(out_dir / FIGURE_FOLDER / f"{figure.key}.svg", standalone(figure.svg, plot_style()))
        write_text(out_dir / "report.md", render_markdown(document))
        write_text(out_dir / "report.html", render_plan(result, document))
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", file=str(out_dir)) from None
