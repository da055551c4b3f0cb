"""Figures of a sweep: heat map with iso-lines, break-even contour, front, parallel coordinates, sensitivity bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.report.document import FigureBlock
from moesim.report.plot_svg import LogScale, circle, frame, label, line, path, plot, rect, span, steps
from moesim.report.text import plural, short_name
from moesim.specs.sweep import Question
from moesim.study.sweep.axes import Column
from moesim.study.sweep.findings import Effect, Swing, best_case, front, grid_of
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.sentences import heat_axes
from moesim.study.sweep.words import COLUMN_WORDS, column_words, number_text, path_words, value_text

__all__ = ["bars", "heat", "parallel", "pareto"]

Floats = NDArray[np.float64]
WIDTH, MOST_POINTS, MOST_LINES = 760.0, 1500, 400


def shown(name: str, values: Any) -> Any:
    """Values in the unit in which a column is written."""
    return values * COLUMN_WORDS.get(name, (name, "", 1.0))[2]


def heat(result: SweepResult) -> FigureBlock | None:
    """The best objective for every pair of two axes' values, with iso-lines; of a ratio the line at 1 stands out."""
    axes = heat_axes(result)
    if axes is None:
        return None
    x, y = (_sorted(c) for c in axes)
    name = result.spec.report.objective
    inside, at = _at_one_condition(result, {x.path, y.path})
    best, case = grid_of(result, x, y, inside)
    relative = result.condition is not None and {x.path, y.path} - set(result.condition_paths) != set()
    values = np.abs(best)
    if not relative:
        raw = np.where(result.ok, result.number(name), np.nan)
        values = shown(name, np.where(np.isfinite(best) & (case >= 0), raw[case], np.nan))
    if not np.isfinite(values).any():
        return None
    is_ratio = result.spec.report.question is Question.BREAK_EVEN
    left, top = 130.0, 10.0
    step_x, step_y = (WIDTH - left - 20) / len(x.values), min(46.0, max(16.0, 380.0 / len(y.values)))
    height = top + step_y * len(y.values) + 52
    parts = _cells(values, case, left, top, step_x, step_y, is_ratio, result.spec.report.maximise and not relative)
    if all(isinstance(v, int | float) for c in (x, y) for v in c.values):
        parts += _isolines(values, left, top, step_x, step_y, is_ratio)
    parts += _ticks(x, y, left, top, step_x, step_y, height)
    words = column_words(name)
    if relative:
        same = " and ".join(path_words(p) for p in result.condition_paths)
        words = f"{words.split(' (')[0]}, times worse than the best at the same {same}"
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    alt = f"{words} runs from {number_text(low)} to {number_text(high)} over {path_words(x.path)} and {path_words(y.path)}."
    fixed = {x.path, y.path} if inside is None else {x.path, y.path, *result.condition_paths}
    others = [path_words(c.path) for c in result.settings if c.path not in fixed and len(c.values) > 1]
    caption = f"At {at}. " if at else ""
    caption += f"Each cell is the best case over {', '.join(others)}. " if others else ""
    if is_ratio:
        title = "Where the verdict flips"
        caption += "Blue: this one is cheaper; orange: the other is; the thick line is break-even. "
    else:
        title = f"{words[:1].upper()}{words[1:]}"
        caption += "Stronger colour is better; lines join equal values. "
    caption += "Hatched cells have no case that runs."
    svg = plot("plot-heat", title, alt, WIDTH, height, [_HATCH, *parts])
    return FigureBlock("heat", title, alt, svg, caption)


def _at_one_condition(result: SweepResult, drawn: set[str]) -> tuple[NDArray[np.bool_] | None, str]:
    """Cases of the best one's condition and its words, where no axis of the map is a condition itself."""
    condition, best = result.condition, best_case(result)
    if condition is None or best is None or drawn & set(result.condition_paths):
        return None, ""
    return condition.codes == condition.codes[best], result.named_condition(best)


_HATCH = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line x1="0" y1="0" x2="0" y2="6" stroke="var(--rule)" stroke-width="2"/></pattern></defs>'
)


def _sorted(column: Column) -> Column:
    """Numbers in order; words as they were given."""
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in column.values):
        return column
    order = np.argsort(np.asarray(column.values, dtype=float), kind="stable")
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order))
    return Column(column.path, tuple(column.values[i] for i in order), place[column.codes])


def _cells(
    values: Floats,
    case: NDArray[np.intp],
    left: float,
    top: float,
    dx: float,
    dy: float,
    is_ratio: bool,
    maximise: bool,
) -> list[str]:
    logs = np.log(values)
    low, high = float(np.nanmin(logs)), float(np.nanmax(logs))
    widest = max(abs(low), abs(high), 1e-9)
    parts = []
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            place = (left + column * dx, top + (values.shape[0] - 1 - row) * dy)
            i, value = int(case[row, column]), values[row, column]
            if i < 0:
                continue
            if not math.isfinite(value):
                parts.append(rect(*place, dx - 1, dy - 1, i, "none", 1.0))
                continue
            log = float(logs[row, column])
            if is_ratio:
                parts.append(
                    rect(*place, dx - 1, dy - 1, i, "win" if log >= 0 else "lose", 0.08 + 0.6 * abs(log) / widest)
                )
            else:
                share = (log - low) / (high - low) if high > low else 0.0
                parts.append(
                    rect(*place, dx - 1, dy - 1, i, "cell", 0.06 + 0.62 * (share if maximise else 1.0 - share))
                )
            if _holds_values(dx, dy):
                parts.append(label(place[0] + dx / 2, place[1] + dy / 2 + 4, number_text(float(value)), "v"))
    return parts


def _holds_values(dx: float, dy: float) -> bool:
    return dx >= 34 and dy >= 15


def _isolines(values: Floats, left: float, top: float, dx: float, dy: float, is_ratio: bool) -> list[str]:
    if min(values.shape) < 2:
        return []
    from contourpy import contour_generator

    masked = np.ma.masked_invalid(np.log10(values))
    generator = contour_generator(z=masked)
    n_rows, parts = values.shape[0], []
    for level in _levels(values, is_ratio):
        found: Any = generator.lines(math.log10(level))
        for points in found:
            pixels = [(left + (px + 0.5) * dx, top + (n_rows - 0.5 - py) * dy) for px, py in points]
            if len(pixels) < 2:
                continue
            parts.append(path(pixels, "even" if is_ratio and level == 1.0 else "iso"))
            if (level != 1.0 or not is_ratio) and not _holds_values(dx, dy):
                middle = pixels[len(pixels) // 2]
                parts.append(label(middle[0], middle[1] - 3, number_text(level), "il"))
    return parts


def _levels(values: Floats, is_ratio: bool) -> list[float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if is_ratio:
        return [v for v in (0.25, 0.5, 1.0, 2.0, 4.0) if low < v < high]
    if high / low > 4:
        return [t for t in LogScale(low, high, 0, 1).ticks() if low < t < high][:8]
    step = steps((high - low) / 5.0) if high > low else 1.0
    return [i * step for i in range(math.floor(low / step) + 1, math.ceil(high / step))]


def _ticks(x: Column, y: Column, left: float, top: float, dx: float, dy: float, height: float) -> list[str]:
    every = max(1, math.ceil(30 / dx))
    turn = any(len(value_text(v)) * 6.5 > dx * every for v in x.values)
    parts = []
    for i, value in enumerate(x.values):
        if i % every == 0:
            text = short_name(value_text(value), 16)
            parts.append(label(left + (i + 0.5) * dx, height - 34, text, "t", "middle", -20 if turn else 0))
    for i, value in enumerate(y.values):
        place = top + (len(y.values) - 0.5 - i) * dy + 4
        parts.append(label(left - 8, place, short_name(value_text(value), 16), "t", "end"))
    parts.append(label(left + dx * len(x.values) / 2, height - 8, path_words(x.path), "a"))
    parts.append(label(14, top + dy * len(y.values) / 2, path_words(y.path), "a", "middle", -90))
    return parts


def pareto(result: SweepResult) -> FigureBlock | None:
    """Two results against each other; points that another beats in both fade."""
    names = [n.removeprefix("-") for n in result.spec.report.pareto]
    signs = [-1.0 if n.startswith("-") else 1.0 for n in result.spec.report.pareto]
    try:
        x, y = (np.where(result.ok, result.number(n), np.nan) for n in names)
    except KeyError:
        return None
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0))
    if len(known) < 2:
        return None
    best = front(x * signs[0], y * signs[1])
    drawn = _thinned(known, best)
    xs, ys = shown(names[0], x), shown(names[1], y)
    sx = LogScale(*span(xs[known]), 70.0, WIDTH - 20)
    sy = LogScale(*span(ys[known]), 370.0, 15.0)
    parts = frame(sx, sy, column_words(names[0]), column_words(names[1]))
    parts.append(path([(sx.at(xs[i]), sy.at(ys[i])) for i in _stairs(known, best, xs)], "front"))
    parts += [circle(sx.at(xs[i]), sy.at(ys[i]), 3.0, int(i), "dim") for i in drawn if not best[i]]
    parts += [circle(sx.at(xs[i]), sy.at(ys[i]), 4.5, int(i), "top") for i in drawn if best[i]]
    n_front = int(best.sum())
    both = f"{column_words(names[0])} and {column_words(names[1])}"
    alt = f"{n_front} of {len(known)} cases that run are beaten by none in both {both}."
    left_out = (
        f" Of {len(known):,} points {len(drawn):,} are drawn, all of the front among them."
        if len(drawn) < len(known)
        else ""
    )
    axes = f"{column_words(names[1]).split(' (')[0]} against {column_words(names[0]).split(' (')[0]}"
    title = f"{axes[:1].upper()}{axes[1:]}: {n_front:,} of {plural(len(known), 'case')} are beaten by none"
    caption = f"Up and right is better; points that another case beats in both are faded.{left_out}"
    if signs != [1.0, 1.0]:
        caption = f"The line joins cases that none beats in both.{left_out}"
    return FigureBlock("pareto", title, alt, plot("plot-pareto", title, alt, WIDTH, 420, parts), caption)


def _stairs(known: NDArray[np.intp], best: NDArray[np.bool_], x: Floats) -> list[int]:
    return sorted((int(i) for i in known if best[i]), key=lambda i: float(x[i]))


def _thinned(known: NDArray[np.intp], keep: NDArray[np.bool_], most: int = MOST_POINTS) -> list[int]:
    """All that must stay, and evenly spaced ones of the rest."""
    rest = [int(i) for i in known if not keep[i]]
    room = max(0, most - int(keep.sum()))
    if len(rest) > room:
        rest = [rest[int(i)] for i in np.linspace(0, len(rest) - 1, room)] if room else []
    return sorted({*rest, *(int(i) for i in known if keep[i])})


def parallel(result: SweepResult) -> FigureBlock | None:
    """Every case as a line over its settings and its objective; drawn from three settings on."""
    columns = [_sorted(c) for c in result.settings if len(c.values) > 1]
    if len(columns) < 3:
        return None
    name = result.spec.report.objective
    values = np.where(result.ok, shown(name, result.number(name)), np.nan)
    known = np.flatnonzero(np.isfinite(values) & (values > 0))
    if len(known) < 2:
        return None
    order = np.argsort(values[known] * (-1 if result.spec.report.maximise else 1), kind="stable")
    top = np.zeros(result.n_cases, dtype=bool)
    top[known[order[:20]]] = True
    drawn = _thinned(known, top, MOST_LINES)
    places = [105.0 + i * (WIDTH - 165.0) / len(columns) for i in range(len(columns) + 1)]
    scale = LogScale(*span(values[known]), 300.0, 30.0)
    rank = {int(i): r / max(1, len(known) - 1) for r, i in enumerate(known[order])}
    parts = []
    for i in sorted(drawn, key=lambda i: -rank[i]):
        points = [(p, _at(c, int(c.codes[i]))) for p, c in zip(places, columns, strict=False)]
        points.append((places[-1], scale.at(float(values[i]))))
        parts.append(path(points, "line", i, 0.08 + 0.8 * (1.0 - rank[i]) ** 3))
    for place, column in zip(places, columns, strict=False):
        parts += [line(place, 30, place, 300, "axis"), label(place, 345, short_name(path_words(column.path), 20), "a")]
        every = max(1, math.ceil(len(column.values) / 12))
        for code in range(0, len(column.values), every):
            parts.append(
                label(place - 5, _at(column, code) + 4, short_name(value_text(column.values[code]), 14), "t", "end")
            )
    parts += [line(places[-1], 30, places[-1], 300, "axis"), label(places[-1] + 30, 16, column_words(name), "a", "end")]
    parts += [label(places[-1] + 6, scale.at(t) + 4, number_text(t), "t", "start") for t in scale.ticks()]
    alt = f"{len(drawn)} of {len(known)} cases over {len(columns)} settings; stronger lines are better."
    title = "Every case over its settings"
    caption = f"{alt} The twenty best are always drawn."
    return FigureBlock("parallel", title, alt, plot("plot-parallel", title, alt, WIDTH, 360, parts), caption)


def _at(column: Column, code: int) -> float:
    return 300.0 - 270.0 * code / max(1, len(column.values) - 1)


def bars(effects: Sequence[Effect], swings: Sequence[Swing], objective: str) -> FigureBlock | None:
    """Which input moves the answer most: axes by their worst over their best value, other inputs by a quarter up and down."""
    swept = [(f"{path_words(e.path)} (swept)", 1.0, e.ratio) for e in effects]
    other = [(f"{s.what} (÷ and × 1.25)", s.low, s.high) for s in swings if s.size > 1.001]
    rows = [(w, a, b) for w, a, b in (*swept, *other) if a is not None or b is not None]
    if not rows:
        return None
    ends = [v for _, a, b in rows for v in (a, b) if v is not None and math.isfinite(v) and v > 0]
    low, high = min(0.95, *ends), max(1.05, *ends)
    scale = LogScale(low / 1.04, high * 1.04, 250.0, WIDTH - 60)
    height = 24.0 * len(rows) + 50
    parts = [line(scale.at(1.0), 8, scale.at(1.0), height - 40, "axis")]
    for i, (words, a, b) in enumerate(rows):
        y, known = 10 + 24.0 * i, [v for v in (a, b, 1.0) if v is not None]
        start, stop = scale.at(min(known)), scale.at(max(known))
        kind = "swept" if i < len(swept) else "other"
        parts.append(
            f'<rect class="bar {kind}" x="{start:.1f}" y="{y:.1f}" width="{max(1.5, stop - start):.1f}" height="15"/>'
        )
        parts.append(label(242, y + 12, short_name(words, 40), "t", "end"))
        parts.append(label(stop + 6, y + 12, f"{number_text(max(max(known), 1 / min(known)))}×", "t", "start"))
    for tick in scale.ticks():
        parts.append(label(scale.at(tick), height - 22, number_text(tick)))
    words = f"{column_words(objective).split(' (')[0]} over that of the best case"
    parts.append(label((250 + WIDTH - 60) / 2, height - 4, words, "a"))
    sizes = {w: max(max(v, 1.0 / v) for v in (a, b) if v is not None and v > 0) for w, a, b in rows}
    top = max(sizes, key=lambda w: sizes[w])
    title = f"The answer moves most with {top.split(' (')[0]}: {number_text(sizes[top])}×"
    alt = "; ".join(f"{w}: {number_text(max(v for v in (a, b) if v is not None))}" for w, a, b in rows[:4])
    svg = plot("plot-bars", title, alt, WIDTH, height, parts)
    caption = (
        "Swept axes: the best case that the axis's worst value still allows, over the best of all. Other inputs: the best case "
        "with that input a quarter up or a fifth down, everything else as it is."
    )
    return FigureBlock("sensitivity", title, alt, svg, caption)
