"""Numbers that say how uneven a load is; all act on the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.placement import Placement

__all__ = [
    "coefficient_of_variation",
    "expert_imbalance_ratio",
    "gini",
    "max_over_mean",
    "normalised_entropy",
    "rank_imbalance_ratio",
]

Floats = NDArray[np.float64]


def max_over_mean(load: NDArray[Any]) -> Floats:
    """max / mean; 1 is perfectly even. Published "(max - mean) / mean" is this less 1. Zero load counts as even.

    >>> float(max_over_mean(np.array([3, 1, 1, 3])))
    1.5
    """
    values = np.asarray(load, dtype=np.float64)
    mean = values.mean(axis=-1)
    return np.asarray(np.where(mean > 0, values.max(axis=-1) / np.where(mean > 0, mean, 1.0), 1.0))


def expert_imbalance_ratio(counts: NDArray[Any]) -> Floats:
    """The busiest expert's tokens over the mean, per layer: [L] of counts [L, E]."""
    return max_over_mean(counts)


def rank_imbalance_ratio(counts: NDArray[Any], placement: Placement) -> Floats:
    """The busiest rank's tokens over the mean, per layer: [L] of counts [L, E]."""
    return max_over_mean(placement.rank_loads(counts))


def coefficient_of_variation(load: NDArray[Any]) -> Floats:
    """Standard deviation over mean (of all experts, so with divisor E).

    >>> float(coefficient_of_variation(np.array([1.0, 3.0])))
    0.5
    """
    values = np.asarray(load, dtype=np.float64)
    mean = values.mean(axis=-1)
    return np.asarray(values.std(axis=-1) / np.where(mean > 0, mean, 1.0))


def normalised_entropy(load: NDArray[Any]) -> Floats:
    """Entropy of the load shares over log E: 1 is even, 0 is all on one.

    >>> float(normalised_entropy(np.array([1, 1, 0, 0])))
    0.5
    """
    values = np.asarray(load, dtype=np.float64)
    total = values.sum(axis=-1, keepdims=True)
    share = values / np.where(total > 0, total, 1.0)
    logs = np.log(np.where(share > 0, share, 1.0))
    width = values.shape[-1]
    return np.asarray(-(share * logs).sum(axis=-1) / np.log(width)) if width > 1 else np.ones(values.shape[:-1])


def gini(load: NDArray[Any]) -> Floats:
    """Gini coefficient: mean absolute difference over twice the mean; 0 is even.

    >>> float(gini(np.array([0, 2])))
    0.5
    """
    values = np.sort(np.asarray(load, dtype=np.float64), axis=-1)
    n = values.shape[-1]
    weight = 2 * np.arange(1, n + 1) - n - 1
    total = values.sum(axis=-1)
    return np.asarray((values * weight).sum(axis=-1) / np.where(total > 0, n * total, 1.0))
