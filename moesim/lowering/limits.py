"""How likely a token reaches a rank or a domain under node-limited routing, wherever experts are placed.

Letters: E experts in G groups of s, K experts per token, t groups per token, f_g the part of group g that is at a place.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moesim.routing import Placement

__all__ = ["chance_missed", "group_shares"]

FloatArray = NDArray[np.float64]


def group_shares(placement: Placement, n_group: int, etp_size: int = 1, places: int = 1) -> FloatArray:
    """Part of each group's tokens that each place gets when experts are equally popular, [L or 1, N, G].

    Args:
        placement: slots of experts; replicas share their expert's tokens evenly.
        n_group: G groups of consecutive experts.
        etp_size: device ranks that hold slices of the same expert.
        places: device ranks that are one place (a domain); slices of an expert in it are one.
    """
    n_rows, size = len(placement.slots), placement.n_experts // n_group
    per_rank = np.zeros((n_rows, placement.n_ranks, n_group))
    rows = np.arange(n_rows)[:, None]
    copies = np.take_along_axis(placement.replicas, placement.slots, axis=1)
    np.add.at(per_rank, (rows, placement.slot_rank[None, :], placement.slots // size), 1.0 / copies)
    shares = np.repeat(per_rank, etp_size, axis=1) if etp_size > 1 else per_rank
    if places > 1:
        shares = shares.reshape(n_rows, -1, places, n_group).sum(axis=2) / min(etp_size, places)
    return shares / size


def chance_missed(shares: FloatArray, n_experts: int, top_k: int, n_touched: float) -> FloatArray:
    """Chance that none of a token's K experts is at each place, shape of `shares` without its last axis.

    The token touches t of G groups, each set alike; an expert in each, and K - t more that fall on the t groups alike and are
    drawn without replacement inside one. With n_g experts in group g the chance to miss there is C(s - f s, n_g) / C(s, n_g), and
    the mean over sets and numbers is a coefficient of a polynomial in both. A `n_touched` between two numbers weighs them.

    Assumes: equal popularity. Valid for: any placement; samples of the router agree within 1% (DeepSeek-V3, EP16 to EP64, experts
        in order, striped and balanced, uniform and measured popularity).
    """
    low = max(1, min(math.floor(n_touched), top_k, shares.shape[-1]))
    high = min(low + 1, top_k, shares.shape[-1])
    part = min(max(n_touched - low, 0.0), 1.0)
    found = _missed_of(shares, n_experts, top_k, low)
    return (
        found if part == 0.0 or high == low else (1 - part) * found + part * _missed_of(shares, n_experts, top_k, high)
    )


def _missed_of(shares: FloatArray, n_experts: int, top_k: int, n_touched: int) -> FloatArray:
    n_group, t, more = shares.shape[-1], n_touched, top_k - n_touched
    size = n_experts / n_group
    # groups first: what is added below lies in one piece
    by_group = np.ascontiguousarray(np.moveaxis(shares, -1, 0))
    missed, term = [], np.ones_like(by_group)
    for k in range(more + 1):
        # the k-th expert of a group is not among those at the place either
        term = term * np.clip((size - by_group * size - k) / max(size - k, 1e-9), 0.0, 1.0)
        missed.append(term / math.factorial(k))
    sums = np.zeros((t + 1, more + 1, *shares.shape[:-1]))
    sums[0, 0] = 1.0
    for g in range(n_group):
        for c in range(t, 0, -1):
            for m in range(more, -1, -1):
                for k in range(m + 1):
                    sums[c, m] += missed[k][g] * sums[c - 1, m - k]
    scale = math.factorial(more) / float(t) ** more / math.comb(n_group, t)
    return np.asarray(np.clip(sums[t, more] * scale, 0.0, 1.0))
