"""Exchanges of experts between domains within one layer: more co-activation kept inside, or a more even load.

Letters: E experts, D domains. `pull` is what an expert gains in each domain from other layers, [E, D]; `inside` what two experts
of the layer gain by being together, [E, E], symmetric. An exchange keeps the number of experts per domain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["evened", "improved", "kept_inside"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MAX_SWAPS = 256
N_TRIED = 12


def kept_inside(domain: Ints, pull: Floats, inside: NDArray[Any], n_domains: int) -> float:
    """Co-activation that stays within domains: pulls obeyed, and pairs of the layer that are together."""
    together = np.eye(n_domains)[domain]
    return float(pull[np.arange(len(domain)), domain].sum() + 0.5 * ((inside @ together) * together).sum())


def improved(domain: Ints, pull: Floats, inside: NDArray[Any], n_domains: int, *, swaps_only: bool = False) -> Ints:
    """A better assignment of the same sizes: the optimum of the linear part if it is better, then swaps while they gain.

    With `swaps_only` that optimum is left out: it is what takes long, and from a good assignment swaps find as much.
    """
    from scipy.optimize import linear_sum_assignment

    n_experts = len(domain)
    now, best = domain, kept_inside(domain, pull, inside, n_domains)
    if pull.any() and not swaps_only:
        worth = pull + inside @ np.eye(n_domains)[domain]
        _, column = linear_sum_assignment(np.repeat(worth, n_experts // n_domains, axis=1), maximize=True)
        other = column // (n_experts // n_domains)
        found = kept_inside(other, pull, inside, n_domains)
        if found > best:
            now = other.astype(np.int64)
    return _swapped(now.copy(), pull, inside, n_domains)


def _swapped(domain: Ints, pull: Floats, inside: NDArray[Any], n_domains: int) -> Ints:
    """The best exchange of two experts again and again, while one gains; looks at the experts that would gain most by moving."""
    experts = np.arange(len(domain))
    worth = pull + inside @ np.eye(n_domains)[domain]
    for _ in range(len(domain)):
        wish = worth.max(axis=1) - worth[experts, domain]
        rows = np.argpartition(-wish, min(N_TRIED, len(domain) - 1))[:N_TRIED]
        gain = _gains(domain, worth, inside, rows)
        a, f = divmod(int(gain.argmax()), len(experts))
        if gain[a, f] <= 1e-6:
            break
        _exchange(domain, worth, inside, int(rows[a]), f)
    return domain


def evened(domain: Ints, pull: Floats, inside: NDArray[Any], load: Floats, n_domains: int, tolerance: float) -> Ints:
    """Exchanges with the fullest domain, at the least co-activation lost per load shed, until it is within the tolerance.

    Each exchange lowers the larger of the two domains' loads; where none does, the layer stays as uneven as it is.
    """
    domain = domain.copy()
    worth = pull + inside @ np.eye(n_domains)[domain]
    limit = load.sum() / n_domains * (1 + tolerance)
    for _ in range(MAX_SWAPS):
        of_domain = np.bincount(domain, load, minlength=n_domains)
        full = int(of_domain.argmax())
        if of_domain[full] <= limit:
            break
        mine, others = _loose(domain, worth, load, full), np.flatnonzero(domain != full)
        shed = load[mine][:, None] - load[others][None, :]
        helps = (shed > 0) & (of_domain[domain[others]][None, :] + shed < of_domain[full] * (1 - 1e-9))
        if not helps.any():
            break
        lost = -_gains(domain, worth, inside, mine)[:, others]
        useful = np.minimum(shed, of_domain[full] - limit)
        rate = np.where(helps, lost / np.maximum(useful, 1e-12), np.inf)
        a, b = divmod(int(rate.argmin()), len(others))
        _exchange(domain, worth, inside, int(mine[a]), int(others[b]))
    return domain


def _loose(domain: Ints, worth: Floats, load: Floats, full: int) -> Ints:
    """The experts of a domain that lose least co-activation by leaving, per load."""
    mine = np.flatnonzero(domain == full)
    away = worth[mine].copy()
    away[:, full] = -np.inf
    tie = (worth[mine, full] - away.max(axis=1)) / np.maximum(load[mine], 1e-12)
    return mine[np.argsort(tie, kind="stable")[:N_TRIED]]


def _gains(domain: Ints, worth: Floats, inside: NDArray[Any], rows: Ints) -> Floats:
    """What exchanging each expert of `rows` with each other expert gains, [rows, E]; zero within a domain."""
    here = worth[np.arange(len(domain)), domain]
    mine = domain[rows]
    gain: Floats = worth[rows][:, domain] + worth[:, mine].T - here[rows][:, None] - here[None, :] - 2.0 * inside[rows]
    return np.where(mine[:, None] == domain[None, :], 0.0, gain)


def _exchange(domain: Ints, worth: Floats, inside: NDArray[Any], e: int, f: int) -> None:
    a, b = int(domain[e]), int(domain[f])
    moved = inside[:, e] - inside[:, f]
    worth[:, a] -= moved
    worth[:, b] += moved
    domain[e], domain[f] = b, a
