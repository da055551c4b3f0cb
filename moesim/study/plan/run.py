"""A plan from its question to its answer, over all hardware asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moesim._version import __version__
from moesim.errors import InputError
from moesim.study.plan.candidates import candidates
from moesim.study.plan.confirm import ranking_sentence
from moesim.study.plan.misses import near_misses
from moesim.study.plan.results import HardwarePlan, PlanResult
from moesim.study.plan.search import best_of, least_of, search, shown_front
from moesim.study.plan.spec import PlanSpec
from moesim.study.plan.told import answer_of, choice_sentence, hardware_sentences, price_of
from moesim.study.plan.verify import verify

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
    outcome = "ok" if any(answer_of(spec, p) is not None for p in plans) else "nothing meets the goals"
    if outcome != "ok" and all(p.outcome == "out of memory" for p in plans):
        outcome = "out of memory"
    sentences = tuple(s for p in plans for s in hardware_sentences(spec, p)) + choice_sentence(spec, plans, cheapest)
    return PlanResult(
        moesim_version=__version__, spec=spec, outcome=outcome, sentences=sentences, cheapest=cheapest, plans=plans
    )


def _on(spec: PlanSpec, name: str, progress: Progress) -> HardwarePlan:
    found = search(spec, name, progress)
    ground = found.ground
    best, least = (of(found, max(1, 2 * spec.n_confirm)) for of in (best_of, least_of))
    front, n_front = shown_front(found)
    verified = verify(ground, best if spec.rate_per_s is None else least, spec.n_confirm, progress)
    first_best, first_least = (points[0] if points else None for points in (best, least))
    outcome = "ok" if best else "nothing meets the goals" if ground.splits else "out of memory"
    return HardwarePlan(
        hardware=ground.hardware.name, device=ground.hardware.device.name, n_devices=ground.hardware.n_devices,
        calibration=ground.calibration.name if ground.calibration else "default efficiencies (assumption)",
        price_usd_per_device_h=ground.hardware.price_usd_per_device_h, outcome=outcome, n_splits=len(ground.splits),
        n_too_large=len(found.too_large), n_options=len(found.options), n_front=n_front,
        best=verified.answer if spec.rate_per_s is None else first_best,
        least=first_least if spec.rate_per_s is None else verified.answer, front=tuple(front),
        near_misses=tuple(near_misses(found)),
        confirmations=verified.confirmations, ranking=ranking_sentence(verified.confirmations), is_met=verified.is_met,
        candidates=tuple(candidates(found)),
    )  # fmt: skip


def _cheapest(spec: PlanSpec, plans: Sequence[HardwarePlan]) -> str | None:
    """By price per hour of what serves the rate, or per output token; None where nothing has both answer and price.

    Hardware on which no simulated plan meets the goals only where there is no other.
    """
    prices = []
    for p in plans:
        point = answer_of(spec, p)
        price = price_of(spec, point) if point is not None else None
        if price is not None:
            prices.append((p.is_met is False, price, p.hardware))
    return min(prices)[2] if prices else None
