"""Figures of a plan: throughput against time per token, and price against time to first token, every deployment a mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moesim.report.document import FigureBlock
from moesim.report.plan_rows import PlanRow
from moesim.report.plot_svg import LogScale, circle, frame, label, line, path, plot, span, square
from moesim.report.text import number, plural
from moesim.study.plan import PlanResult

__all__ = ["first_token", "throughput"]

WIDTH, LEFT, TOP, BOTTOM, HEIGHT = 760.0, 74.0, 58.0, 398.0, 450.0
Axis = Callable[[PlanRow], float]


def throughput(result: PlanResult, rows: Sequence[PlanRow]) -> FigureBlock | None:
    """Tokens per second and device over time per output token, with the goal, the front and intervals."""
    if not rows:
        return None
    goal = result.spec.tpot_s
    parts = _drawn(
        result, rows, lambda r: r.item.tpot_s * 1e3, lambda r: r.item.output_tokens_per_s_per_device,
        ("time per output token (ms)", "output tokens/s per device"), None if goal is None else goal * 1e3, has_front=True,
    )  # fmt: skip
    title = _throughput_title(result, rows)
    alt = f"{_counts(rows)} by time per output token and output tokens per second and device. {_best_words(result)}"
    caption = (
        "Up and left is better. Filled: meets the goals; hollow: misses one. The line joins each hardware's front, which no "
        "deployment within the TTFT goal beats in both; bars are 90% intervals. The smaller marks are by the search's closed "
        "forms, not costed pass by pass. " + _shapes(rows)
    )
    return FigureBlock(
        "throughput", title, alt, plot("plot-throughput", title, alt, WIDTH, HEIGHT, parts), caption.strip()
    )


def first_token(result: PlanResult, rows: Sequence[PlanRow]) -> FigureBlock | None:
    """Price per output token over time to first token; None without prices."""
    priced = [r for r in rows if r.item.usd_per_million_output_tokens]
    if len(priced) < 2:
        return None
    goal = result.spec.ttft_s
    parts = _drawn(
        result, priced, lambda r: r.item.ttft_s * 1e3, lambda r: r.item.usd_per_million_output_tokens or 0.0,
        ("time to first token (ms), queueing included", "$ per million output tokens"), None if goal is None else goal * 1e3,
    )  # fmt: skip
    title = _price_title(result, priced)
    alt = f"{_counts(priced)} by time to first token and price per million output tokens. {_best_words(result)}"
    caption = f"Down and left is better. Filled: meets the goals; hollow: misses one. {_shapes(priced)}"
    return FigureBlock(
        "first-token", title, alt, plot("plot-first-token", title, alt, WIDTH, HEIGHT, parts), caption.strip()
    )


def _drawn(
    result: PlanResult, rows: Sequence[PlanRow], x: Axis, y: Axis, words: tuple[str, str], goal: float | None, *,
    has_front: bool = False,
) -> list[str]:  # fmt: skip
    known = [goal] if goal is not None else []
    sx = LogScale(*span([*(x(r) for r in rows), *known]), LEFT, WIDTH - 20)
    low, high = span([y(r) for r in rows])
    sy = LogScale(low, high * (high / low) ** 0.06, BOTTOM, TOP)  # room for a word above the best
    names = [p.hardware for p in result.plans]
    parts = frame(sx, sy, *words)
    if goal is not None:
        at = sx.at(goal)
        parts.append(line(at, TOP, at, BOTTOM, "goal"))
        is_left = at > (LEFT + WIDTH) / 2
        parts.append(
            label(
                at + (-5 if is_left else 5),
                BOTTOM - 8 if has_front else TOP + 14,
                f"goal {goal:g} ms",
                "il goal-text",
                "end" if is_left else "start",
            )
        )
    if has_front:
        parts += _fronts(rows, names, x, y, sx, sy)
        parts += _bars(rows, names, y, sx, sy)
    # what was costed in full lies over what was only searched
    for r in sorted(rows, key=lambda r: (bool(r.kind), "best" in r.kind)):
        parts.append(_mark(r, names.index(r.hardware), sx.at(x(r)), sy.at(y(r))))
    parts += [label(sx.at(x(r)), sy.at(y(r)) - 13, "best", "v il") for r in rows if "best" in r.kind]
    return [*parts, *_legend(rows, names)]


def _mark(r: PlanRow, place: int, x: float, y: float) -> str:
    kind = f"pt h{place % 8}{' miss' if r.why else ''}{' full' if r.kind else ''}"
    size = 7.5 if "best" in r.kind else 5.0 if r.kind else 3.2
    draw = circle if r.item.mode == "in place" else square
    return draw(x, y, size, r.number, kind)


def _fronts(
    rows: Sequence[PlanRow], names: Sequence[str], x: Axis, y: Axis, sx: LogScale, sy: LogScale
) -> list[str]:  # fmt: skip
    parts = []
    for i, name in enumerate(names):
        own = sorted((x(r), y(r)) for r in rows if r.hardware == name and r.is_front)
        if len(own) > 1:
            parts.append(path([(sx.at(a), sy.at(b)) for a, b in own], f"front h{i % 8}"))
    return parts


def _bars(rows: Sequence[PlanRow], names: Sequence[str], y: Axis, sx: LogScale, sy: LogScale) -> list[str]:
    """90% intervals of TPOT, cut at the axes."""
    parts = []
    for r in rows:
        if r.ends is not None:
            low, high = (min(max(end * 1e3, sx.low), sx.high) for end in r.ends)
            at = sy.at(y(r))
            parts.append(line(sx.at(low), at, sx.at(high), at, f"err h{names.index(r.hardware) % 8}"))
    return parts


def _legend(rows: Sequence[PlanRow], names: Sequence[str]) -> list[str]:
    """Hardware by colour and where prompts are prefilled by shape, above the axes."""
    parts, at = [], LEFT
    for i, name in enumerate(names):
        parts.append(f'<rect class="pt full h{i % 8}" x="{at:.0f}" y="12" width="11" height="11"/>')
        parts.append(label(at + 16, 22, name, "v", "start"))
        at += 34 + 6.6 * len(name)
    modes = {r.item.mode for r in rows}
    at = LEFT
    for mode, words in (("in place", "prefill in place"), ("disaggregated", "prefill in a pool of its own")):
        if mode in modes:
            shape = (
                f'cx="{at + 5:.0f}" cy="40" r="5"'
                if mode == "in place"
                else f'x="{at:.0f}" y="35" width="9" height="9"'
            )
            parts.append(f'<{"circle" if mode == "in place" else "rect"} class="key" {shape}/>')
            parts.append(label(at + 16, 44, words, "v", "start"))
            at += 34 + 6.0 * len(words)
    return parts


def _throughput_title(result: PlanResult, rows: Sequence[PlanRow]) -> str:
    spec, best = result.spec, result.best
    if best is None:
        nearest = next((m for p in result.plans for m in p.near_misses), None)
        goal = "" if nearest is None else f": the nearest misses {nearest.missed.upper()} by {nearest.by_frac:.0%}"
        return f"No deployment meets the goals{goal}"
    most = max(r.item.output_tokens_per_s_per_device for r in rows if r.hardware == best.hardware)
    rate = best.output_tokens_per_s_per_device
    if spec.ttft_s is None and spec.tpot_s is None:
        least = min(r.item.output_tokens_per_s_per_device for r in rows if r.hardware == best.hardware)
        return f"From the fullest to the quickest deployment, tokens/s per device fall {most / least:,.0f}-fold"
    share = (
        f"{rate / most:.0%} of the most without goals" if rate < 0.98 * most else "the most that any searched one gives"
    )
    return f"Within the goals {number(rate)} tokens/s per device on {best.hardware} by the closed form: {share}"


def _price_title(result: PlanResult, rows: Sequence[PlanRow]) -> str:
    best = result.best
    if best is None or best.usd_per_million_output_tokens is None:
        cheapest = min(r.item.usd_per_million_output_tokens or 0.0 for r in rows)
        return f"Without the goals, from ${number(cheapest)} per million output tokens"
    return (
        f"${number(best.usd_per_million_output_tokens)} per million output tokens, with the first token after "
        f"{number(best.ttft_s * 1e3)} ms (closed form)"
    )


def _best_words(result: PlanResult) -> str:
    best = result.best
    if best is None:
        return "None meets the goals."
    return (
        f"The best is {best.label} on {best.hardware}, by the closed form with TTFT {number(best.ttft_s * 1e3)} ms, "
        f"TPOT {number(best.tpot_s * 1e3)} ms, {number(best.output_tokens_per_s_per_device)} tokens/s per device."
    )


def _counts(rows: Sequence[PlanRow]) -> str:
    return f"{plural(len(rows), 'deployment')}, {sum(not r.why for r in rows)} within the goals,"


def _shapes(rows: Sequence[PlanRow]) -> str:
    both = len({r.item.mode for r in rows}) > 1
    return "Circles prefill where they decode, squares in a pool of its own." if both else ""
