"""A plan in sentences: what the simulation refutes comes first, and closed forms are called so."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.study.plan.results import Confirmation, HardwarePlan, PlanPoint
from moesim.study.plan.spec import PlanSpec
from moesim.units import plural, show

__all__ = ["answer_of", "choice_sentence", "hardware_sentences", "price_of", "verdict_sentence"]


def answer_of(spec: PlanSpec, plan: HardwarePlan) -> PlanPoint | None:
    """What was asked for: the fewest devices for a rate, or the best use of devices."""
    return plan.least if spec.rate_per_s is not None else plan.best


def price_of(spec: PlanSpec, point: PlanPoint) -> float | None:
    """USD per hour of what serves the rate, or per million output tokens, by the closed form."""
    return point.usd_per_h if spec.rate_per_s is not None else point.usd_per_million_output_tokens


def hardware_sentences(spec: PlanSpec, p: HardwarePlan) -> list[str]:
    """One kind of hardware."""
    if not p.n_splits:
        return [f"{p.hardware}: no split of {plural(p.n_devices, 'device')} has room for {spec.model}; {_nearest(p)}"]
    if p.best is None:
        return [f"{p.hardware}: nothing meets the goals; nearest: {_nearest(p)}"]
    verdict = verdict_sentence(spec, p)
    words = [*([f"{p.hardware}: {verdict}"] if verdict else []), f"{p.hardware}: {_best(p, p.best)}"]
    if spec.rate_per_s is not None:
        words.append(f"{p.hardware}: {_least(spec, p, p.best)}")
    return words + ([f"{p.hardware}: {p.ranking}"] if p.ranking else [])


def verdict_sentence(spec: PlanSpec, p: HardwarePlan) -> str | None:
    """Which simulated plans miss the goals by how much, and what is recommended then; None where none misses."""
    ran = [c for c in p.confirmations if c.meets_goals is not None]
    missed = [c for c in ran if not c.meets_goals]
    if not missed:
        return None
    if p.is_met is False:
        nearest = min(missed, key=lambda c: _worst(spec, c))
        count = "the simulated plan does not meet" if len(ran) == 1 else f"none of the {len(ran)} simulated plans meets"
        return f"{count} the goals; nearest is {_named(nearest)}: {_missed(spec, nearest)}, at {_rate(nearest)}"
    many = f"{len(missed)} of {plural(len(ran), 'simulated plan')} {'misses' if len(missed) == 1 else 'miss'} the goals"
    told = "; ".join(f"{_named(c)}: {_missed(spec, c)}" for c in missed[:3])
    answer = answer_of(spec, p)
    met = None if answer is None else p.simulated(answer)
    if met is None or not met.meets_goals:
        return f"{many} ({told})"
    times = f"TTFT {show(met.ttft_s or 0.0, 's')}, TPOT {show(met.tpot_s or 0.0, 's')}"
    return f"{many} ({told}); recommended is {_named(met)}, which meets them simulated: {times}, {_rate(met)}"


def choice_sentence(spec: PlanSpec, plans: Sequence[HardwarePlan], cheapest: str | None) -> tuple[str, ...]:
    """The prices of several kinds of hardware."""
    if len(plans) < 2 or cheapest is None:
        return ()
    unit = "USD per hour" if spec.rate_per_s is not None else "USD per million output tokens"
    costs, unpriced = [], []
    for p in plans:
        point = answer_of(spec, p)
        price = price_of(spec, point) if point is not None else None
        if point is not None and price is not None:
            costs.append((price, f"{p.hardware} {price:.2f}{_price_note(spec, p, point, price)}"))
        elif point is not None:
            unpriced.append(p.hardware)
    more = f"; no price known of {', '.join(unpriced)}" if unpriced else ""
    return (f"cheapest: {cheapest} ({unit} by the closed form: {', '.join(text for _, text in sorted(costs))}){more}",)


def _price_note(spec: PlanSpec, p: HardwarePlan, point: PlanPoint, price: float) -> str:
    notes = ["assumption only, no host time"] if point.error_frac is None else []
    simulated = p.simulated(point)
    if simulated is not None and simulated.throughput_ratio and spec.rate_per_s is None:
        notes.append(f"simulated {price / simulated.throughput_ratio:.2f}")
    if p.is_met is False:
        notes.append("no simulated plan meets the goals")
    return f" ({'; '.join(notes)})" if notes else ""


def _best(p: HardwarePlan, b: PlanPoint) -> str:
    interval = "assumption only" if b.error_frac is None else f"±{b.error_frac:.0%}"
    c = p.simulated(b)
    rate, user = "not simulated", ""
    if c is not None and c.output_tokens_per_s_per_device and c.tpot_s:
        rate, user = f"simulated {c.output_tokens_per_s_per_device:.0f}", f"; simulated {1.0 / c.tpot_s:.1f}"
    return (
        f"{b.label} at {b.main.batch} requests per instance gives {b.output_tokens_per_s_per_device:.0f} tokens/s per device"
        f" (closed form, {interval}; {rate}) at {b.output_tokens_per_s_per_user:.1f} tokens/s per user (closed form{user});"
        f" {b.main.bottleneck.group} ({b.main.bottleneck.bound}) take {b.main.bottleneck.share_frac:.0%} of the time"
    )


def _least(spec: PlanSpec, p: HardwarePlan, best: PlanPoint) -> str:
    least = p.least
    if least is None:
        return (
            f"{plural(p.n_devices, 'device')} can serve at most {best.requests_per_s * (1 - spec.headroom_frac):.2f} of"
            f" {spec.rate_per_s:g} requests/s with {spec.headroom_frac:.0%} headroom (closed form)"
        )
    c = p.simulated(least)
    simulated = "not simulated"
    if c is not None and c.ttft_s and c.tpot_s:
        met = "meets the goals" if c.meets_goals else "misses the goals"
        simulated = f"simulated TTFT {show(c.ttft_s, 's')}, TPOT {show(c.tpot_s, 's')}: {met}"
    devices = plural(least.n_devices, "device")
    return f"{spec.rate_per_s:g} requests/s need {devices}: {least.label} (closed form; {simulated})"


def _named(c: Confirmation) -> str:
    return f"{c.split} at {c.batch} requests per instance"


def _rate(c: Confirmation) -> str:
    closed = f" ({c.throughput_ratio:.2f} of the closed form)" if c.throughput_ratio else ""
    return f"{c.output_tokens_per_s_per_device or 0.0:.0f} tokens/s per device{closed}"


def _ratios(spec: PlanSpec, c: Confirmation) -> list[tuple[str, float, float]]:
    each = (("TTFT", c.ttft_s, spec.ttft_s), ("TPOT", c.tpot_s, spec.tpot_s))
    return [(name, value, goal) for name, value, goal in each if value is not None and goal is not None]


def _worst(spec: PlanSpec, c: Confirmation) -> float:
    return max((value / goal for _, value, goal in _ratios(spec, c)), default=float("inf"))


def _missed(spec: PlanSpec, c: Confirmation) -> str:
    """Each goal that is missed in numbers, and queues without end."""
    words = [f"TTFT {show(c.ttft_s or 0.0, 's')}"] if c.note else []
    for name, value, goal in _ratios(spec, c):
        if value > goal:
            by = f"{value / goal - 1.0:.1%} over" if value < 2.0 * goal else f"{value / goal:.1f} times"
            words = [w for w in words if not w.startswith(name)] + [
                f"{name} {show(value, 's')}, {by} {show(goal, 's')}"
            ]
    return ", ".join([*words, *([c.note] if c.note else [])])


def _nearest(p: HardwarePlan) -> str:
    return p.near_misses[0].sentence if p.near_misses else "no split comes near"
