"""What a sweep needs to know of the passes of many rows at once, and what a stack's host adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.cost.energy import DYNAMIC_FRAC
from moesim.cost.result import Bound
from moesim.cost.stack import StackParams
from moesim.ops import Phase
from moesim.specs.base import Origin
from moesim.study.host import hosted_s
from moesim.study.uncertainty import WIDE_WIDTH, Exposure

__all__ = ["PassTimes", "built", "columns_of", "exposure_in", "hosted"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Of every row: time, exposed communication, time weighted by the power its bound draws, and error times time.

    `measured_s` is the part of the time that a calibration stands behind, `outside_s` what lies outside its domain, `links_s` the
    errors of expert exchanges, `attention_s` decode attention's kernels; `n_launched` counts kernels, `imbalance` is the
    fullest expert rank over the mean.
    """

    time_s: Floats
    comm_s: Floats
    power_s: Floats
    error_s: Floats
    measured_s: Floats
    outside_s: Floats
    links_s: Floats
    attention_s: Floats
    n_launched: Floats
    imbalance: Floats
    origin: Origin

    def take(self, rows: Any) -> PassTimes:
        """Some rows."""
        return built([x[rows] for x in columns_of(self)], self.origin)


def columns_of(p: PassTimes) -> tuple[Floats, ...]:
    """All but the origin."""
    return (
        p.time_s, p.comm_s, p.power_s, p.error_s, p.measured_s, p.outside_s, p.links_s, p.attention_s, p.n_launched,
        p.imbalance,
    )  # fmt: skip


def built(columns: Sequence[Floats], origin: Origin) -> PassTimes:
    """From `columns_of`."""
    time, comm, power, error, measured, outside, links, attention, launched, imbalance = columns
    return PassTimes(time, comm, power, error, measured, outside, links, attention, launched, imbalance, origin)


def hosted(times: PassTimes, stack: StackParams | None, phase: Phase, n_new: Any = 0.0) -> PassTimes:
    """Times with what the stack's host adds to each pass; it draws the power of waiting."""
    if stack is None:
        return times
    whole = np.asarray(hosted_s(stack, times.time_s, phase, times.n_launched, n_new))
    power_s = times.power_s + (whole - times.time_s) * DYNAMIC_FRAC[Bound.LATENCY]
    measured_s = times.measured_s + (whole - times.time_s)
    return replace(times, time_s=whole, power_s=power_s, measured_s=measured_s)


def exposure_in(times: PassTimes, *, is_wide: bool) -> Exposure:
    """How each row is exposed to errors; `is_wide` where the instance spans scale-up domains."""
    t = times.time_s
    links = np.hypot(times.links_s / t, WIDE_WIDTH * is_wide)
    return Exposure(times.error_s / t, links, 1.0 - times.measured_s / t, times.outside_s / t)
