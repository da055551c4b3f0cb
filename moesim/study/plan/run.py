"""A plan from its question to its answer, over all hardware asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moesim._version import __version__
from moesim.errors import InputError
from moesim.study.plan.candidates import candidates
from moesim.study.plan.confirm import confirm, ranking_sentence
from moesim.study.plan.misses import near_misses
from moesim.study.plan.results import HardwarePlan, PlanPoint, PlanResult
from moesim.study.plan.search import best_of, least_of, search, shown_front
from moesim.study.plan.spec import PlanSpec
from moesim.units import plural

__all__ = ["plan"]

Progress = Callable[[str, float], None]


def plan(spec: PlanSpec, progress: Progress = lambda what, done: None) -> PlanResult:
    """Search every hardware of `spec`, explain the best, confirm them in simulation, and name the cheapest.

    Args:
        spec: the question.
        progress: called with a step's name and the fraction of it that is done.

    Raises:
        InputError: names that do not exist, contexts that the model does not allow, models without a split on the devices.
    """
    if len(set(spec.hardware)) != len(spec.hardware):
        raise InputError("names one twice", field="hardware", value=", ".join(spec.hardware))
    plans = tuple(_on(spec, name, progress) for name in spec.hardware)
    cheapest = _cheapest(spec, plans)
    outcome = "ok" if any(_answer(spec, p) is not None for p in plans) else "nothing meets the goals"
    if outcome != "ok" and all(p.outcome == "out of memory" for p in plans):
        outcome = "out of memory"
    sentences = tuple(s for p in plans for s in _sentences(spec, p)) + _choice(spec, plans, cheapest)
    return PlanResult(
        moesim_version=__version__, spec=spec, outcome=outcome, sentences=sentences, cheapest=cheapest, plans=plans
    )


def _on(spec: PlanSpec, name: str, progress: Progress) -> HardwarePlan:
    found = search(spec, name, progress)
    ground = found.ground
    best, least = best_of(found, max(1, spec.n_confirm)), least_of(found, max(1, spec.n_confirm))
    front, n_front = shown_front(found)
    shown = best if spec.rate_per_s is None else least
    confirmations = confirm(ground, shown[: spec.n_confirm], progress)
    outcome = "ok" if best else "nothing meets the goals" if ground.splits else "out of memory"
    return HardwarePlan(
        hardware=ground.hardware.name, device=ground.hardware.device.name, n_devices=ground.hardware.n_devices,
        calibration=ground.calibration.name if ground.calibration else "default efficiencies (assumption)",
        price_usd_per_device_h=ground.hardware.price_usd_per_device_h, outcome=outcome, n_splits=len(ground.splits),
        n_too_large=len(found.too_large), n_options=len(found.options), n_front=n_front, best=best[0] if best else None,
        least=least[0] if least else None, front=tuple(front), near_misses=tuple(near_misses(found)),
        confirmations=tuple(confirmations), ranking=ranking_sentence(confirmations),
        candidates=tuple(candidates(found)),
    )  # fmt: skip


def _answer(spec: PlanSpec, plan: HardwarePlan) -> PlanPoint | None:
    """What was asked for: the fewest devices for a rate, or the best use of devices."""
    return plan.least if spec.rate_per_s is not None else plan.best


def _price(spec: PlanSpec, point: PlanPoint) -> float | None:
    return point.usd_per_h if spec.rate_per_s is not None else point.usd_per_million_output_tokens


def _cheapest(spec: PlanSpec, plans: Sequence[HardwarePlan]) -> str | None:
    """By price per hour of what serves the rate, or per output token; None where nothing has both answer and price."""
    prices = []
    for p in plans:
        point = _answer(spec, p)
        price = _price(spec, point) if point is not None else None
        if price is not None:
            prices.append((price, p.hardware))
    return min(prices)[1] if prices else None


def _sentences(spec: PlanSpec, p: HardwarePlan) -> list[str]:
    if not p.n_splits:
        return [f"{p.hardware}: no split of {plural(p.n_devices, 'device')} has room for {spec.model}; {_nearest(p)}"]
    if p.best is None:
        return [f"{p.hardware}: nothing meets the goals; nearest: {_nearest(p)}"]
    b = p.best
    interval = "assumption only" if b.error_frac is None else f"±{b.error_frac:.0%}"
    words = [
        f"{p.hardware}: {b.label} at {b.main.batch} requests per instance gives {b.output_tokens_per_s_per_device:.0f} tokens/s"
        f" per device ({interval}) at {b.output_tokens_per_s_per_user:.1f} tokens/s per user; {b.main.bottleneck.group}"
        f" ({b.main.bottleneck.bound}) take {b.main.bottleneck.share_frac:.0%} of the time"
    ]
    if spec.rate_per_s is not None:
        least = p.least
        words.append(
            f"{p.hardware}: {spec.rate_per_s:g} requests/s need {plural(least.n_devices, 'device')}: {least.label}"
            if least is not None
            else f"{p.hardware}: {plural(p.n_devices, 'device')} can serve at most"
            f" {b.requests_per_s * (1 - spec.headroom_frac):.2f} of {spec.rate_per_s:g} requests/s"
            f" with {spec.headroom_frac:.0%} headroom"
        )
    return words + ([f"{p.hardware}: {p.ranking}"] if p.ranking else [])


def _nearest(p: HardwarePlan) -> str:
    return p.near_misses[0].sentence if p.near_misses else "no split comes near"


def _choice(spec: PlanSpec, plans: Sequence[HardwarePlan], cheapest: str | None) -> tuple[str, ...]:
    if len(plans) < 2 or cheapest is None:
        return ()
    unit = "USD per hour" if spec.rate_per_s is not None else "USD per million output tokens"
    costs, unpriced = [], []
    for p in plans:
        point = _answer(spec, p)
        price = _price(spec, point) if point is not None else None
        if price is not None:
            note = " (assumption only, no host time)" if point is not None and point.error_frac is None else ""
            costs.append((price, f"{p.hardware} {price:.2f}{note}"))
        elif point is not None:
            unpriced.append(p.hardware)
    more = f"; no price known of {', '.join(unpriced)}" if unpriced else ""
    return (f"cheapest: {cheapest} ({unit}: {', '.join(text for _, text in sorted(costs))}){more}",)
