"""From routing decisions to what each rank must do: assignments, distinct experts, tile padding, and traffic.

Two ways to the same record: `drawn_load` from sampled counts per (layer, source rank, expert), and `expected_load` in closed
form for the bottleneck rank. Letters: T tokens of the instance, E experts, K experts per token, L MoE layers, R expert ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.ops import Num
from moesim.routing import Placement

__all__ = ["ExpertLayout", "MoeLoad", "drawn_load", "expected_load", "uniform_load"]

FloatArray = NDArray[np.float64]
MIN_TILE, MAX_TILE = 16.0, 128.0


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Where tokens start and where experts live, within one pipeline stage.

    Device rank r belongs to expert rank r // `etp_size`; devices are in scale-up domains of `domain_size`. With
    `tokens_are_everywhere` (attention not data-parallel) nothing is dispatched. `dedup` sends a token once per destination
    rank and once per destination domain; otherwise one copy per assignment travels (low-latency kernels).
    """

    n_ranks: int
    ep_size: int
    etp_size: int
    domain_size: int
    tokens_are_everywhere: bool
    dedup: bool

    def __post_init__(self) -> None:
        if self.ep_size * self.etp_size != self.n_ranks:
            raise ValueError("ep_size x etp_size must be n_ranks")


@dataclass(frozen=True, slots=True)
class MoeLoad:
    """What reached each rank, per MoE layer: shape [..., L, R], or [..., L, 1] for the expected bottleneck.

    `n_experts`, `n_slots` (replicas counted) and `top_k` are what was routed over; `*_copies` are token vectors that leave or
    enter a rank through scale-up ports and NICs.
    """

    n_experts: Num
    n_slots: Num
    top_k: Num
    n_assignments: Num
    n_padded: Num
    n_experts_hit: Num
    max_expert_tokens: Num
    up_out_copies: Num
    up_in_copies: Num
    nic_out_copies: Num
    nic_in_copies: Num
    counts: NDArray[np.int64] | None = None


def tile_rows(mean_tokens: Num) -> Num:
    """Rows of a grouped GEMM's tile: the power of two next above the mean tokens per hit expert, from 16 to 128.

    Assumption, after the tile choices of the fused-MoE kernels in vLLM and of CUTLASS grouped GEMMs.
    """
    if isinstance(mean_tokens, float):
        return 2.0 ** min(7.0, max(4.0, math.ceil(math.log2(max(mean_tokens, 1.0)))))
    return np.asarray(2.0 ** np.clip(np.ceil(np.log2(np.maximum(mean_tokens, 1.0))), 4.0, 7.0))


def drawn_load(
    counts: NDArray[np.int64], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout, top_k: int
) -> MoeLoad:
    """Load of every rank from sampled counts.

    Args:
        counts: [L, S, E] assignments by layer, source rank and expert; S is `layout.n_ranks`, or 1 where tokens are everywhere.
        tokens_per_rank: [S] tokens that start on each source rank.
        placement: slots of experts on expert ranks; replicas share an expert's load evenly.
        layout: ranks and domains.
        top_k: K.
    """
    per_expert = counts.sum(axis=1)
    slot_tokens = placement.slot_loads(per_expert)
    n_layers = counts.shape[0]
    by_rank = slot_tokens.reshape(n_layers, layout.ep_size, -1)
    assignments = by_rank.sum(axis=2)
    hit = (by_rank > 0).sum(axis=2).astype(float)
    tile = tile_rows(assignments / np.maximum(hit, 1.0))
    padded = (np.ceil(by_rank / np.asarray(tile)[..., None]) * np.asarray(tile)[..., None]).sum(axis=2)
    spread = layout.etp_size
    traffic = _traffic(counts, tokens_per_rank, placement, layout)
    return MoeLoad(
        n_experts=float(placement.n_experts), n_slots=float(placement.n_slots), top_k=float(top_k),
        n_assignments=np.repeat(assignments, spread, axis=1),
        n_padded=np.repeat(padded, spread, axis=1),
        n_experts_hit=np.repeat(hit, spread, axis=1),
        max_expert_tokens=np.repeat(by_rank.max(axis=2), spread, axis=1),
        up_out_copies=traffic[0], up_in_copies=traffic[1], nic_out_copies=traffic[2], nic_in_copies=traffic[3],
        counts=per_expert,
    )  # fmt: skip


def _traffic(
    counts: NDArray[np.int64], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout
) -> tuple[Num, Num, Num, Num]:
    """Token copies out and in per device rank, [L, n_ranks] each: scale-up out, in, NIC out, in."""
    if layout.tokens_are_everywhere or layout.n_ranks == 1:
        zero = np.zeros((counts.shape[0], layout.n_ranks))
        return zero, zero, zero, zero
    share = placement.share_on_rank().astype(np.float32)
    to_ep = np.matmul(counts.astype(np.float32), share)
    n_ranks, domain = layout.n_ranks, min(layout.domain_size, layout.n_ranks)
    tokens = np.maximum(tokens_per_rank, 1e-9).astype(np.float32)[None, :, None]
    n_per_rank = placement.n_slots / layout.ep_size
    copies = _distinct(to_ep, tokens, n_per_rank) if layout.dedup else to_ep
    copies = np.repeat(copies, layout.etp_size, axis=2)
    source_domain = np.arange(n_ranks) // domain
    local = source_domain[:, None] == source_domain[None, :]
    up = copies * (local & ~np.eye(n_ranks, dtype=bool))
    if n_ranks <= domain:
        zero = np.zeros((counts.shape[0], n_ranks))
        return up.sum(axis=2).astype(float), up.sum(axis=1).astype(float), zero, zero
    n_domains = n_ranks // domain
    if not layout.dedup:
        nic = copies * ~local
        sums = (up.sum(axis=2), up.sum(axis=1), nic.sum(axis=2), nic.sum(axis=1))
        return tuple(np.asarray(s, dtype=float) for s in sums)  # type: ignore[return-value]
    return _two_hop(copies, up, to_ep, tokens, n_per_rank, layout, n_domains, domain)


def _two_hop(
    copies: NDArray[np.float32], up: NDArray[np.float32], to_ep: NDArray[np.float32], tokens: NDArray[np.float32],
    n_per_rank: float, layout: ExpertLayout, n_domains: int, domain: int,
) -> tuple[Num, Num, Num, Num]:  # fmt: skip
    """High-throughput traffic: a token crosses to a domain once, to the peer of its own index, which forwards it inside."""
    n_layers, n_ranks, _ = copies.shape
    per_domain = (
        np.repeat(to_ep, layout.etp_size, axis=2).reshape(n_layers, n_ranks, n_domains, domain).sum(axis=3)
        / layout.etp_size
    )
    crossing = _distinct(per_domain, tokens, n_per_rank * domain / layout.etp_size)
    own = np.arange(n_ranks) // domain
    remote = own[:, None] != np.arange(n_domains)[None, :]
    crossing = crossing * remote
    nic_out = crossing.sum(axis=2)
    by_peer = crossing.reshape(n_layers, n_domains, domain, n_domains)
    nic_in = by_peer.sum(axis=1).transpose(0, 2, 1).reshape(n_layers, n_ranks)
    blocks = copies.reshape(n_layers, n_domains, domain, n_domains, domain)
    arriving = blocks.sum(axis=1) - np.einsum("lpqpr->lqpr", blocks)
    same_rank = np.eye(domain, dtype=bool)[None, :, None, :]
    forwarded = np.where(same_rank, 0.0, arriving)
    fwd_out = forwarded.sum(axis=3).transpose(0, 2, 1).reshape(n_layers, n_ranks)
    fwd_in = forwarded.sum(axis=1).reshape(n_layers, n_ranks)
    up_out, up_in = up.sum(axis=2) + fwd_out, up.sum(axis=1) + fwd_in
    return tuple(np.asarray(x, dtype=float) for x in (up_out, up_in, nic_out, nic_in))  # type: ignore[return-value]


def _distinct(
    assignments: NDArray[np.float32], tokens: NDArray[np.float32], n_experts_there: float
) -> NDArray[np.float32]:
    """Expected distinct tokens among assignments to a group of experts, as if each expert were chosen independently."""
    chance = np.minimum(assignments / (tokens * np.float32(n_experts_there)), 1.0)
    return np.asarray(tokens * (1.0 - (1.0 - chance) ** np.float32(n_experts_there)), dtype=np.float32)


def expected_load(
    inclusion: FloatArray, tokens: Num, placement: Placement, layout: ExpertLayout, source_tokens: Num
) -> MoeLoad:
    """Closed form for the fullest rank of each layer, [..., L, 1], from inclusion probabilities p [L, E].

    Means are exact for independent tokens: rank load T sum p_e, distinct experts sum 1 - (1 - p_e)^T. The excess of the fullest
    rank over its mean is sigma E[max of R normals] (Blom), which counts where ranks are alike; the hottest rank's mean counts
    where they are not. Assumes T p_e large enough for a normal.
    """
    share = placement.share_on_rank()
    p, top_k = inclusion, float(inclusion[0].sum())
    t = np.asarray(tokens, dtype=float)[..., None, None]
    mean = t * np.matmul(p[:, None, :], share)[:, 0, :]
    sigma = np.sqrt(t * np.matmul((p * (1.0 - p))[:, None, :], share)[:, 0, :])
    even = mean.mean(axis=-1, keepdims=True) + sigma.mean(axis=-1, keepdims=True) * normal_max(layout.ep_size)
    worst = np.minimum(np.maximum(mean.max(axis=-1, keepdims=True), even), t * top_k)
    chance = -np.expm1(t * np.log1p(-np.minimum(p, 1.0 - 1e-12)))
    hit = np.matmul(chance[..., None, :], (share > 0).astype(float))[..., 0, :].max(axis=-1, keepdims=True)
    peak = (t * p).max(axis=-1, keepdims=True)
    source = np.asarray(source_tokens, dtype=float)[..., None, None]
    sizes = (float(placement.n_experts), float(placement.n_slots), top_k)
    return _with_traffic(worst, hit, peak, False, t, source, sizes, layout)


def uniform_load(
    tokens: Num, n_experts: Num, top_k: Num, layout: ExpertLayout, source_tokens: Num, *,
    balanced: bool, rank_imbalance_ratio: Num | None = None,
) -> MoeLoad:  # fmt: skip
    """`expected_load` for equal popularity, without a router: tokens, experts, top-k and imbalance may be arrays.

    `rank_imbalance_ratio` puts the fullest rank at that multiple of the mean instead of what chance makes of it.
    """
    p = top_k / n_experts
    per_rank = n_experts / layout.ep_size
    mean = tokens * top_k / layout.ep_size
    if balanced:
        hit = per_rank * _clip_one(tokens * p)
        worst = mean
    else:
        hit = per_rank * _chance_hit(p, tokens)
        worst = mean + _sqrt(mean * (1.0 - p)) * normal_max(layout.ep_size)
    if rank_imbalance_ratio is not None:
        worst = mean * rank_imbalance_ratio
    peak = tokens * p if balanced else tokens * p + _sqrt(tokens * p * (1.0 - p)) * 2.0
    return _with_traffic(worst, hit, peak, balanced, tokens, source_tokens, (n_experts, n_experts, top_k), layout)


def _with_traffic(
    worst: Num,
    hit: Num,
    peak: Num,
    balanced: bool,
    tokens: Num,
    source_tokens: Num,
    sizes: tuple[Num, Num, Num],
    layout: ExpertLayout,
) -> MoeLoad:
    """Padding and traffic of the fullest rank; `sizes` are experts, slots and K."""
    _, n_slots, top_k = sizes
    per_hit = worst / _at_least(hit, 1e-9)
    tile = tile_rows(per_hit)
    tiles = _ceil(per_hit / tile - 1e-9) if balanced else _at_least(per_hit / tile + 0.5, 1.0)
    padded = hit * tiles * tile
    up, nic_out, nic_in, up_extra = _expected_copies(source_tokens, n_slots, top_k, layout)
    skew = worst * layout.ep_size / _at_least(tokens * top_k, 1e-9)
    return MoeLoad(*sizes, worst, padded, hit, peak, up + up_extra, up * skew + up_extra, nic_out, nic_in * skew)


def _expected_copies(source_tokens: Num, n_slots: Num, top_k: Num, layout: ExpertLayout) -> tuple[Num, Num, Num, Num]:
    """Mean copies per source rank under even load: to ranks of the own domain, over NICs out and in, and forwarded inside."""
    if layout.tokens_are_everywhere or layout.n_ranks == 1:
        zero = source_tokens * 0.0
        return zero, zero, zero, zero
    n, domain = layout.n_ranks, min(layout.domain_size, layout.n_ranks)
    per_rank = n_slots / layout.ep_size
    to_rank = _copies_to(source_tokens, top_k, n_slots, per_rank, layout.dedup)
    up = to_rank * float(domain - 1)
    if n <= domain:
        return up, up * 0.0, up * 0.0, up * 0.0
    if not layout.dedup:
        nic = to_rank * float(n - domain)
        return up, nic, nic, up * 0.0
    n_other = n // domain - 1
    crossing = _copies_to(source_tokens, top_k, n_slots, per_rank * domain / layout.etp_size, True) * float(n_other)
    forwarded = to_rank * float((n - domain) * (domain - 1)) / float(domain)
    return up, crossing, crossing, forwarded


def _copies_to(tokens: Num, top_k: Num, n_slots: Num, n_there: Num, dedup: bool) -> Num:
    chance = top_k / n_slots
    return tokens * (1.0 - (1.0 - chance) ** n_there) if dedup else tokens * chance * n_there


def normal_max(n: int) -> float:
    """Expected maximum of n standard normals, by Blom's formula (1958); within 2% for n up to 1,000.

    >>> round(normal_max(8), 2)
    1.43
    """
    if n <= 1:
        return 0.0
    from statistics import NormalDist

    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def _chance_hit(p: Num, tokens: Num) -> Num:
    if isinstance(p, float) and isinstance(tokens, float):
        return 1.0 if p >= 1.0 else -math.expm1(tokens * math.log1p(-p))
    return np.asarray(-np.expm1(tokens * np.log1p(-np.minimum(p, 1.0 - 1e-12))))


def _clip_one(x: Num) -> Num:
    return min(1.0, x) if isinstance(x, float) else np.minimum(1.0, x)


def _sqrt(x: Num) -> Num:
    return math.sqrt(x) if isinstance(x, float) else np.sqrt(x)


def _ceil(x: Num) -> Num:
    return float(math.ceil(x)) if isinstance(x, float) else np.ceil(x)


def _at_least(x: Num, low: float) -> Num:
    return max(low, x) if isinstance(x, float) else np.maximum(x, low)
