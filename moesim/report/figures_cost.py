"""Figures of what systems cost: latency, throughput against interactivity, memory, and where the time goes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moesim.report.colours import GROUP_COLOUR, WEIGHT_COLOUR, stand_in, system_colour
from moesim.report.document import FigureBlock
from moesim.report.findings import breakdown_title, latency_title, memory_title, pareto_title
from moesim.report.svg import drawing, log_axis, to_svg
from moesim.report.text import TTFT_WORDS, group_label, number, short_name, time_text
from moesim.specs.scenario import SystemKind
from moesim.study.results import MemoryResult, PhaseDetail, RunResult, SystemResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MARKERS",
    "breakdown",
    "hidden_by_group",
    "latency",
    "line_style",
    "memory",
    "memory_parts",
    "pareto",
    "system_legend",
    "time_by_group",
]

MARKERS = "osD^vPX*"
HALO = {"facecolor": stand_in("paper"), "edgecolor": "none", "pad": 0.8}


def latency(result: RunResult) -> FigureBlock | None:
    """Time per output token and time to first token against requests in flight."""
    fits = [s for s in result.systems if any(p.tpot_s is not None for p in s.points)]
    if not fits:
        return None
    with drawing(4.0, 2) as (figure, (left, right)):
        for index, system in enumerate(result.systems):
            _line(left, index, system, "tpot_s", 1e3)
            _line(right, index, system, "ttft_s", 1e3)
        for axes, title in ((left, "Time per output token (ms)"), (right, "Time to first token (ms)")):
            log_axis(axes, "y")
            ticks = sorted({p.concurrency for s in result.systems for p in s.points})
            log_axis(axes, "x", [float(t) for t in ticks], [f"{t:,}" for t in ticks])
            axes.set_title(title)
            axes.set_xlabel("requests in flight on the whole hardware")
        system_legend(figure, result, range(len(result.systems)))
        title = latency_title(result)
        svg = to_svg(figure, "fig-latency", title, _latency_alt(result))
    return FigureBlock(
        "latency", title, _latency_alt(result), svg,
        "Lower is better. Bands are 90% intervals where the times rest on measurements; a line without a band rests on "
        "assumptions. A line ends where the system no longer fits in memory. " + TTFT_WORDS,
    )  # fmt: skip


def pareto(result: RunResult) -> FigureBlock | None:
    """Throughput per device against tokens per second per user; dominated points fade."""
    points = [
        (i, p.output_tokens_per_s_per_user, p.output_tokens_per_s_per_device, p.concurrency)
        for i, s in enumerate(result.systems)
        for p in s.points
        if p.output_tokens_per_s_per_user is not None and p.output_tokens_per_s_per_device is not None
    ]
    if not points:
        return None
    real = [p for p in points if result.systems[p[0]].basis.value == "named"]
    best = {(i, c) for i, x, y, c in real if not any((u >= x and v > y) or (u > x and v >= y) for _, u, v, _ in real)}
    with drawing(4.6) as (figure, (axes,)):
        for index in range(len(result.systems)):
            own = [(x, y, c) for i, x, y, c in points if i == index]
            if not own:
                continue
            colour, marker = stand_in(system_colour(index)), MARKERS[index % len(MARKERS)]
            style = line_style(result.systems[index])
            axes.plot(
                [x for x, _, _ in own], [y for _, y, _ in own], color=colour, alpha=0.4, linewidth=1.2, linestyle=style
            )
            for x, y, c in own:
                axes.plot(x, y, marker, color=colour, alpha=1.0 if (index, c) in best else 0.4, gid=f"tip-{index}-{c}")
        front = sorted((x, y) for i, x, y, c in points if (i, c) in best)
        axes.plot(
            [x for x, _ in front], [y for _, y in front], color=stand_in("soft"), linewidth=1.0, linestyle=(0, (4, 3))
        )
        log_axis(axes, "x")
        log_axis(axes, "y")
        _label_front(axes, sorted((x, y, c) for i, x, y, c in points if (i, c) in best))
        axes.set_xlabel("output tokens per second for each user")
        axes.set_title("Output tokens per second per device")
        system_legend(figure, result, range(len(result.systems)))
        tips = {
            f"tip-{i}-{c}": f"{result.systems[i].name}, {c} in flight: {number(x)} tok/s per user, {number(y)} tok/s per device"
            for i, x, y, c in points
        }
        alt = _pareto_alt(result, points, best)
        title = pareto_title(result, best)
        svg = to_svg(figure, "fig-pareto", title, alt, tips)
    return FigureBlock(
        "pareto", title, alt, svg,
        "Up and to the right is better. Numbers are requests in flight. Faded points are dominated: some other point is at "
        "least as quick for the user and gives more tokens per device. The grey line joins the points that are not. "
        "Dense twins are drawn faded and dominate nothing: they exist only for the comparison.",
    )  # fmt: skip


def memory(result: RunResult) -> FigureBlock:
    """Memory of the fullest rank by purpose, with the capacity line."""
    systems = result.systems
    kinds = [k for k in WEIGHT_COLOUR if any(k in memory_parts(s.memory) for s in systems)]
    with drawing(1.5 + 0.44 * len(systems)) as (figure, (axes,)):
        for row, system in enumerate(systems):
            left = 0.0
            parts = memory_parts(system.memory)
            for kind in kinds:
                width = parts.get(kind, 0.0) / 1e9
                axes.barh(row, width, left=left, height=0.62, color=stand_in(WEIGHT_COLOUR[kind]), linewidth=0)
                left += width
            fits = system.memory.outcome == "ok"
            text = f"{number(left)} GB" if fits else f"{number(left)} GB, does not fit"
            axes.annotate(
                text, (left, row), (5, 0), textcoords="offset points", va="center", fontsize=9, bbox=HALO,
                color=stand_in("ink" if fits else "alarm"),
            )  # fmt: skip
        capacity = max(s.memory.capacity_bytes for s in systems) / 1e9
        axes.plot(
            [capacity] * 2, [-0.5, len(systems) - 0.5], color=stand_in("alarm"), linewidth=1.4, linestyle=(0, (5, 2))
        )
        axes.text(
            capacity, -0.6, f"capacity {number(capacity)} GB", ha="center", fontsize=9, color=stand_in("alarm")
        )  # fmt: skip
        _rows(axes, [f"{short_name(s.name)} (at {s.memory.at_concurrency})" for s in systems], top=-1.05)
        longest = max(capacity, *(s.memory.total_bytes / 1e9 for s in systems))
        axes.set_xlim(0, longest * 1.24)
        axes.set_xlabel("GB on the fullest device, with (requests in flight)")
        _swatches(figure, [(group_label(k), WEIGHT_COLOUR[k]) for k in kinds])
        alt = "; ".join(f"{s.name}: {s.memory.sentence}" for s in systems)
        title = memory_title(result)
        svg = to_svg(figure, "fig-memory", title, alt)
    return FigureBlock("memory", title, alt, svg, "Memory of the fullest device by purpose, and its capacity.")


def breakdown(result: RunResult) -> FigureBlock | None:
    """Where the time goes: operator groups of a decode step and of a prefill."""
    phases = [p for p in ("decode", "prefill") if any(d.phase == p for s in result.systems for d in s.details)]
    if not phases:
        return None
    systems = [s for s in result.systems if s.details]
    with drawing(1.35 + 0.44 * len(systems), len(phases), sharey=True) as (figure, panels):
        groups: list[str] = []
        alts = []
        for axes, phase in zip(panels, phases, strict=True):
            rows = [(i, d) for i, s in enumerate(systems) for d in s.details if d.phase == phase]
            shares = {i: time_by_group(d) for i, d in rows}
            groups += [g for parts in shares.values() for g in parts if g not in groups]
            ends = [_stack(axes, i, d) for i, d in rows]
            for i, d in rows:
                top = max(shares[i], key=lambda g: shares[i][g])
                alts.append(f"{systems[i].name} {phase} {time_text(d.time_s)}, mostly {group_label(top)}")
            axes.set_title(f"{phase}, {_phase_text(rows[0][1])}, {rows[0][1].concurrency} in flight (ms)")
            axes.set_xlim(0, (1.7 if any(hidden_by_group(d) for _, d in rows) else 1.3) * max(ends))
            _rows(axes, [short_name(s.name) for s in systems])
        ordered = [g for g in GROUP_COLOUR if g in groups]
        _swatches(figure, [(_GROUP_WORDS.get(g, group_label(g)), GROUP_COLOUR[g]) for g in ordered])
        title = breakdown_title(result, time_by_group, _GROUP_WORDS)
        svg = to_svg(figure, "fig-breakdown", title, "; ".join(alts))
    return FigureBlock(
        "breakdown", title, "; ".join(alts), svg,
        "Operators on the rank that everyone waits for. Hatched: what runs beside others and costs no time. Waiting is what the "
        "simulated pass takes beyond the sum of its operators." + _TURNS * any(s.kind is SystemKind.ENSEMBLE for s in systems),
    )  # fmt: skip


_TURNS = (
    " Of an ensemble it is the pass of one model with its own share of the requests; where models share devices they take "
    "turns, and a user waits for all of them."
)


_GROUP_WORDS = {"waiting": "waiting and contention", "host": "host and launches"}


def time_by_group(detail: PhaseDetail) -> dict[str, float]:
    """Exposed seconds by operator group, known groups first; they add up to the pass.

    What is left of a simulated pass is waiting. Where the closed form of the operators takes longer than the simulation, its
    communication hides better there; what even that does not explain is taken off all groups alike.
    """
    found: dict[str, float] = {}
    for row in detail.operators:
        group = row.group if row.group in GROUP_COLOUR else "other"
        found[group] = found.get(group, 0.0) + row.time_s
    rest = detail.time_s - sum(found.values())
    if rest > 0.002 * detail.time_s:
        found["waiting"] = rest
    elif rest < 0.0 and found.get("communication", 0.0) > -rest:
        found["communication"] += rest
    elif rest < 0.0:
        found.pop("communication", None)
        scale = detail.time_s / max(sum(found.values()), 1e-30)
        found = {group: seconds * scale for group, seconds in found.items()}
    return {g: found[g] for g in GROUP_COLOUR if found.get(g, 0.0) > 2e-6 * detail.time_s}


def hidden_by_group(detail: PhaseDetail) -> dict[str, float]:
    """Seconds by operator group that run beside something else, so that the pass does not take longer for them."""
    found: dict[str, float] = {}
    for row in detail.operators:
        group = row.group if row.group in GROUP_COLOUR else "other"
        found[group] = found.get(group, 0.0) + row.hidden_s
    return {g: found[g] for g in GROUP_COLOUR if found.get(g, 0.0) > 2e-3 * detail.time_s}


def memory_parts(memory: MemoryResult) -> dict[str, float]:
    """Bytes by purpose; small kinds of weights together."""
    parts: dict[str, float] = {}
    for kind, n_bytes in memory.weights_bytes.items():
        key = kind if kind in WEIGHT_COLOUR else "other weights"
        parts[key] = parts.get(key, 0.0) + n_bytes
    parts["KV cache"] = memory.kv_cache_bytes
    parts["activations"] = memory.activation_bytes
    parts["communication buffers"] = memory.comm_buffer_bytes
    parts["runtime reserve"] = memory.runtime_reserve_bytes
    return {kind: n_bytes for kind, n_bytes in parts.items() if n_bytes > 0}


def system_legend(figure: Figure, result: RunResult, indices: Sequence[int], limit: int = 52) -> None:
    """Systems by colour, marker and dash, above the panels."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for i in indices:
        system = result.systems[i]
        style = line_style(system)
        colour, marker = stand_in(system_colour(i)), MARKERS[i % len(MARKERS)]
        handles.append(
            Line2D([], [], color=colour, marker=marker, linestyle=style, label=short_name(system.name, limit))
        )
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if len(handles) > 1 else 1, handlelength=3.0)


def line_style(system: SystemResult) -> Any:
    """Solid for systems of the scenario, dashed for twins made for the comparison."""
    return "-" if system.basis.value == "named" else (0, (5, 2))


def _line(axes: Axes, index: int, system: SystemResult, field: str, factor: float) -> None:
    """A result over concurrency, with its 90% interval as a band."""
    points = [p for p in system.points if getattr(p, field) is not None]
    if not points:
        return
    colour, x = stand_in(system_colour(index)), [float(p.concurrency) for p in points]
    values = [getattr(p, field) * factor for p in points]
    ends = [p.intervals.get(field) for p in points]
    if all(e is not None for e in ends):
        low, high = ([e[i] * factor for e in ends if e is not None] for i in (0, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(x, values, marker=marker, color=colour, linestyle=line_style(system))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _stack(axes: Axes, row: int, detail: PhaseDetail) -> float:
    """The bar of a pass, and hatched beyond it what runs beside; where it ends, in ms."""
    left = 0.0
    for group, seconds in time_by_group(detail).items():
        axes.barh(row, seconds * 1e3, left=left, height=0.62, color=stand_in(GROUP_COLOUR[group]), linewidth=0)
        left += seconds * 1e3
    hidden = hidden_by_group(detail)
    text = time_text(detail.time_s)
    for group, seconds in hidden.items():
        colour = stand_in(GROUP_COLOUR[group])
        axes.barh(
            row, seconds * 1e3, left=left, height=0.34, facecolor="none", edgecolor=colour, hatch="/////", linewidth=0.8
        )
        left += seconds * 1e3
    if hidden:
        text += f", {time_text(sum(hidden.values()))} beside it"
    axes.annotate(text, (left, row), (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=HALO)
    return left


def _phase_text(detail: PhaseDetail) -> str:
    return "one step" if detail.phase == "decode" else "one pass"


def _rows(axes: Axes, labels: list[str], top: float = -0.6) -> None:
    axes.set_yticks(range(len(labels)), [textwrap.fill(label, 32) for label in labels])
    axes.set_ylim(len(labels) - 0.5, top)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=stand_in("ink"))
    axes.spines["left"].set_visible(False)


def _swatches(figure: Figure, labels: list[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=stand_in(colour), label=label, linewidth=0) for label, colour in labels]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(5, len(handles)), handlelength=1.0, columnspacing=1.4
    )


def _label_front(axes: Axes, front: list[tuple[float, float, int]]) -> None:
    for x, y, concurrency in front:
        axes.annotate(
            str(concurrency), (x, y), (5, 5), textcoords="offset points", fontsize=8.5, color=stand_in("soft")
        )


def _latency_alt(result: RunResult) -> str:
    parts = []
    for system in result.systems:
        ok = [p for p in system.points if p.tpot_s is not None]
        if ok:
            last = f", {time_text(ok[-1].tpot_s)} at {ok[-1].concurrency}" if len(ok) > 1 else ""
            parts.append(
                f"{system.name}: {time_text(ok[0].tpot_s)} per output token at {ok[0].concurrency} in flight{last}"
            )
    return "; ".join(parts) or "No system fits."


def _pareto_alt(result: RunResult, points: Sequence[tuple[int, float, float, int]], best: set[tuple[int, int]]) -> str:
    names = [result.systems[i].name for i, _, _, c in points if (i, c) in best]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return "Points that no other dominates: " + ", ".join(f"{name} {n}" for name, n in counts.items())
