"""Small drawings whose every mark is a case that a reader can point at: scales, axes and marks as SVG text.

Colours are CSS variables of the page, so that a drawing follows the reader's colour scheme.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moesim.study.sweep.words import number_text

__all__ = ["LogScale", "Scale", "circle", "frame", "label", "line", "path", "plot", "rect", "span", "square", "steps"]


@dataclass(frozen=True, slots=True)
class Scale:
    """From `low`..`high` to `start`..`stop` pixels."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Pixel of a value."""
        span = self.high - self.low
        return self.start + (self.stop - self.start) * ((value - self.low) / span if span else 0.5)

    def ticks(self) -> list[float]:
        """About five round values."""
        span = self.high - self.low or 1.0
        step = steps(span / 5.0)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class LogScale:
    """From `low`..`high` to pixels at equal ratios."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Pixel of a value above 0."""
        span = math.log(self.high / self.low)
        return self.start + (self.stop - self.start) * (math.log(value / self.low) / span if span else 0.5)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; only powers where there are many."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        heads = (1, 2, 5) if len(decades) <= 4 else (1,)
        values = [head * 10.0**d for d in decades for head in heads]
        inside = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
        return inside if len(inside) >= 2 else [self.low, self.high]


def steps(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten.

    >>> steps(0.3), steps(7.0)
    (0.5, 10.0)
    """
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(head * power for head in (1.0, 2.0, 5.0, 10.0) if head * power >= value * (1 - 1e-9))


def circle(x: float, y: float, r: float, case: int, kind: str) -> str:
    """A point that stands for a case."""
    return f'<circle class="m {kind}" data-i="{case}" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"/>'


def square(x: float, y: float, r: float, case: int, kind: str) -> str:
    """A point of another shape that stands for a case, of the area of a circle of radius `r`."""
    half = 0.886 * r
    size = f'width="{2 * half:.1f}" height="{2 * half:.1f}"'
    return f'<rect class="m {kind}" data-i="{case}" x="{x - half:.1f}" y="{y - half:.1f}" {size}/>'


def rect(x: float, y: float, width: float, height: float, case: int, kind: str, opacity: float) -> str:
    """A cell that stands for a case."""
    return (
        f'<rect class="m {kind}" data-i="{case}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'style="--o:{opacity:.3f}"/>'
    )


def path(
    points: Sequence[tuple[float, float]], kind: str, case: int | None = None, opacity: float | None = None
) -> str:
    """A polyline; with a case it is a mark."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    mark = "" if case is None else f' data-i="{case}"'
    style = "" if opacity is None else f' style="--o:{opacity:.3f}"'
    return f'<path class="{"m " if case is not None else ""}{kind}"{mark}{style} d="{d}"/>'


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def label(x: float, y: float, text: str, kind: str = "t", anchor: str = "middle", turn: int = 0) -> str:
    """Text."""
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{html.escape(text)}</text>'


def frame(sx: LogScale | Scale, sy: LogScale | Scale, x_words: str, y_words: str) -> list[str]:
    """Grid, ticks and names of two axes."""
    parts = []
    for tick in sx.ticks():
        parts.append(line(sx.at(tick), sy.stop, sx.at(tick), sy.start, "g"))
        parts.append(label(sx.at(tick), sy.start + 18, number_text(tick)))
    for tick in sy.ticks():
        parts.append(line(sx.start, sy.at(tick), sx.stop, sy.at(tick), "g"))
        parts.append(label(sx.start - 8, sy.at(tick) + 4, number_text(tick), "t", "end"))
    parts.append(label((sx.start + sx.stop) / 2, sy.start + 42, x_words, "a"))
    parts.append(label(16, (sy.start + sy.stop) / 2, y_words, "a", "middle", -90))
    return parts


def span(values: Iterable[float]) -> tuple[float, float]:
    """The ends of a scale that holds values above 0 with a margin."""
    known = list(values)
    low, high = min(known), max(known)
    return (low * 0.93, high * 1.07) if high > low else (low * 0.8, high * 1.25)


def plot(key: str, title: str, alt: str, width: float, height: float, parts: Sequence[str]) -> str:
    """The whole drawing: one stop of the tab key, inside which arrow keys walk from mark to mark."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" id="{key}" viewBox="0 0 {width:g} {height:g}" role="group" '
        f'tabindex="0" aria-roledescription="plot" aria-label="{html.escape(title)}. {html.escape(alt)} '
        f'Arrow keys walk through its marks.">{"".join(parts)}</svg>'
    )
