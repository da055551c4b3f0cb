"""The validation page: predicted against measured, error against concurrency, coverage, accuracy tables, worst rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from moesim.report.colours import stand_in, system_colour
from moesim.report.document import Cell, Document, FigureBlock, Paragraph, Section, Table
from moesim.report.page import render_page
from moesim.report.svg import drawing, log_axis, to_svg
from moesim.study.validate.accuracy import Accuracy, Judged, accuracy_table
from moesim.study.validate.causes import suspected_cause

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["validation_document", "write_validation"]

METRICS = ("TTFT", "TPOT")
N_WORST = 20
#: Up to so many runs are drawn as large points: there is room.
FEW_RUNS = 60


def write_validation(rows: Sequence[Judged], folder: Path, name: str) -> Path:
    """Write ``index.html`` into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(render_page(validation_document(rows, name), "moesim validate"), encoding="utf-8")
    return path


def validation_document(rows: Sequence[Judged], name: str) -> Document:
    """The page as values."""
    known = [r for r in rows if r.error(0) is not None and r.error(1) is not None]
    sections = [_answer(rows, name)]
    if known:
        by: list[tuple[str, Callable[[Judged], str]]] = [
            ("model", lambda r: r.row.model.split("/")[-1]), ("backend", lambda r: r.row.backend),
            ("GPU", lambda r: r.row.system),
        ]  # fmt: skip
        # one drawing is enough where all runs are of one kind
        apart = [(what, of) for what, of in by if len({of(r) for r in known}) > 1] or by[:1]
        figures = [*(_scatter(known, what, of) for what, of in apart), _against_concurrency(known), _coverage(known)]
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
    """One line per group: TPOT, then TTFT."""
    of = {(a.name, a.metric): a for a in rows}
    cells = []
    for name in dict.fromkeys(a.name for a in rows):
        pair = [of.get((name, metric)) for metric in ("TPOT", "TTFT")]
        n = next(str(a.n) for a in pair if a is not None)
        cells.append((Cell(name.replace(" on ", " on\u00a0")), Cell(n), *(c for a in pair for c in _figures_of(a))))
    headings = (
        "runs",
        "n",
        *(f"{m} {what}" for m in ("TPOT", "TTFT") for what in ("mean", "median", "bias", "in 90%")),
    )
    return Table(
        "accuracy", "Accuracy by group: mean and median of the error's size, mean error, share inside the 90% interval", headings,
        (False, *[True] * 9), tuple(cells), "Measured by others; projected here.",
    )  # fmt: skip


def _figures_of(a: Accuracy | None) -> tuple[Cell, ...]:
    if a is None:
        return (Cell("-"),) * 4
    return (
        Cell(f"{a.mean_abs_frac:.1%}"), Cell(f"{a.median_abs_frac:.1%}"), Cell(f"{a.bias_frac:+.1%}"),
        Cell(f"{a.coverage_frac:.0%}"),
    )  # fmt: skip


def _scatter(rows: Sequence[Judged], what: str, of: Callable[[Judged], str]) -> FigureBlock:
    names = sorted({of(r) for r in rows})
    with drawing(4.4, 2) as (figure, axes_list):
        for which, axes in ((1, axes_list[0]), (0, axes_list[1])):
            measured = [(r.measured(which) or 0.0) * 1e3 for r in rows]
            low, high = min(measured) / 1.5, max(measured) * 1.5
            size, alpha = (11.0, 0.45) if len(rows) > FEW_RUNS else (32.0, 0.9)
            for i, name in enumerate(names):
                some = [r for r in rows if of(r) == name]
                axes.scatter(
                    [(r.measured(which) or 0.0) * 1e3 for r in some], [r.projected[which] * 1e3 for r in some], s=size,
                    color=stand_in(system_colour(i)), alpha=alpha, linewidths=0, label=name, zorder=2,
                )  # fmt: skip
            # the line and the edges of the band lie over the points, or thousands of them would hide both
            axes.plot([low, high], [low, high], color=stand_in("ink"), linewidth=1.1, zorder=3)
            for ratio in (0.9, 1.1):
                axes.plot(
                    [low, high], [ratio * low, ratio * high], color=stand_in("ink"), linewidth=0.6, linestyle=(0, (4, 3)),
                    zorder=3,
                )  # fmt: skip
            axes.set_xlim(low, high)
            axes.set_ylim(low, high)
            log_axis(axes, "x")
            log_axis(axes, "y")
            axes.set_title(METRICS[which])
            axes.set_xlabel("measured, ms")
        axes_list[0].set_ylabel("projected, ms")
        _legend(figure, axes_list[0], 4)
        alt = f"Projected against measured TPOT and TTFT of {len(rows)} runs by {what}."
        within = [sum(abs(r.error(which) or 0.0) <= 0.1 for r in rows) / len(rows) for which in (1, 0)]
        title = f"Within 10%: {within[0]:.0%} of the runs in TPOT, {within[1]:.0%} in TTFT; by {what}"
        svg = to_svg(figure, f"fig-by-{what.lower()}", title, alt)
    shares = "; ".join(f"{name} {_near(rows, of, name, 1):.0%} and {_near(rows, of, name, 0):.0%}" for name in names)
    caption = f"Solid: equality; dashed: ±10%. Of TPOT and of TTFT lie within 10%: {shares}."
    return FigureBlock(f"by-{what.lower()}", title, alt, svg, caption)


def _near(rows: Sequence[Judged], of: Callable[[Judged], str], name: str, which: int) -> float:
    errors = [abs(r.error(which) or 0.0) for r in rows if of(r) == name]
    return sum(e <= 0.1 for e in errors) / max(1, len(errors))


def _legend(figure: Figure, axes: Axes, n_columns: int) -> None:
    """Names under the axes with marks large enough to tell their colours."""
    marks, names = axes.get_legend_handles_labels()
    found = figure.legend(marks, names, loc="outside lower center", ncols=n_columns, markerscale=2.4, handletextpad=0.2)
    for mark in found.legend_handles:
        if mark is not None:
            mark.set_alpha(1.0)


def _against_concurrency(rows: Sequence[Judged]) -> FigureBlock:
    names = sorted({r.row.backend for r in rows})
    levels = sorted({r.row.concurrency for r in rows})
    with drawing(3.6, 2) as (figure, axes_list):
        for which, axes in ((1, axes_list[0]), (0, axes_list[1])):
            axes.axhspan(-0.1, 0.1, color=stand_in("soft"), alpha=0.2, linewidth=0)
            axes.axhline(0.0, color=stand_in("ink"), linewidth=1.0)
            for i, name in enumerate(names):
                # stacks stand side by side at each concurrency
                shift = 1.1 ** (i - 0.5 * (len(names) - 1))
                colour = stand_in(system_colour(i))
                some = [r for r in rows if r.row.backend == name]
                axes.scatter(
                    [shift * r.row.concurrency for r in some], [_clipped(r, which) for r in some], s=9.0, color=colour, alpha=0.3,
                    linewidths=0, label=name,
                )  # fmt: skip
                known = [c for c in levels if any(r.row.concurrency == c for r in some)]
                middle = [median(_clipped(r, which) for r in some if r.row.concurrency == c) for c in known]
                axes.plot([shift * c for c in known], middle, color=colour, linewidth=1.4, marker="_", markersize=9.0)
            log_axis(axes, "x", [float(c) for c in levels], [f"{c:g}" for c in levels])
            axes.set_title(f"{METRICS[which]}: projected over measured, less one")
            axes.set_xlabel("requests in flight")
        _legend(figure, axes_list[0], 3)
        alt = f"Error against requests in flight of {len(rows)} runs; errors beyond 2 are drawn at 2."
        svg = to_svg(figure, "fig-concurrency", "Error against concurrency", alt)
    caption = "Points are runs, lines medians; the band is ±10%. What was measured at twice the projection is at -0.5."
    return FigureBlock("concurrency", "Error against concurrency", alt, svg, caption)


def _clipped(judged: Judged, which: int) -> float:
    return max(-1.0, min(2.0, judged.error(which) or 0.0))


def _coverage(rows: Sequence[Judged]) -> FigureBlock:
    def group(r: Judged) -> str:
        return f"{r.row.model.split('/')[-1]} {r.row.system} {r.row.backend}"

    names = sorted({group(r) for r in rows}, reverse=True)
    shares = {w: [_share([r for r in rows if group(r) == name], w) for name in names] for w in (0, 1)}
    with drawing(0.24 * len(names) + 1.0) as (figure, (axes,)):
        axes.axvspan(0.85, 0.95, color=stand_in("soft"), alpha=0.2, linewidth=0)
        axes.axvline(0.9, color=stand_in("ink"), linewidth=1.0)
        for which in (1, 0):
            axes.plot(
                shares[which], [i + (0.13 if which else -0.13) for i in range(len(names))], "o" if which else "s",
                color=stand_in(system_colour(which)), label=METRICS[which],
            )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlim(min(0.5, min(min(s) for s in shares.values()) - 0.05), 1.03)
        axes.set_xlabel("part of the measurements inside the 90% interval")
        figure.legend(loc="outside lower center", ncols=2)
        alt = f"Coverage of 90% intervals in {len(names)} groups; the band is 85 to 95%."
        svg = to_svg(figure, "fig-coverage", "Coverage", alt)
    caption = "The line is 90%, the band 85 to 95%. Small groups scatter: one run of two is half."
    return FigureBlock("coverage", "How often the 90% interval holds the measurement", alt, svg, caption)


def _share(rows: Sequence[Judged], which: int) -> float:
    return sum(r.low[which] <= (r.measured(which) or 0.0) <= r.high[which] for r in rows) / len(rows)


def _setup(judged: Judged) -> str:
    r = judged.row
    return f"{r.group}, {r.backend}, {r.precision or 'as published'}, {r.isl}/{r.osl}, c={r.concurrency}"


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
