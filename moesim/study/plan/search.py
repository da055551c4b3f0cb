"""The search on one kind of hardware: memory first, two evaluations per stage split, then arrays.

Only what is shown is costed again, pass by pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost.served import stack_of
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import SystemKind, SystemSpec
from moesim.study.calibrated import calibration_for
from moesim.study.plan.curves import Curve, measure_curve
from moesim.study.plan.explain import Deployment, explain
from moesim.study.plan.ground import Ground, devices_of, transfer_seconds
from moesim.study.plan.options import NONE, Options, concatenate, disaggregated, front, in_place
from moesim.study.plan.results import PlanPoint
from moesim.study.plan.spec import PlanSpec
from moesim.study.plan.splits import Split, TooLarge, fitting_splits
from moesim.study.resolve import resolve_model

__all__ = ["Found", "best_of", "least_of", "search", "shown_front"]

#: Points of the front that are explained; the rest are only counted.
MOST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Found:
    """Everything the search knows before it explains anything."""

    ground: Ground
    options: Options
    too_large: tuple[TooLarge, ...]
    curves: dict[ParallelSpec, Curve]

    def deployment(self, i: int, n_units: int = 1) -> Deployment:
        """Option `i` in words."""
        o, splits = self.options, self.ground.splits
        main = splits[int(o.split[i])]
        other = int(o.prefill_split[i])
        return Deployment(
            main.parallel, int(o.per_rank[i]), int(o.n_main[i]), None if other == NONE else splits[other].parallel,
            int(o.n_prefill[i]), n_units, main.max_per_rank,
        )  # fmt: skip


def search(
    spec: PlanSpec, hardware_name: str, progress: Callable[[str, float], None] = lambda what, done: None
) -> Found:
    """All options on one kind of hardware.

    Raises:
        InputError: names, contexts or splits that do not exist.
    """
    model = resolve_model(
        SystemSpec(name="plan", kind=SystemKind.DENSE, model=spec.model, weight_dtype=spec.weight_dtype, kv_dtype=spec.kv_dtype)
    )  # fmt: skip
    hardware = devices_of(hardware_name, spec.n_devices)
    calibration = calibration_for(spec.calibration, hardware.device.name)
    splits, too_large = fitting_splits(model, hardware, spec)
    ground = Ground(
        hardware_name, spec, model, hardware, calibration, splits, transfer_seconds(model, hardware, spec.input_tokens)
    )
    curves = _curves(ground, splits, progress)
    options = Options.none()
    if splits:
        options = in_place(splits, curves, spec, ground.stepping, stack_of(calibration))
        if spec.disaggregated and ground.transfer_s is not None and hardware.n_devices > 1 and spec.output_tokens > 1:
            pools = disaggregated(splits, curves, spec, hardware.n_devices, ground.transfer_s, stack_of(calibration))
            options = concatenate([options, pools])
    return Found(ground, options, tuple(too_large), curves)


def _curves(ground: Ground, splits: list[Split], progress: Callable[[str, float], None]) -> dict[ParallelSpec, Curve]:
    """One curve per stage split, up to the most sequences per rank that any pipeline depth has room for."""
    most: dict[ParallelSpec, int] = {}
    for split in splits:
        most[split.stage] = max(most.get(split.stage, 1), split.max_per_rank)
    curves = {}
    for i, (stage, n) in enumerate(most.items()):
        progress(f"{ground.hardware.name}: {stage.label}", i / len(most))
        curves[stage] = measure_curve(ground.instance(stage), ground.spec, n)
    return curves


def best_of(found: Found, n: int) -> list[PlanPoint]:
    """The `n` best deployments that meet the goals, by tokens per second and device, each filling the devices.

    They differ in the split that decodes or in whether others prefill.
    """
    o, spec = found.options, found.ground.spec
    good = np.flatnonzero(o.meets(spec))
    good = good[np.lexsort((o.n_devices[good], -o.per_device[good]))]
    seen: set[tuple[int, bool]] = set()
    points: list[PlanPoint] = []
    for i in good.tolist():
        key = (int(o.split[i]), int(o.prefill_split[i]) == NONE)
        if key in seen:
            continue
        seen.add(key)
        point = _within_goals(found, found.deployment(i, found.ground.hardware.n_devices // int(o.n_devices[i])))
        if point is not None:
            points.append(point)
        if len(points) >= n + 1:
            break
    points.sort(key=lambda p: -p.output_tokens_per_s_per_device)
    return points[:n]


def least_of(found: Found, n: int = 1) -> list[PlanPoint]:
    """The `n` deployments of fewest devices that serve `rate_per_s` within the goals and with headroom, unlike splits.

    Of equals the one with most room comes first.
    """
    o, spec, n_most = found.options, found.ground.spec, found.ground.hardware.n_devices
    if spec.rate_per_s is None or not len(o):
        return []
    need = spec.rate_per_s / (1.0 - spec.headroom_frac) if spec.headroom_frac < 1 else math.inf
    units = np.ceil(need / o.requests_per_s - 1e-9)
    devices = units * o.n_devices
    good = np.flatnonzero(o.meets(spec) & (devices <= n_most))
    order = good[np.lexsort((-(o.requests_per_s * units)[good], o.prefill_split[good] != NONE, devices[good]))]
    points: list[PlanPoint] = []
    seen: set[tuple[int, int]] = set()
    for i in order[: 8 * n].tolist():
        key = (int(o.split[i]), int(o.prefill_split[i]))
        if key in seen:
            continue
        point = _within_goals(found, found.deployment(i, int(units[i])))
        if point is not None and point.requests_per_s >= need * 0.999:
            points.append(point)
            seen.add(key)
        if len(points) >= n:
            break
    return points


def shown_front(found: Found) -> tuple[list[PlanPoint], int]:
    """Explained points of the front of tokens per second per device against per user, and how many the front has.

    Among options that meet the TTFT goal, all where none does.
    """
    o, spec = found.options, found.ground.spec
    if not len(o):
        return [], 0
    among = np.flatnonzero(o.ttft_s <= (spec.ttft_s or np.inf))
    if not len(among):
        among = np.arange(len(o))
    at = among[front(1.0 / o.tpot_s[among], o.per_device[among])]
    points = [explain(found.ground, found.deployment(i)) for i in _spread(at, o).tolist()]
    return points, len(at)


def _spread(at: NDArray[np.intp], o: Options) -> NDArray[np.intp]:
    """At most `MOST_SHOWN` of a front, evenly over the logarithm of the speed per user."""
    if len(at) <= MOST_SHOWN:
        return at
    x = np.log(1.0 / o.tpot_s[at])
    wanted = np.linspace(x[0], x[-1], MOST_SHOWN)
    nearest: NDArray[np.intp] = np.unique(np.abs(x[None, :] - wanted[:, None]).argmin(axis=1))
    return at[nearest]


def _within_goals(found: Found, deployment: Deployment) -> PlanPoint | None:
    """The deployment explained, its batch lowered as far as needed where interpolation between batches was too hopeful."""
    point = explain(found.ground, deployment)
    fails, step = deployment.per_rank, 1
    while not point.meets_goals:
        fails, lower = point.main.batch // (deployment.batch // deployment.per_rank), deployment.per_rank - step
        if lower < 1 or step > 64:
            return None
        point = explain(found.ground, replace(deployment, per_rank=lower))
        step *= 2
    meets = point.main.batch // (deployment.batch // deployment.per_rank)
    while fails - meets > max(1, meets // 50):
        middle = (meets + fails) // 2
        tried = explain(found.ground, replace(deployment, per_rank=middle))
        point, meets, fails = (tried, middle, fails) if tried.meets_goals else (point, meets, middle)
    return point
