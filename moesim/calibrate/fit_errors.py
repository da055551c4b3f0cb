"""Errors on points left out of a fit, intervals made from them, and whether those intervals cover what they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.cost.forms import Array, Interval
from moesim.cost.forms_calibration import ErrorStats

__all__ = ["HeldOut", "conformal_interval", "cross_coverage", "error_stats", "pool"]

_LEVEL = 0.90
_MIN_POINTS = 100


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Per point: log(predicted / measured), what dominates it (0 compute, 1 memory, 2 latency), its fold, its distance."""

    log_ratio: Array
    which: NDArray[np.int64]
    fold: NDArray[np.int64]
    distance: Array
    n_groups: int
    left_out: str


def error_stats(held_out: HeldOut, covered: NDArray[np.bool_]) -> ErrorStats:
    """Median, mean and 90th percentile of |predicted / measured - 1|, their signed mean, and interval coverage."""
    signed = np.expm1(held_out.log_ratio)
    size = np.abs(signed)
    return ErrorStats(
        n=len(size),
        n_groups=held_out.n_groups,
        median_frac=float(np.median(size)),
        mean_frac=float(size.mean()),
        bias_frac=float(signed.mean()),
        p90_frac=float(np.quantile(size, 0.9)),
        coverage_frac=float(covered.mean()),
        left_out=held_out.left_out,
    )


def conformal_interval(held_out: HeldOut) -> Interval:
    """90% interval of log(measured / predicted) from held-out points, apart by what dominates the time.

    Assumes: new shapes are as far from the fitted ones as these left-out shapes were from each other.
    """
    sides = _sides(-held_out.log_ratio, held_out.which, held_out.n_groups)
    return Interval(compute=sides[0], memory=sides[1], latency=sides[2])


def cross_coverage(held_out: HeldOut) -> NDArray[np.bool_]:
    """Whether each point lies in the interval made from the points of all other folds."""
    inside = np.zeros(len(held_out.fold), dtype=bool)
    log_error = -held_out.log_ratio
    for k in np.unique(held_out.fold):
        out = held_out.fold == k
        sides = np.asarray(_sides(log_error[~out], held_out.which[~out], held_out.n_groups))[held_out.which[out]]
        inside[out] = (log_error[out] >= sides[:, 0]) & (log_error[out] <= sides[:, 1])
    return inside


def pool(parts: Sequence[HeldOut]) -> HeldOut:
    """Held-out points of several families as one."""
    return HeldOut(
        np.concatenate([p.log_ratio for p in parts]),
        np.concatenate([p.which for p in parts]),
        np.concatenate([p.fold for p in parts]),
        np.concatenate([p.distance for p in parts]),
        max(p.n_groups for p in parts),
        parts[0].left_out,
    )


def _sides(log_error: Array, which: NDArray[np.int64], n_groups: int) -> list[tuple[float, float]]:
    """Both sides of the interval per dominating part; wider by 1 + 3 / shapes, since few shapes say little on the next.

    The widening is a rule of thumb, checked by the coverage reported with every fit.
    """
    tail = (1.0 - _LEVEL) / 2.0
    wider = 1.0 + (3.0 / n_groups if n_groups < 8 else 0.0)
    sides = []
    for k in range(3):
        part = log_error[which == k]
        part = part if len(part) >= _MIN_POINTS else log_error
        # one point in n + 1 is beyond the largest seen (finite-sample correction of split conformal prediction)
        low, high = np.quantile(part, [tail, 1.0 - tail], method="weibull")
        sides.append((float(low) * wider, float(high) * wider))
    return sides
