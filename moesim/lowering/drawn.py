"""Copies of tokens that leave and enter each rank, from drawn counts, without more pairs of ranks than must be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.lowering.traffic import ExpertLayout, distinct, distinct_copies, powers
from moesim.routing import Placement

__all__ = ["drawn_copies", "slots_of_devices"]

FloatArray = NDArray[np.float64]
Four = tuple[FloatArray, FloatArray, FloatArray, FloatArray]
#: Elements of the largest array that copies are counted with; more layers are taken in blocks.
MAX_ELEMENTS = 2**22
#: Ranks up to which distinct tokens are counted by pair of ranks.
MAX_PAIRED_RANKS = 256


def drawn_copies(counts: NDArray[Any], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout) -> Four:
    """Token copies out and in per device rank, [L, n_ranks] each: scale-up out, in, NIC out, in."""
    if layout.tokens_are_everywhere or layout.n_ranks == 1:
        zero = np.zeros((counts.shape[0], layout.n_ranks))
        return zero, zero, zero, zero
    n, reach = layout.n_ranks, min(layout.domain_size, layout.n_ranks) * placement.slots_per_rank
    if layout.dedup:
        reach = max(reach, n if n <= MAX_PAIRED_RANKS else n // layout.domain_size)
    block = max(1, MAX_ELEMENTS // (n * max(reach, counts.shape[2])))
    found = [
        _copies_of(counts[i : i + block], tokens_per_rank, _layers_of(placement, i, block), layout)
        for i in range(0, len(counts), block)
    ]
    up_out, up_in, nic_out, nic_in = (np.concatenate([four[k] for four in found]) for k in range(4))
    return up_out, up_in, nic_out, nic_in


def _layers_of(placement: Placement, first: int, n: int) -> Placement:
    if len(placement.slots) == 1:
        return placement
    return Placement(placement.slots[first : first + n].copy(), placement.n_ranks, placement.n_experts)


def slots_of_devices(placement: Placement, layout: ExpertLayout) -> NDArray[np.int64]:
    """The expert in each slot of each device rank, [L or 1, R, slots of a rank]; slices of an expert rank hold the same."""
    slots = placement.slots.reshape(len(placement.slots), layout.ep_size, -1)
    return np.repeat(slots, layout.etp_size, axis=1) if layout.etp_size > 1 else slots


def _copies_of(counts: NDArray[Any], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout) -> Four:
    if not layout.dedup:
        return _direct(counts, placement, layout)
    n_ranks, domain = layout.n_ranks, min(layout.domain_size, layout.n_ranks)
    if n_ranks > max(MAX_PAIRED_RANKS, domain):
        return _wide(counts, tokens_per_rank, placement, layout)
    copies, crossing = distinct_copies(counts, tokens_per_rank, placement, layout)
    blocks = copies.reshape(counts.shape[0], n_ranks // domain, domain, n_ranks // domain, domain)
    inside = np.einsum("lpqpr->lpqr", blocks) * ~np.eye(domain, dtype=bool)
    up_out = inside.sum(axis=3).reshape(-1, n_ranks).astype(float)
    up_in = inside.sum(axis=2).reshape(-1, n_ranks).astype(float)
    if crossing is None:
        zero = np.zeros_like(up_out)
        return up_out, up_in, zero, zero
    nic_out, nic_in, fwd_out, fwd_in = _two_hop(blocks, crossing, n_ranks, domain)
    return up_out + fwd_out, up_in + fwd_in, nic_out, nic_in


def _near(counts: NDArray[Any], placement: Placement, layout: ExpertLayout) -> FloatArray:
    """Assignments from each rank to each rank of its own domain: [L, D, d, d]."""
    n_layers, n_ranks, n_experts = counts.shape
    domain = min(layout.domain_size, n_ranks)
    slots = slots_of_devices(placement, layout).reshape(-1, n_ranks // domain, 1, domain * placement.slots_per_rank)
    there = np.take_along_axis(counts.reshape(n_layers, n_ranks // domain, domain, n_experts), slots, axis=3)
    if placement.n_redundant:
        copies = np.take_along_axis(placement.replicas, slots.reshape(len(slots), -1), axis=1)
        there = there / copies.reshape(slots.shape)
    near: FloatArray = there.reshape(n_layers, n_ranks // domain, domain, domain, -1).sum(axis=4, dtype=float)
    return near


def _arriving(totals: NDArray[Any], placement: Placement, layout: ExpertLayout) -> FloatArray:
    """Assignments that reach each device rank, [L, ..., R], of totals by expert, [L, ..., E]."""
    slots = slots_of_devices(placement, layout)
    between = (1,) * (totals.ndim - 2)
    per_copy = totals / placement.replicas.reshape(len(slots), *between, -1)
    at = slots.reshape(len(slots), *between, -1)
    copies = np.take_along_axis(per_copy, at, axis=-1)
    arrived: FloatArray = copies.reshape(*totals.shape[:-1], layout.n_ranks, -1).sum(axis=-1)
    return arrived


def _direct(counts: NDArray[Any], placement: Placement, layout: ExpertLayout) -> Four:
    """One copy per assignment and slice, straight to its rank: pairs are looked at inside domains alone.

    Work grows with L R (E + d s), for domains of d ranks with s slots each.
    """
    n_layers, n_ranks = counts.shape[:2]
    domain = min(layout.domain_size, n_ranks)
    near = _near(counts, placement, layout)
    up = near * ~np.eye(domain, dtype=bool)
    up_out, up_in = up.sum(axis=3).reshape(n_layers, n_ranks), up.sum(axis=2).reshape(n_layers, n_ranks)
    if n_ranks == domain:
        return up_out, up_in, np.zeros_like(up_out), np.zeros_like(up_out)
    all_out = counts.sum(axis=2) * float(layout.etp_size)
    nic_out = all_out - near.sum(axis=3).reshape(n_layers, n_ranks)
    nic_in = _arriving(counts.sum(axis=1), placement, layout) - near.sum(axis=2).reshape(n_layers, n_ranks)
    return up_out, up_in, np.maximum(nic_out, 0.0), np.maximum(nic_in, 0.0)


def _wide(counts: NDArray[Any], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout) -> Four:
    """High-throughput traffic of many domains without a matrix over pairs of ranks.

    What the ranks of equal index in all other domains send to one rank is taken together: distinct tokens of a sum for a sum of
    distinct tokens, which differ by chance alone, about 1 / (2 T) for T tokens per source. What crosses from each rank to each
    domain, and what stays inside, is counted as in `distinct_copies`.
    """
    n_layers, n_ranks, n_experts = counts.shape
    domain = layout.domain_size
    n_domains, tokens = n_ranks // domain, np.maximum(tokens_per_rank, 1e-9)
    top_k = float(counts[0].sum()) / float(tokens.sum())
    (n_rank, at_rank), (n_domain, at_domain) = powers(placement, layout, top_k)
    by_source = tokens[None, :, None].astype(np.float32)
    crossing = distinct(_to_domains(counts, placement, layout), by_source, n_domain, at_domain[:, None, :])
    at_rank = at_rank.reshape(len(at_rank), -1, 1, domain) if at_rank.size > 1 else at_rank[..., None, None]
    crossing *= np.arange(n_ranks)[:, None] // domain != np.arange(n_domains)[None, :]
    own, by_place = ~np.eye(domain, dtype=bool), tokens.reshape(n_domains, domain)
    near = _near(counts, placement, layout)
    inside = distinct(_f32(near), _f32(by_place)[None, :, :, None], n_rank, at_rank) * own
    by_index = counts.reshape(n_layers, n_domains, domain, n_experts).sum(axis=1)
    sent = _arriving(by_index, placement, layout).reshape(n_layers, domain, n_domains, domain)
    far, far_tokens = sent.transpose(0, 2, 1, 3) - near, by_place.sum(axis=0) - by_place
    forwarded = distinct(_f32(far), _f32(far_tokens)[None, :, :, None], n_rank, at_rank) * own
    up = inside.astype(float) + forwarded
    nic_in = crossing.reshape(n_layers, n_domains, domain, n_domains).sum(axis=1).transpose(0, 2, 1)
    four = (up.sum(axis=3), up.sum(axis=2), crossing.sum(axis=2), nic_in)
    up_out, up_in, nic_out, nic_in = (np.asarray(x, dtype=float).reshape(n_layers, n_ranks) for x in four)
    return up_out, up_in, nic_out, nic_in


def _to_domains(counts: NDArray[Any], placement: Placement, layout: ExpertLayout) -> NDArray[np.float32]:
    """Assignments from each rank to each domain, slices of an expert counted once: [L, R, D]."""
    domain, n_experts = layout.domain_size, placement.n_experts
    slots = slots_of_devices(placement, layout).reshape(len(placement.slots), -1)
    share = np.zeros((len(slots), n_experts, layout.n_ranks // domain), np.float32)
    where = np.arange(slots.shape[1]) // (domain * placement.slots_per_rank)
    np.add.at(share, (np.arange(len(slots))[:, None], slots, where[None, :]), np.float32(1.0))
    share /= placement.replicas[:, :, None] * float(min(layout.etp_size, domain))
    crossing: NDArray[np.float32] = np.matmul(counts.astype(np.float32), share)
    return crossing


def _f32(x: FloatArray) -> NDArray[np.float32]:
    return x.astype(np.float32)


def _two_hop(copies: NDArray[np.float32], crossing: NDArray[np.float32], n_ranks: int, domain: int) -> Four:
    """High-throughput traffic: a token crosses to a domain once, to the peer of its own index, which forwards it inside.

    Args:
        copies: [L, D, d, D, d] distinct tokens by source domain and index, and destination domain and index.
        crossing: [L, n_ranks, D] distinct tokens by source rank and destination domain.
        n_ranks: ranks.
        domain: d, ranks of a domain.

    Returns:
        NIC out and in, forwarded out and in, [L, n_ranks] each.
    """
    n_layers, n_domains = copies.shape[0], n_ranks // domain
    remote = np.arange(n_ranks)[:, None] // domain != np.arange(n_domains)[None, :]
    crossing = crossing * remote
    nic_in = crossing.reshape(n_layers, n_domains, domain, n_domains).sum(axis=1).transpose(0, 2, 1)
    arriving = copies.sum(axis=1) - np.einsum("lpqpr->lqpr", copies)
    forwarded = np.where(np.eye(domain, dtype=bool)[None, :, None, :], 0.0, arriving)
    fwd_out = forwarded.sum(axis=3).transpose(0, 2, 1)
    fwd_in = forwarded.sum(axis=1)
    flat = (crossing.sum(axis=2), nic_in, fwd_out, fwd_in)
    nic_out, nic_in, fwd_out, fwd_in = (np.asarray(x, dtype=float).reshape(n_layers, n_ranks) for x in flat)
    return nic_out, nic_in, fwd_out, fwd_in
