"""Break-even maps: how the cost ratio runs along an input, and where it crosses 1."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from moesim.report.colours import stand_in, system_colour
from moesim.report.document import FigureBlock
from moesim.report.figures_cost import HALO, MARKERS
from moesim.report.svg import drawing, log_axis, to_svg
from moesim.report.text import compact, number, short_name
from moesim.study.results import FlipCurve, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AXIS_WORDS", "axis_label", "axis_value", "break_even", "crossings_of"]

_CAPTION = (
    "Above 1 the reference is better. Circles: where the verdict flips; bands: 90% intervals; a line ends where one of the two "
    "does not run."
)
_LEVELS = (7, -15, 19, -27)  # heights of labels in points

#: What an axis is called.
AXIS_WORDS = {
    "concurrency": "requests in flight", "context": "context length", "n_experts": "number of experts",
    "top_k": "experts per token", "link_bandwidth": "link bandwidth",
}  # fmt: skip


def break_even(result: RunResult) -> list[FigureBlock]:
    """One figure per axis and reference, with a line for each other system."""
    groups: dict[tuple[str, str], list[FlipCurve]] = {}
    for curve in result.flips:
        groups.setdefault((curve.axis.value, curve.reference), []).append(curve)
    return [_figure(result, i, curves) for i, curves in enumerate(groups.values())]


def crossings_of(x: tuple[float, ...], ratio: tuple[float | None, ...]) -> list[float]:
    """Where a ratio crosses 1, by interpolation between logarithms.

    >>> [round(c, 3) for c in crossings_of((1.0, 4.0), (0.5, 2.0))]
    [2.0]
    """
    found = []
    pairs = list(zip(x, ratio, strict=True))
    for (x0, r0), (x1, r1) in pairwise(pairs):
        if r0 is None or r1 is None or r0 <= 0 or r1 <= 0:
            continue
        a, b = math.log(r0), math.log(r1)
        if a * b < 0:
            t = a / (a - b)
            found.append(math.exp(math.log(x0) + t * (math.log(x1) - math.log(x0))) if x0 > 0 else x0 + t * (x1 - x0))
    return found


def axis_value(x: float, unit: str) -> str:
    """A value of an axis with its unit.

    >>> axis_value(450e9, "B/s"), axis_value(10281.0, "tokens")
    ('450 GB/s', '10,281 tokens')
    """
    if unit == "B/s":
        return f"{number(x / 1e9)} GB/s"
    return f"{x:,.0f} {unit}".strip() if x >= 100 else f"{number(x)} {unit}".strip()


def _figure(result: RunResult, index: int, curves: list[FlipCurve]) -> FigureBlock:
    axis, reference = curves[0].axis.value, curves[0].reference
    words = AXIS_WORDS.get(axis, axis.replace("_", " "))
    title = _title(reference, words, curves)
    factor = 1e9 if curves[0].unit == "B/s" else 1.0
    unit = "GB/s" if curves[0].unit == "B/s" else curves[0].unit
    with drawing(3.7, 2, sharey=True) as (figure, (usd, tpot)):
        in_usd: list[float] = []
        in_tpot: list[float] = []
        for curve in curves:
            in_usd += _curve(usd, result, curve, curve.usd_ratio, curve.crossings, factor)
            in_tpot += _curve(tpot, result, curve, curve.tpot_ratio, (), factor)
        values = [v for c in curves for v in (*c.usd_ratio, *c.tpot_ratio) if v is not None and v > 0] or [1.0]
        low, high = min(0.7, *values) / 1.25, max(1.4, *values) * 1.25
        for axes, name, places in ((usd, "Dollars per token", in_usd), (tpot, "Time per output token", in_tpot)):
            _mark(axes, places, curves, factor)
            _sides(axes, low, high, short_name(reference, 30))
            axes.set_title(name)
            axes.set_xlabel(axis_label(words, unit))
            log_axis(axes, "x", *_ticks(curves, factor))
            log_axis(axes, "y")
        usd.set_ylabel(f"other over {short_name(reference, 28)}")
        handles, labels = usd.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        alt = " ".join(f"Against {c.other}: {c.summary.rstrip('.')}." for c in curves)
        svg = to_svg(figure, f"fig-flip-{index}", title, alt)
    return FigureBlock(f"flip-{index}", title, alt, svg, _CAPTION)


def _title(reference: str, words: str, curves: list[FlipCurve]) -> str:
    """Against how many others the verdict changes along the axis."""
    name, n = short_name(reference, 40), sum(bool(c.crossings) for c in curves)
    if not n:
        return f"Along {words} no verdict on {name} flips"
    return f"Along {words} the verdict on {name} flips against {n} of {len(curves)}"


def axis_label(words: str, unit: str) -> str:
    """What the axis counts, without saying it twice."""
    if unit == "x link bandwidth":
        return "link bandwidth, as a multiple of the hardware's own"
    if unit in words:
        return words
    return unit if words.split()[-1] in unit else f"{words} ({unit})"


def _curve(
    axes: Axes, result: RunResult, curve: FlipCurve, ratio: tuple[float | None, ...], crossings: tuple[float, ...],
    factor: float,
) -> list[float]:  # fmt: skip
    """Draw a line; where it crosses 1: the values found by bisection where they are this line's, else interpolated."""
    names = [s.name for s in result.systems]
    i = names.index(curve.other) if curve.other in names else len(names)
    axes.plot(
        [v / factor for v in curve.x], [math.nan if r is None else r for r in ratio], marker=MARKERS[i % len(MARKERS)],
        markersize=4, color=stand_in(system_colour(i)), label=f"against {short_name(curve.other, 40)}",
    )  # fmt: skip
    ends = (curve.usd_ratio_low, curve.usd_ratio_high)
    if ratio is not curve.usd_ratio:
        ends = (curve.tpot_ratio_low, curve.tpot_ratio_high)
    if all(len(e) == len(curve.x) for e in ends) and any(e is not None for e in ends[0]):
        low, high = ([math.nan if r is None else r for r in e] for e in ends)
        colour = stand_in(system_colour(i))
        axes.fill_between([v / factor for v in curve.x], low, high, color=colour, alpha=0.13, linewidth=0)
    found = crossings_of(curve.x, ratio)
    return list(crossings) if len(crossings) == len(found) else found


def _mark(axes: Axes, places: list[float], curves: list[FlipCurve], factor: float) -> None:
    """Circles at crossings, with values that dodge each other and the right edge."""
    curve, drawn = curves[0], _drawn(curves)
    low, high = math.log(max(drawn[0], 1e-12)), math.log(drawn[-1])
    level, last = 0, -math.inf
    for place in sorted(places):
        at = (math.log(place) - low) / max(high - low, 1e-12)
        # a label at the right edge lies left of its circle, over that of the circle before
        level = (level + 1) % len(_LEVELS) if at - last < (0.34 if at > 0.85 else 0.16) else 0
        last = at
        axes.plot(
            place / factor, 1.0, "o", markersize=9, markerfacecolor="none", markeredgecolor=stand_in("alarm"), zorder=4
        )
        label = axes.annotate(
            axis_value(place, curve.unit if factor != 1.0 else ""), (place / factor, 1.0),
            (-7 if at > 0.85 else 7, _LEVELS[level]), textcoords="offset points", ha="right" if at > 0.85 else "left",
            fontsize=8.5, color=stand_in("alarm"), zorder=5, bbox=HALO | {"alpha": 0.75},
        )  # fmt: skip
        label.set_in_layout(False)


def _sides(axes: Axes, low: float, high: float, reference: str) -> None:
    axes.set_ylim(low, high)
    axes.axhline(1.0, color=stand_in("ink"), linewidth=1.2)
    axes.axhspan(1.0, high, color=stand_in("good"), alpha=0.07, linewidth=0)
    style: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "fontsize": 8.5,
        "color": stand_in("soft"),
        "ha": "right",
    }
    axes.text(0.99, high / 1.03, f"{reference} better", va="top", **style)
    axes.text(0.99, low * 1.03, "other better", va="bottom", **style)


def _drawn(curves: list[FlipCurve]) -> list[float]:
    """Values of the axis at which some curve has a point."""
    there = {v for c in curves for v, *r in zip(c.x, c.usd_ratio, c.tpot_ratio, strict=True) if any(r)}
    return sorted(there) or sorted(curves[0].x)


def _ticks(curves: list[FlipCurve], factor: float) -> tuple[list[float], list[str]]:
    values = _drawn(curves)
    step = max(1, -(-len(values) // 7))
    chosen = values[::step]
    return [v / factor for v in chosen], [
        f"{v / factor:,.0f}" if v / factor >= 100 else compact(v / factor) for v in chosen
    ]
