"""Errors on points left out of a fit, intervals made from them, and whether those intervals cover what they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.cost.forms import Array, Interval
from moesim.cost.forms_calibration import ErrorStats

__all__ = ["HeldOut", "conformal_interval", "cross_coverage", "error_stats", "pool"]

_TAIL = 0.05
_MIN_POINTS = 100
_FEW_GROUPS = 10


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
    sides = _sides(-held_out.log_ratio, held_out.which, held_out.fold, held_out.n_groups)
    return Interval(compute=sides[0], memory=sides[1], latency=sides[2])


def cross_coverage(held_out: HeldOut) -> NDArray[np.bool_]:
    """Whether each point lies in the interval made from the points of all other folds."""
    inside = np.zeros(len(held_out.fold), dtype=bool)
    log_error = -held_out.log_ratio
    for k in np.unique(held_out.fold):
        out = held_out.fold == k
        seen = _sides(log_error[~out], held_out.which[~out], held_out.fold[~out], held_out.n_groups)
        sides = np.asarray(seen)[held_out.which[out]]
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


def _sides(
    log_error: Array, which: NDArray[np.int64], fold: NDArray[np.int64], n_groups: int
) -> list[tuple[float, float]]:
    """Both sides of the interval per dominating part, from many shapes or from few."""
    few = n_groups < _FEW_GROUPS
    sides = []
    for k in range(3):
        part = which == k if (which == k).sum() >= _MIN_POINTS else np.ones(len(which), dtype=bool)
        pooled = _tails(log_error[part])
        sides.append(_widened(pooled, log_error[part], fold[part]) if few else pooled)
    return sides


def _tails(log_error: Array) -> tuple[float, float]:
    """5% and 95% quantiles; one point in n + 1 is beyond the largest seen (correction of split conformal prediction)."""
    low, high = np.quantile(log_error, [_TAIL, 1.0 - _TAIL], method="weibull")
    return float(low), float(high)


def _widened(pooled: tuple[float, float], log_error: Array, fold: NDArray[np.int64]) -> tuple[float, float]:
    """Points of one shape err alike, so few shapes are few observations: half-way from pooled to the farthest group of shapes.

    The half-way point is stretched by 1 + 8 / k^3 for k groups (folds) and contains 0. A rule of thumb; the stretch was chosen so
    that held-out families with 2 to 9 shapes are covered by 85-95%, and is checked by the coverage reported with every fit.
    """
    each = np.asarray([_tails(log_error[fold == k]) for k in np.unique(fold)])
    stretch = 1.0 + 8.0 / len(each) ** 3
    low, high = (0.5 * (pooled[0] + each[:, 0].min()), 0.5 * (pooled[1] + each[:, 1].max()))
    return min(0.0, float(low)) * stretch, max(0.0, float(high)) * stretch
