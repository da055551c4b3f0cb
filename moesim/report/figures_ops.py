"""Figures of why: operators on the roofline, and the gap from a balanced closed form to the simulated pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.report.colours import stand_in, system_colour
from moesim.report.document import FigureBlock
from moesim.report.figures_cost import HALO
from moesim.report.findings import gap_title
from moesim.report.svg import drawing, log_axis, to_svg
from moesim.report.tables import peak_of
from moesim.report.text import number, short_name, time_text
from moesim.study.results import OperatorRow, PhaseDetail, RunResult, SystemResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["gap_split", "roofline"]


_SMALLEST_SHARE = 0.003
#: Operators further below the highest peak than this are left out.
_DECADES = 1e6


@dataclass(frozen=True, slots=True)
class _Dot:
    """An operator on the roofline."""

    system: int
    phase: str
    row: OperatorRow
    share: float

    @property
    def intensity(self) -> float:
        return self.row.flops / self.row.moved_bytes

    @property
    def rate(self) -> float:
        return self.row.flops / self.row.time_s


def roofline(result: RunResult) -> FigureBlock | None:
    """Operators by flops per byte and achieved rate, under the device's roofs."""
    top = max(result.peak_flop_per_s.values())
    dots = [d for d in _dots(result) if d.rate > top / _DECADES]
    if not dots:
        return None
    with drawing(5.0) as (figure, (axes,)):
        low = min(0.3, *(d.intensity for d in dots)) / 1.5
        high = max(3e3, *(d.intensity for d in dots)) * 1.6
        _roofs(axes, result, low, high)
        tips = {}
        for i, dot in enumerate(sorted(dots, key=lambda d: -d.share)):
            colour, gid = stand_in(system_colour(dot.system)), f"dot-{i}"
            axes.scatter(
                dot.intensity, dot.rate, s=14 + 420 * dot.share, marker="o" if dot.phase == "decode" else "s", alpha=0.8,
                facecolor=colour if dot.phase == "decode" else "none", edgecolor=colour, linewidth=1.3, gid=gid, zorder=3,
            )  # fmt: skip
            tips[gid] = (
                f"{result.systems[dot.system].name}, {dot.phase}, {dot.row.name}: {time_text(dot.row.time_s)} "
                f"({dot.share:.0%} of the pass), {number(dot.intensity)} flop/byte, {number(dot.rate / 1e12)} TFLOP/s, "
                f"{_share_of_peak(result, dot.row)}"
            )
        axes.set_xlim(low, high)
        axes.set_ylim(min(d.rate for d in dots) / 2, top * 2.6)
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.set_xlabel("flop per byte moved")
        axes.set_title(f"Achieved flop/s on one {result.device_name}")
        figure.canvas.draw()
        _label_memory_roof(axes, result.memory_bytes_per_s, low)
        _label_dots(axes, result, dots)
        _legend(axes, result, dots)
        alt = _roofline_alt(result, dots)
        title = _roofline_title(result, dots)
        svg = to_svg(figure, "fig-roofline", title, alt, tips)
    return FigureBlock(
        "roofline", title, alt, svg,
        "Filled circles are decode, open squares prefill; area is the share of the pass. Left of the ridge memory bandwidth "
        "is the roof, right of it the peak of the arithmetic that the operator runs "
        "in. Flops are those that kernels run, experts' rows padded to their tiles. "
        "Left out: communication, operators without arithmetic to speak of, those below 0.3% of their pass, and dense twins.",
    )  # fmt: skip


def gap_split(result: RunResult) -> FigureBlock | None:
    """Waterfalls from the balanced closed form to the simulation, and waits by cause."""
    found = [
        (i, s, d) for i, s in enumerate(result.systems) for d in s.details if d.gap is not None and _is_worth_it(s, d)
    ]
    found = found[:4]
    if not found:
        return None
    with drawing(0.6 + 2.7 * len(found), 2, len(found), width_ratios=[3, 2]) as (figure, panels):
        alts = []
        for n, (index, system, detail) in enumerate(found):
            _waterfall(panels[2 * n], index, system, detail)
            _waits(panels[2 * n + 1], detail)
            alts.append(_gap_alt(system, detail))
        title = gap_title(found[0][1], found[0][2])
        svg = to_svg(figure, "fig-gap", title, " ".join(alts))
    return FigureBlock(
        "gap", title, " ".join(alts), svg,
        "Balanced: the closed form with every expert equally loaded. Imbalance: the drawn load instead; it is negative "
        "where a skewed load touches fewer experts, so fewer weights are read. Contention: waiting "
        "for ports and for late data that only the simulation sees. Overlap: what running work beside the exchange saves. "
        "Waits are means per rank; they overlap with imbalance and do not add up to it.",
    )  # fmt: skip


def _is_worth_it(system: SystemResult, detail: PhaseDetail) -> bool:
    gap = detail.gap
    return gap is not None and (
        system.n_experts is not None or abs(gap.simulated_s - gap.balanced_s) > 1e-3 * gap.balanced_s
    )


def _dots(result: RunResult) -> list[_Dot]:
    return [
        _Dot(i, d.phase, row, row.time_s / d.time_s)
        for i, s in enumerate(result.systems)
        if s.basis.value == "named"
        for d in s.details
        for row in d.operators
        if row.flops > 0
        and row.moved_bytes > 0
        and row.time_s > _SMALLEST_SHARE * d.time_s
        and row.group != "communication"
    ]


def _roofs(axes: Axes, result: RunResult, low: float, high: float) -> None:
    soft, width = stand_in("soft"), result.memory_bytes_per_s
    used = {name: peak for name, peak in result.peak_flop_per_s.items() if peak > 0}
    top = max(used.values())
    axes.plot([low, top / width], [low * width, top], color=soft, linewidth=1.4)
    labelled: list[float] = []
    for peak in sorted(used.values(), reverse=True):
        axes.plot([peak / width, high], [peak, peak], color=soft, linewidth=1.4 if peak == top else 0.9)
        if all(abs(peak - other) > 0.12 * other for other in labelled):
            same = "/".join(n for n, p in used.items() if abs(p - peak) <= 0.12 * peak)
            label = f"{same} {number(peak / 1e12)} TFLOP/s"
            # beside the axes, where neither lines nor operators are
            axes.annotate(
                label, (high, peak), (5, 0), textcoords="offset points", ha="left", va="center", fontsize=8.5, color=soft,
                annotation_clip=False,
            )  # fmt: skip
            labelled.append(peak)


def _label_memory_roof(axes: Axes, bytes_per_s: float, low: float) -> None:
    """Along the slope, whose angle is known once the axes are laid out."""
    start, end = axes.transData.transform([(low * 2, low * 2 * bytes_per_s), (low * 20, low * 20 * bytes_per_s)])
    angle = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    axes.annotate(
        f"memory {number(bytes_per_s / 1e12)} TB/s", (low * 2, low * 2 * bytes_per_s), (-4, 6), textcoords="offset points",
        rotation=angle, rotation_mode="anchor", fontsize=8.5, color=stand_in("soft"),
    )  # fmt: skip


def _label_dots(axes: Axes, result: RunResult, dots: list[_Dot]) -> None:
    """Name the largest operators where a label does not cover another."""
    taken: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda d: -d.share)[:10]:
        x, y = axes.transData.transform((dot.intensity, dot.rate))
        if all(abs(x - u) > 95 or abs(y - v) > 13 for u, v in taken):
            taken.append((x, y))
            axes.annotate(
                dot.row.name, (dot.intensity, dot.rate), (11, -11), textcoords="offset points", fontsize=8.5, va="center",
                color=stand_in("ink"), zorder=5, bbox=HALO,
            )  # fmt: skip


def _legend(axes: Axes, result: RunResult, dots: list[_Dot]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=stand_in(system_colour(i)),
            marker="o",
            linestyle="",
            label=short_name(result.systems[i].name, 30),
        )
        for i in sorted({d.system for d in dots})
    ]
    axes.legend(handles=handles, loc="lower right", handlelength=1.0)


def _waterfall(axes: Axes, index: int, system: SystemResult, detail: PhaseDetail) -> None:
    gap = detail.gap
    if gap is None:
        return
    total, soft = stand_in(system_colour(index)), stand_in("soft")
    parts = (("imbalance", gap.imbalance_s), ("contention", gap.contention_s), ("overlap", gap.overlap_s))
    steps = [(name, seconds if abs(seconds) > 1e-6 * gap.simulated_s else 0.0) for name, seconds in parts]
    axes.bar(0, gap.balanced_s * 1e3, color=total, width=0.62, alpha=0.55)
    at = gap.balanced_s
    for x, (_, seconds) in enumerate(steps, start=1):
        colour = stand_in("alarm" if seconds > 0 else "good")
        axes.bar(x, seconds * 1e3, bottom=at * 1e3, color=colour, width=0.62)
        axes.plot([x - 1 + 0.31, x + 0.31], [at * 1e3, at * 1e3], color=soft, linewidth=0.8)
        sign = "+" if seconds > 0 else "−" if seconds < 0 else ""
        text = f"{sign}{time_text(abs(seconds))}"
        axes.annotate(
            text, (x, max(at, at + seconds) * 1e3), (0, 4), textcoords="offset points", ha="center", fontsize=8.5
        )
        at += seconds
    axes.bar(4, gap.simulated_s * 1e3, color=total, width=0.62)
    for x, seconds in ((0, gap.balanced_s), (4, gap.simulated_s)):
        axes.annotate(
            time_text(seconds), (x, seconds * 1e3), (0, 4), textcoords="offset points", ha="center", fontsize=8.5
        )
    axes.set_xticks(range(5), ["balanced", "imbalance", "contention", "overlap", "simulated"])
    peak = max(gap.balanced_s, gap.simulated_s, gap.balanced_s + gap.imbalance_s + max(0.0, gap.contention_s))
    axes.set_ylim(0, peak * 1.18e3)
    axes.grid(visible=False, axis="x")
    axes.set_title(f"{short_name(system.name, 28)}: {detail.phase} (ms)")


def _waits(axes: Axes, detail: PhaseDetail) -> None:
    waits = {} if detail.gap is None else detail.gap.waits_s
    labels = sorted(waits)
    if not any(waits.values()):
        axes.set_axis_off()
        axes.text(0.0, 0.9, "No rank waits: all have the same work.", transform=axes.transAxes, color=stand_in("soft"))
        labels = []
    for row, cause in enumerate(labels):
        axes.barh(row, waits[cause] * 1e3, color=stand_in("s5"), height=0.36)
        axes.annotate(
            time_text(waits[cause]) if waits[cause] else "none", (waits[cause] * 1e3, row), (4, 0), textcoords="offset points",
            va="center", fontsize=8.5,
        )  # fmt: skip
        axes.text(0, row - 0.24, cause, va="bottom", fontsize=8.5, color=stand_in("soft"))
    axes.set_yticks([])
    axes.set_ylim(len(labels) - 0.5, -0.8)
    axes.set_xlim(0, max([*waits.values(), 1e-12]) * 1.35e3)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_title("Waits by cause (ms, mean per rank)")


def _share_of_peak(result: RunResult, row: OperatorRow) -> str:
    name, peak = peak_of(result, row)
    return f"{row.flops / row.time_s / peak:.0%} of the peak of {name}"


def _roofline_title(result: RunResult, dots: list[_Dot]) -> str:
    """What bounds most of the reference's time, by phase."""
    name, found = result.scenario.reference.name, []
    for phase in ("decode", "prefill"):
        shares: dict[str, float] = {}
        for d in dots:
            if result.systems[d.system].name == name and d.phase == phase:
                shares[d.row.bound] = shares.get(d.row.bound, 0.0) + d.share
        if shares:
            bound = max(shares, key=lambda b: shares[b])
            found.append(f"{phase} is mostly {bound} bound")
    return (
        f"Roofline: {', '.join(found)} ({short_name(name, 30)})"
        if found
        else "Roofline: what each operator is bound by"
    )


def _roofline_alt(result: RunResult, dots: list[_Dot]) -> str:
    largest = sorted(dots, key=lambda d: -d.share)[:4]
    peaks = dict(sorted({peak_of(result, d.row) for d in dots}, key=lambda p: (p[1], p[0])))
    ridges = " and ".join(f"{number(peak / result.memory_bytes_per_s)} ({name})" for name, peak in peaks.items())
    named = "; ".join(
        f"{result.systems[d.system].name} {d.phase} {d.row.name}: {number(d.intensity)} flop per byte, {d.row.bound} bound"
        for d in largest
    )
    return f"The ridge lies at {ridges} flop per byte. {named}."


def _gap_alt(system: SystemResult, detail: PhaseDetail) -> str:
    gap = detail.gap
    if gap is None:
        return ""
    return (
        f"{system.name}, {detail.phase}: balanced {time_text(gap.balanced_s)}, imbalance {time_text(gap.imbalance_s)}, "
        f"contention {time_text(gap.contention_s)}, overlap {time_text(gap.overlap_s)}, "
        f"simulated {time_text(gap.simulated_s)}."
    )
