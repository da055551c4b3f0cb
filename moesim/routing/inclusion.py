"""How often an expert is among a token's top-k, for given selection weights, and weights for given inclusion shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["inclusion_from_weights", "race_threshold", "weights_from_inclusion"]

Floats = NDArray[np.float64]
N_NODES = 32
_TINY = 1e-300


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
        step = max(1, 1_500_000 // (n_experts * N_NODES))
        rows = np.flatnonzero(loose)
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            out[part] = _by_quadrature(weights[part], top_k)
    return out


def _by_quadrature(weights: Floats, top_k: int) -> Floats:
    """Gauss-Legendre over the logarithm of the time at which the K-th expert arrives."""
    nodes, node_weights = np.polynomial.legendre.leggauss(N_NODES)
    low, high = _time_window(weights, top_k)
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
    """Log times between which the K-th arrival surely lies: 1e-9 arrivals missed at either end."""
    return _log_time_of(weights, top_k, early=True), _log_time_of(weights, top_k, early=False)


def _log_time_of(weights: Floats, top_k: int, early: bool) -> Floats:
    """The log time at which P(at least K arrived) is about 1e-9 (early) or 1 - 1e-9 (late), by Chernoff's bound."""
    target = np.log(1e-9)
    low, high = np.full(len(weights), -60.0), np.full(len(weights), 60.0)
    positive = np.where(weights > 0, weights, np.nan)
    low = np.minimum(low, -np.log(np.nanmax(positive, axis=1)) - 60.0)
    high = np.maximum(high, -np.log(np.nanmin(positive, axis=1)) + 10.0)
    for _ in range(40):
        mid = (low + high) / 2
        q = -np.expm1(-weights * np.exp(mid)[:, None])
        bound = _chernoff(q.sum(axis=1), float(top_k), q)
        past = (bound > target) if early else (bound < target)
        low, high = np.where(past, low, mid), np.where(past, mid, high)
    found: Floats = low if early else high
    return found


def _chernoff(mean: Floats, k: float, q: Floats) -> Floats:
    """Log bound of P(N >= K) where the mean is below K and of P(N < K) where it is above."""
    arrived = k * (1 + np.log(np.maximum(mean, _TINY) / k)) - mean
    away, away_k = (1 - q).sum(axis=1), q.shape[1] - k + 1
    # the same bound for the number still away: tight where almost all have arrived
    missing = away_k * (1 + np.log(np.maximum(away, _TINY) / away_k)) - away
    bound: Floats = np.minimum(arrived, np.where(away < away_k, missing, 0.0))
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
        if np.max(np.abs(got - target) / target) < 1e-4:
            break
    if top_k == 1:
        weights = target
    result: Floats = weights / weights.sum(axis=1, keepdims=True)
    return result
