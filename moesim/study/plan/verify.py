"""The best in simulation, and where the first misses a goal there, others until one meets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.study.plan.confirm import confirm, ranked
from moesim.study.plan.explain import Deployment, explain
from moesim.study.plan.ground import Ground
from moesim.study.plan.results import Confirmation, PlanPoint

__all__ = ["Verified", "eased", "verify"]

#: Batches tried in place of one that misses: this fraction of it at most, then of the one before.
EASE_FRAC, MOST_EASED = 0.97, 3


@dataclass(frozen=True, slots=True)
class Verified:
    """The plan to recommend, what was simulated by rank of the closed form, and whether the plan met the goals there.

    `is_met` is None where nothing was simulated, False where no simulated plan meets the goals.
    """

    answer: PlanPoint | None
    confirmations: tuple[Confirmation, ...]
    is_met: bool | None


def verify(
    ground: Ground,
    points: Sequence[PlanPoint],
    n: int,
    progress: Callable[[str, float], None] = lambda what, done: None,
) -> Verified:
    """Simulate the first `n`; where the first misses, also with fewer requests; where all miss, the rest of `points`.

    The first is the answer if it meets the goals, else the one that does with most simulated tokens per second and device (the
    first of `points` with a rate, where they come by devices), else the first, which then has `is_met` False.
    """
    first = points[0] if points else None
    if first is None or n == 0:
        return Verified(first, (), None)
    tried = list(zip(points[:n], confirm(ground, points[:n], progress), strict=True))
    verdict = tried[0][1].meets_goals
    if verdict is False and ground.spec.rate_per_s is None:
        tried += _with_fewer(ground, *tried[0])
    for point in points[n:]:
        if any(c.meets_goals is not False for _, c in tried):
            break
        tried.append((point, confirm(ground, [point], progress)[0]))
    if ground.spec.rate_per_s is None:
        tried.sort(key=lambda pair: -pair[0].output_tokens_per_s_per_device)
    found = ranked([c.model_copy(update={"rank_closed_form": i + 1}) for i, (_, c) in enumerate(tried)])
    if verdict is not False:
        return Verified(first, tuple(found), verdict)
    good = [(point, c) for point, c in tried if c.meets_goals]
    if ground.spec.rate_per_s is None:
        good.sort(key=lambda pair: -(pair[1].output_tokens_per_s_per_device or 0.0))
    return Verified(good[0][0] if good else first, tuple(found), bool(good))


def eased(ground: Ground, point: PlanPoint, frac: float) -> PlanPoint | None:
    """The same deployment with at most `frac` of its batch; None where that is less than one sequence per rank."""
    main, units = point.main, point.n_units
    per_rank = math.floor(main.batch // (main.parallel.dp_size * main.parallel.pp_size) * frac)
    if per_rank < 1:
        return None
    before = point.pools[0] if len(point.pools) > 1 else None
    return explain(ground, Deployment(
        main.parallel, per_rank, main.n_instances // units, None if before is None else before.parallel,
        0 if before is None else before.n_instances // units, units,
    ))  # fmt: skip


def _with_fewer(ground: Ground, point: PlanPoint, missed: Confirmation) -> list[tuple[PlanPoint, Confirmation]]:
    """With batches that shrink by what TPOT misses, or by `EASE_FRAC`, up to the first that meets the goals."""
    tried: list[tuple[PlanPoint, Confirmation]] = []
    goal = ground.spec.tpot_s
    for _ in range(MOST_EASED):
        over = 1.0 if goal is None or missed.tpot_s is None else missed.tpot_s / goal
        lower = eased(ground, point, min(EASE_FRAC, 1.0 / over))
        if lower is None:
            break
        point, missed = lower, confirm(ground, [lower])[0]
        tried.append((point, missed))
        if missed.meets_goals is not False:
            break
    return tried
