"""A sweep's report on disk: page, Markdown, the whole table, and what was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.errors import InputError
from moesim.report.markdown import FIGURE_FOLDER, render_markdown
from moesim.report.page import plot_style
from moesim.report.svg import standalone
from moesim.report.sweep_page import build_sweep, render_sweep
from moesim.study.files import write_text
from moesim.study.sweep import SweepResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["write_sweep"]


def write_sweep(result: SweepResult, out_dir: Path) -> tuple[str, str, str]:
    """Write ``report.html``, ``report.md``, ``results.csv``, ``results.parquet`` and ``sweep.json``; each whole or not at all.

    Returns:
        The three sentences that the report ends with.

    Raises:
        InputError: the folder cannot be written.
    """
    document, sentences = build_sweep(result)
    frame = result.to_frame()
    record = {
        "moesim_version": result.moesim_version, "name": result.name, "engine": result.engine, "n_cases": result.n_cases,
        "outcomes": result.outcomes(), "conclusions": list(sentences), "sweep": result.spec.model_dump(mode="json"),
    }  # fmt: skip
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_text(out_dir / "results.csv", frame.to_csv(index=False, lineterminator="\n"))
        staged = out_dir / ".results.parquet"
        _as_text(frame).to_parquet(staged, index=False)
        staged.replace(out_dir / "results.parquet")
        (out_dir / FIGURE_FOLDER).mkdir(exist_ok=True)
        for figure in document.figures():
            write_text(out_dir / FIGURE_FOLDER / f"{figure.key}.svg", standalone(figure.svg, plot_style()))
        write_text(out_dir / "report.md", render_markdown(document))
        write_text(out_dir / "sweep.json", json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        write_text(out_dir / "report.html", render_sweep(result, document))
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", file=str(out_dir)) from None
    return sentences


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of several kinds as text, which a Parquet column must be."""
    mixed = [
        c for c in frame.columns if frame[c].dtype == object and len({type(v) for v in frame[c] if v is not None}) > 1
    ]
    return frame.astype(dict.fromkeys(mixed, "string"))
