"""Selection weights of the synthetic families, hottest expert first; `relabelled` gives the heat to random experts."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["dirichlet_weights", "lognormal_weights", "normal_scores", "relabelled", "zipf_weights"]

Floats = NDArray[np.float64]


def zipf_weights(n_experts: int, exponent: float) -> Floats:
    """w_r ~ r^-s for rank r = 1..E.

    >>> zipf_weights(2, 1.0).round(3).tolist()
    [0.667, 0.333]
    """
    weights = np.arange(1, n_experts + 1, dtype=np.float64) ** -exponent
    result: Floats = weights / weights.sum()
    return result


def normal_scores(n: int) -> Floats:
    """The standard normal quantiles at the middles of n equally likely slices, highest first."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(1 - (i + 0.5) / n) for i in range(n)])


def lognormal_weights(n_experts: int, sigma: float) -> Floats:
    """Sorted log-normal weights at the middles of E equally likely slices: the same shape for every seed."""
    z = normal_scores(n_experts)
    weights = np.exp(sigma * (z - z[0]))
    result: Floats = weights / weights.sum()
    return result


def dirichlet_weights(n_rows: int, n_experts: int, concentration: float, rng: np.random.Generator) -> Floats:
    """Rows of symmetric Dirichlet weights; a small concentration is skewed (computed in logs, so that none underflows)."""
    shape = (n_rows, n_experts)
    # Gamma(a) = Gamma(a + 1) U^(1/a), whose logarithm stays finite for the smallest a
    logs = np.log(rng.standard_gamma(concentration + 1, shape)) + np.log1p(-rng.random(shape)) / concentration
    weights = np.exp(np.maximum(logs - logs.max(axis=1, keepdims=True), -60.0))
    result: Floats = weights / weights.sum(axis=1, keepdims=True)
    return result


def relabelled(weights: Floats, n_layers: int, rng: np.random.Generator) -> Floats:
    """One row of weights handed to experts in a random order in every layer: [L, E]."""
    rows = np.tile(weights, (n_layers, 1))
    return rng.permuted(rows, axis=1)
