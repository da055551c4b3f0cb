"""Titles of a run's figures: what each of them shows, in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moesim.report.text import group_label, number, short_name, time_text
from moesim.study.results import PhaseDetail, RunResult, SystemResult

__all__ = ["breakdown_title", "gap_title", "latency_title", "memory_title", "pareto_title"]


def latency_title(result: RunResult) -> str:
    """Who is quickest and slowest at the most requests that all named systems can have in flight."""
    named = [s for s in result.systems if s.basis.value == "named"]
    shared = [
        {p.concurrency: p.tpot_s for p in s.points if p.tpot_s is not None}
        for s in named
        if any(p.tpot_s is not None for p in s.points)
    ]
    both = set.intersection(*(set(times) for times in shared)) if shared else set()
    if len(shared) < 2 or not both:
        return "Latency against requests in flight"
    at = max(both)
    times = sorted((p.tpot_s, s.name) for s in named for p in s.points if p.concurrency == at and p.tpot_s is not None)
    (quick_s, quick), (slow_s, slow) = times[0], times[-1]
    return (
        f"With {at} in flight {short_name(quick, 30)} takes {time_text(quick_s)} per token, {short_name(slow, 30)} "
        f"{time_text(slow_s)}"
    )


def pareto_title(result: RunResult, best: set[tuple[int, int]]) -> str:
    """Which of the named systems no other beats in both throughput and speed."""
    named = [i for i, s in enumerate(result.systems) if s.basis.value == "named"]
    ahead = [short_name(result.systems[i].name, 30) for i in sorted({i for i, _ in best})]
    if len(named) < 2:
        return "Throughput against interactivity"
    if len(ahead) == 1:
        return f"{ahead[0]} leads in throughput at every speed per user"
    return f"No single winner: {', '.join(ahead[:-1])} and {ahead[-1]} lead at different speeds per user"


def memory_title(result: RunResult) -> str:
    """Who does not fit, or how full the fullest device is."""
    out = [short_name(s.name, 30) for s in result.systems if s.memory.outcome != "ok"]
    at = max((s.memory.at_concurrency for s in result.systems if s.memory.outcome != "ok"), default=0)
    if out:
        more = " and others" if len(out) > 2 else ""
        return (
            f"Memory: {' and '.join(out[:2])}{more} {'does' if len(out) == 1 else 'do'} not fit with {at:,} in flight"
        )
    fullest = max(result.systems, key=lambda s: s.memory.total_bytes / s.memory.capacity_bytes)
    used, there = fullest.memory.total_bytes / 1e9, fullest.memory.capacity_bytes / 1e9
    return f"Memory: all fit, the fullest with {number(used)} of {number(there)} GB"


def breakdown_title(
    result: RunResult, by_group: Callable[[PhaseDetail], Mapping[str, float]], group_words: Mapping[str, str]
) -> str:
    """What takes most of the reference's decode step."""
    name = result.scenario.reference.name
    detail = next((d for s in result.systems if s.name == name for d in s.details if d.phase == "decode"), None)
    if detail is None:
        return "Where the time of one pass goes"
    parts = by_group(detail)
    top = max(parts, key=lambda g: parts[g])
    words = group_words.get(top, group_label(top))
    return f"{words[:1].upper()}{words[1:]}: {parts[top] / sum(parts.values()):.0%} of a decode step of {short_name(name, 40)}"


def gap_title(system: SystemResult, detail: PhaseDetail) -> str:
    """By how much the simulated pass differs from the balanced closed form, and the largest part of that."""
    gap = detail.gap
    if gap is None or gap.balanced_s <= 0:
        return "What imbalance, contention and overlap cost"
    parts = {"imbalance": gap.imbalance_s, "contention": gap.contention_s, "overlap": gap.overlap_s}
    change = gap.simulated_s / gap.balanced_s - 1.0
    if abs(change) < 0.001:
        return f"Imbalance and contention cost {short_name(system.name, 40)} next to nothing in {detail.phase}"
    sign = "+" if change > 0 else "−"
    top = max(parts, key=lambda p: parts[p] * (1 if change > 0 else -1))
    words = f"{sign}{abs(change):.1%} against perfect balance, mostly {top}"
    return f"{detail.phase.capitalize()} of {short_name(system.name, 40)}: {words}"
