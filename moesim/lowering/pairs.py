"""Copies of tokens by pair of ranks, for simulations finer than one transfer per rank; sums agree with `drawn.drawn_copies`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.lowering.traffic import ExpertLayout, distinct_copies, slot_share
from moesim.routing import Placement

__all__ = ["pair_copies"]

FloatArray = NDArray[np.float64]


def pair_copies(
    counts: NDArray[np.int64], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout
) -> tuple[FloatArray, FloatArray]:
    """[L, R, R] from row to column, through scale-up ports and through NICs.

    Without dedup a copy per assignment goes straight. With it a token goes once to each rank of its own domain, once over the NIC
    to its peer in each other domain, and from there once to each rank that needs it.
    """
    n, domain = layout.n_ranks, min(layout.domain_size, layout.n_ranks)
    if layout.tokens_are_everywhere or n == 1:
        nothing = np.zeros((len(counts), n, n))
        return nothing, nothing
    at = np.arange(n)
    near = at[:, None] // domain == at[None, :] // domain
    if not layout.dedup:
        copies = np.matmul(counts.astype(np.float32), slot_share(placement, layout)).astype(float)
        return copies * (near & ~np.eye(n, dtype=bool)), copies * ~near
    to_ranks, to_domains = distinct_copies(counts, tokens_per_rank, placement, layout)
    copies = to_ranks.astype(float)
    up = copies * (near & ~np.eye(n, dtype=bool))
    nic = np.zeros_like(up)
    if to_domains is None:
        return up, nic
    n_domains = n // domain
    nic.reshape(-1, n, n_domains, domain)[:, at, :, at % domain] = to_domains.transpose(1, 0, 2)
    nic *= ~near
    # what peers of equal index in other domains brought goes on inside, unless it is for the peer itself
    far = (copies * ~near).reshape(-1, n_domains, domain, n_domains, domain).sum(axis=1)
    inside = up.reshape(-1, n_domains, domain, n_domains, domain)
    for d in range(n_domains):
        inside[:, d, :, d, :] += far[:, :, d, :] * ~np.eye(domain, dtype=bool)
    return up, nic
