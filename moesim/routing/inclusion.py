"""How often an expert is among a token's top-k, for given selection weights, and weights for given inclusion shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["inclusion_from_weights", "race_threshold", "weights_from_inclusion"]

Floats = NDArray[np.float64]
NODES_PER_E_FOLD = 6.0
_TINY = 1e-300
_LOG_MISSED = np.log(1e-9)


def race_threshold(weights: Floats, top_k: int) -> Floats:
    """The time t of each row at which K experts are expected to have arrived: sum over e of 1 - exp(-w_e t) = K.

    Args:
        weights: [n_rows, E]; rows sum to 1 or to anything positive; more than K positive weights in each.
        top_k: K.
    """
    k = float(top_k)
    scaled = weights / weights.max(axis=1, keepdims=True)
    log_t = np.zeros(len(weights))
    low, high = np.full(len(weights), -40.0), np.full(len(weights), 40.0)
    for _ in range(60):
        reach = -np.expm1(-scaled * np.exp(log_t)[:, None])
        excess = reach.sum(axis=1) - k
        high, low = np.where(excess > 0, log_t, high), np.where(excess > 0, low, log_t)
        slope = (scaled * np.exp(log_t)[:, None] * (1 - reach)).sum(axis=1)
        newton = log_t - excess / np.maximum(slope, _TINY)
        inside = (newton > low) & (newton < high)
        log_t = np.where(inside, newton, (low + high) / 2)
        if np.max(np.abs(excess)) < 1e-10 * k:
            break
    t: Floats = np.exp(log_t) / weights.max(axis=1)
    return t


def inclusion_from_weights(weights: Floats, top_k: int) -> Floats:
    """P(expert e is among the K first drawn without replacement), exactly (to about 1e-6).

    p_e = integral of w_e exp(-w_e t) P(fewer than K of the other experts arrive before t) dt, where expert f arrives at an
    exponential time of rate w_f. The number of arrivals is Poisson-binomial; its low end is built by a recursion over
    experts, and expert e is taken out again by dividing its factor out.

    Args:
        weights: [n_rows, E], not negative, at least K positive in each row.
        top_k: K.

    Returns:
        [n_rows, E]; each row sums to K.

    Valid for: any weights; experts of weight zero are never chosen.
    Source: exponential race form of Plackett-Luce sampling (Yellott 1977); the recursion is textbook.
    """
    n_experts = weights.shape[1]
    if top_k >= n_experts:
        return np.ones_like(weights)
    if top_k == 1:
        first: Floats = weights / weights.sum(axis=1, keepdims=True)
        return first
    out = np.empty_like(weights, dtype=np.float64)
    n_positive = (weights > 0).sum(axis=1)
    tight = n_positive <= top_k
    out[tight] = (weights[tight] > 0).astype(np.float64)
    loose = ~tight
    if loose.any():
        step = max(1, 5_000 // n_experts)
        rows = np.flatnonzero(loose)
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            out[part] = _by_quadrature(weights[part], top_k)
    return out


@lru_cache(maxsize=64)
def _gauss_nodes(n_nodes: int) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on -1..1."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return nodes, weights


def _by_quadrature(weights: Floats, top_k: int) -> Floats:
    """Gauss-Legendre over the logarithm of the time at which the K-th expert arrives."""
    low, high = _time_window(weights, top_k)
    n_nodes = int(np.clip(np.ceil(NODES_PER_E_FOLD * (high - low).max()), 24, 400))
    nodes, node_weights = _gauss_nodes(n_nodes)
    half = (high - low)[:, None] / 2
    times = np.exp((high + low)[:, None] / 2 + half * nodes)
    measure = node_weights * half * times
    hazard = weights[:, None, :] * times[:, :, None]
    stay = np.exp(-hazard)
    fewer = _fewer_than_k_others(stay, top_k)
    # from the start of the window on; before it, fewer than K others have arrived for sure
    start = -np.expm1(-weights * np.exp(low)[:, None])
    inside = np.einsum("rn,rne,rne->re", measure, weights[:, None, :] * stay, fewer)
    total = start + inside
    result: Floats = np.minimum(total * (top_k / total.sum(axis=1, keepdims=True)), 1.0)
    return result


def _time_window(weights: Floats, top_k: int) -> tuple[Floats, Floats]:
    """Log times between which the K-th arrival surely lies: 1e-9 of probability is missed at either end."""
    positive = np.where(weights > 0, weights, np.nan)
    first, last = -np.log(np.nanmax(positive, axis=1)) - 60.0, -np.log(np.nanmin(positive, axis=1)) + 10.0
    start = _first_time(weights, first, last, lambda q: _log_of_k_arrived(q, top_k) > _LOG_MISSED)
    n_positive = (weights > 0).sum(axis=1)
    end = _first_time(weights, start, last, lambda q: _log_of_fewer(q, top_k, n_positive) < _LOG_MISSED)
    return start, end


def _first_time(weights: Floats, low: Floats, high: Floats, reached: Callable[[Floats], NDArray[np.bool_]]) -> Floats:
    """The log time from which on `reached` holds for the arrival probabilities, by bisection."""
    for _ in range(30):
        mid = (low + high) / 2
        past = reached(-np.expm1(-weights * np.exp(mid)[:, None]))
        low, high = np.where(past, low, mid), np.where(past, mid, high)
    return high


def _log_of_k_arrived(q: Floats, top_k: int) -> Floats:
    """Chernoff's bound of log P(N >= K)."""
    return _tail(q.sum(axis=1), float(top_k))


def _log_of_fewer(q: Floats, top_k: int, n_positive: NDArray[np.int64]) -> Floats:
    """Chernoff's bounds of log P(N < K), from those that came and from those that stayed away; the better one."""
    came = q.sum(axis=1)
    below = np.where(came > top_k, top_k * (1 + np.log(np.maximum(came, _TINY) / top_k)) - came, 0.0)
    away = n_positive - came
    bound: Floats = np.minimum(below, _tail(np.maximum(away, _TINY), n_positive - top_k + 1.0))
    return bound


def _tail(mean: Floats, k: Any) -> Floats:
    bound: Floats = np.where(mean < k, k * (1 + np.log(np.maximum(mean, _TINY) / k)) - mean, 0.0)
    return bound


def _fewer_than_k_others(stay: Floats, top_k: int) -> Floats:
    """P(fewer than K experts other than e have arrived) for every e: [n_rows, n_nodes, E]."""
    n_experts = stay.shape[2]
    order = np.argsort(stay[:, -1, :], axis=1)[:, None, :]  # likely arrivals first
    stay = np.take_along_axis(stay, order, axis=2)
    n_hot = min(n_experts, 2 * top_k + 2)
    cold = _counts_of(stay[:, :, n_hot:], top_k)
    everyone = _append(cold, stay[:, :, :n_hot])
    fewer = np.empty_like(stay)
    fewer[:, :, n_hot:] = _divided_out(everyone, stay[:, :, n_hot:], top_k)
    for hot in range(n_hot):
        others = np.delete(stay[:, :, :n_hot], hot, axis=2)
        fewer[:, :, hot] = _append(cold, others).sum(axis=0)
    result = np.empty_like(fewer)
    np.put_along_axis(result, order, fewer, axis=2)
    return result


def _counts_of(stay: Floats, top_k: int) -> Floats:
    """P(exactly j arrived), j = 0..K-1, first axis j."""
    start = np.zeros((top_k, *stay.shape[:2]))
    start[0] = 1.0
    return _append(start, stay)


def _append(counts: Floats, stay: Floats) -> Floats:
    counts = counts.copy()
    for e in range(stay.shape[2]):
        away = stay[:, :, e]
        counts[1:] = counts[1:] * away + counts[:-1] * (1 - away)
        counts[0] *= away
    return counts


def _divided_out(counts: Floats, stay: Floats, top_k: int) -> Floats:
    """The sum over j < K of the counts without expert e; stable because e has arrived with probability below 1/2."""
    odds = (1 - stay) / np.maximum(stay, _TINY)
    term = counts[0][:, :, None] / np.maximum(stay, _TINY)
    total = term.copy()
    for j in range(1, top_k):
        term = counts[j][:, :, None] / np.maximum(stay, _TINY) - odds * term
        total += term
    sure: Floats = np.clip(total, 0.0, 1.0)
    return sure


def weights_from_inclusion(inclusion: Floats, top_k: int, n_rounds: int = 8) -> Floats:
    """Selection weights whose inclusion probabilities are the given ones; rows sum to 1.

    Start: w = -log(1 - p), the solution of the threshold approximation; then w is corrected by the exact inclusion
    probabilities it gives.

    Args:
        inclusion: [n_rows, E], 0..1, each row sums to K.
        top_k: K.
        n_rounds: corrections.
    """
    target = np.clip(inclusion, 1e-9, 1 - 1e-6)
    arrival = -np.log1p(-target)
    weights = arrival.copy()
    for _ in range(n_rounds if top_k > 1 else 0):
        got = np.clip(inclusion_from_weights(weights, top_k), 1e-12, 1 - 1e-9)
        weights *= arrival / -np.log1p(-got)
        if np.max(np.abs(got - target) / (target + 1e-3)) < 1e-3:
            break
    if top_k == 1:
        weights = target
    result: Floats = weights / weights.sum(axis=1, keepdims=True)
    return result
