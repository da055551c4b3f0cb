"""The validation page: predicted against measured, error against concurrency, coverage, accuracy tables, worst rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moesim.report.colours import stand_in, system_colour
from moesim.report.document import Cell, Document, FigureBlock, Paragraph, Section, Table
from moesim.report.page import render_page
from moesim.report.svg import drawing, log_axis, to_svg
from moesim.study.validate.accuracy import Accuracy, Judged, accuracy_table
from moesim.study.validate.causes import suspected_cause

__all__ = ["validation_document", "write_validation"]

METRICS = ("TTFT", "TPOT")
N_WORST = 20


def write_validation(rows: Sequence[Judged], folder: Path, name: str) -> Path:
    """Write ``index.html`` into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(render_page(validation_document(rows, name)), encoding="utf-8")
    return path


def validation_document(rows: Sequence[Judged], name: str) -> Document:
    """The page as values."""
    known = [r for r in rows if r.error(0) is not None and r.error(1) is not None]
    sections = [_answer(rows, name)]
    if known:
        figures = [
            _scatter(known, "model", lambda r: r.row.model.split("/")[-1]), _scatter(known, "backend", lambda r: r.row.backend),
            _scatter(known, "GPU", lambda r: r.row.system), _against_concurrency(known), _coverage(known),
        ]  # fmt: skip
        sections += [Section("figures", "Predicted against measured", tuple(figures)), _worst(known)]
    facts = (("runs", str(len(rows))), ("measured", str(len(known))))
    return Document(
        f"Validation: {name}", "Predictions against measured serving runs", facts, "", tuple(sections), "moesim"
    )


def _answer(rows: Sequence[Judged], name: str) -> Section:
    table = accuracy_table(rows)
    lead = f"{len(rows)} runs of {name} were predicted."
    overall = [a for a in table if a.name == "all"]
    if overall:
        lead += (
            " "
            + "; ".join(
                f"{a.metric}: mean error {a.mean_abs_frac:.1%}, median {a.median_abs_frac:.1%}" for a in overall
            )
            + "."
        )
    note = "The shipped parameters saw public runs like these; errors with groups left out are in docs/validation.md."
    return Section("accuracy", "How far predictions are", (Paragraph(lead, lead=True), Paragraph(note), _table(table)))


def _table(rows: Sequence[Accuracy]) -> Table:
    cells = tuple(
        (
            Cell(a.name), Cell(a.metric), Cell(str(a.n)), Cell(f"{a.mean_abs_frac:.1%}"), Cell(f"{a.median_abs_frac:.1%}"),
            Cell(f"{a.bias_frac:+.1%}"), Cell(f"{a.coverage_frac:.0%}"),
        )
        for a in rows
    )  # fmt: skip
    headings = ("runs", "what", "n", "mean error", "median error", "bias", "inside 90%")
    return Table(
        "accuracy",
        "Accuracy by group",
        headings,
        (False, False, *[True] * 5),
        cells,
        "Measured by others; projected here.",
    )


def _scatter(rows: Sequence[Judged], what: str, of: Callable[[Judged], str]) -> FigureBlock:
    names = sorted({of(r) for r in rows})
    with drawing(4.4, 2) as (figure, axes_list):
        for which, axes in ((1, axes_list[0]), (0, axes_list[1])):
            measured = [(r.measured(which) or 0.0) * 1e3 for r in rows]
            low, high = min(measured) / 1.5, max(measured) * 1.5
            axes.plot([low, high], [low, high], color=stand_in("ink"), linewidth=1.0)
            axes.fill_between(
                [low, high],
                [0.9 * low, 0.9 * high],
                [1.1 * low, 1.1 * high],
                color=stand_in("soft"),
                alpha=0.25,
                linewidth=0,
            )
            for i, name in enumerate(names):
                some = [r for r in rows if of(r) == name]
                axes.scatter(
                    [(r.measured(which) or 0.0) * 1e3 for r in some], [r.projected[which] * 1e3 for r in some], s=7.0,
                    color=stand_in(system_colour(i)), alpha=0.6, linewidths=0, label=name,
                )  # fmt: skip
            axes.set_xlim(low, high)
            axes.set_ylim(low, high)
            log_axis(axes, "x")
            log_axis(axes, "y")
            axes.set_title(f"{METRICS[which]} (ms)")
            axes.set_xlabel("measured")
        axes_list[0].set_ylabel("projected")
        figure.legend(*axes_list[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        inside = sum(abs(r.error(1) or 0.0) <= 0.1 for r in rows) / len(rows)
        alt = f"Projected against measured TPOT and TTFT of {len(rows)} runs by {what}; {inside:.0%} of TPOT lie within 10%."
        svg = to_svg(figure, f"fig-by-{what.lower()}", f"By {what}", alt)
    return FigureBlock(f"by-{what.lower()}", f"By {what}", alt, svg, "The line is equality, the band +-10%.")


def _against_concurrency(rows: Sequence[Judged]) -> FigureBlock:
    with drawing(3.4, 2) as (figure, axes_list):
        for which, axes in ((1, axes_list[0]), (0, axes_list[1])):
            axes.axhline(0.0, color=stand_in("ink"), linewidth=1.0)
            axes.axhspan(-0.1, 0.1, color=stand_in("soft"), alpha=0.25, linewidth=0)
            for i, name in enumerate(sorted({r.row.backend for r in rows})):
                some = [r for r in rows if r.row.backend == name]
                axes.scatter(
                    [r.row.concurrency for r in some], [max(-1.0, min(2.0, r.error(which) or 0.0)) for r in some], s=7.0,
                    color=stand_in(system_colour(i)), alpha=0.5, linewidths=0, label=name,
                )  # fmt: skip
            log_axis(axes, "x")
            axes.set_title(f"{METRICS[which]}: projected over measured, less one")
            axes.set_xlabel("requests in flight")
        figure.legend(*axes_list[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        alt = f"Error against requests in flight of {len(rows)} runs; errors beyond 2 are drawn at 2."
        svg = to_svg(figure, "fig-concurrency", "Error against concurrency", alt)
    return FigureBlock("concurrency", "Error against concurrency", alt, svg)


def _coverage(rows: Sequence[Judged]) -> FigureBlock:
    names = sorted({f"{r.row.model.split('/')[-1]} {r.row.system} {r.row.backend}" for r in rows})
    shares = {
        which: [
            _share([r for r in rows if f"{r.row.model.split('/')[-1]} {r.row.system} {r.row.backend}" == name], which)
            for name in names
        ]
        for which in (0, 1)
    }
    with drawing(0.24 * len(names) + 1.0) as (figure, (axes,)):
        axes.axvspan(0.85, 0.95, color=stand_in("soft"), alpha=0.3, linewidth=0)
        for which in (1, 0):
            axes.plot(
                shares[which],
                range(len(names)),
                "o" if which else "s",
                color=stand_in(system_colour(which)),
                label=METRICS[which],
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0.0, 1.03)
        axes.set_xlabel("part of the measurements inside the 90% interval")
        figure.legend(loc="outside lower center", ncols=2)
        alt = f"Coverage of 90% intervals in {len(names)} groups; the band is 85 to 95%."
        svg = to_svg(figure, "fig-coverage", "Coverage", alt)
    return FigureBlock("coverage", "How often the 90% interval holds the measurement", alt, svg)


def _share(rows: Sequence[Judged], which: int) -> float:
    return sum(r.low[which] <= (r.measured(which) or 0.0) <= r.high[which] for r in rows) / len(rows)


def _setup(judged: Judged) -> str:
    r = judged.row
    return f"{r.group}, {r.backend} {r.precision}, {r.isl}/{r.osl}, c={r.concurrency}"


def _worst(rows: Sequence[Judged]) -> Section:
    worst = sorted(rows, key=lambda r: -max(abs(r.error(1) or 0.0) / 0.1, abs(r.error(0) or 0.0) / 0.3))[:N_WORST]
    cells = tuple(
        (
            Cell(r.row.name), Cell(_setup(r)),
            Cell(f"{r.error(1):+.0%}"), Cell(f"{r.error(0):+.0%}"), Cell(suspected_cause(r)),
        )
        for r in worst
    )  # fmt: skip
    headings = ("row", "run", "TPOT", "TTFT", "suspected cause")
    table = Table(
        "worst",
        f"The worst {len(worst)} rows",
        headings,
        (False, False, True, True, False),
        cells,
        "Causes are suspicions.",
    )
    return Section("worst", "Where predictions fail", (table,))
