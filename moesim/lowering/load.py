"""From routing decisions to what each rank must do: assignments, distinct experts, tile padding, and traffic.

Two ways to the same record: `drawn_load` from sampled counts per (layer, source rank, expert), and `expected_load` in closed
form for the bottleneck rank. Letters: T tokens of the instance, E experts, K experts per token, L MoE layers, R expert ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ParallelError
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
    rank and once per destination domain; otherwise one copy per assignment travels (low-latency kernels). Whole sequences
    start on one of `attention_dp_size` groups of neighbouring ranks, which share the group's tokens out; None deals single
    tokens to all ranks. A token's experts lie in `topk_group` of `n_group` groups of neighbouring experts (node-limited routing).
    """

    n_ranks: int
    ep_size: int
    etp_size: int
    domain_size: int
    tokens_are_everywhere: bool
    dedup: bool
    attention_dp_size: int | None = None
    n_group: int = 1
    topk_group: int = 1

    def __post_init__(self) -> None:
        if self.ep_size * self.etp_size != self.n_ranks:
            raise ValueError("ep_size x etp_size must be n_ranks")
        if self.n_ranks % min(self.domain_size, self.n_ranks):
            raise ParallelError(
                f"the {self.n_ranks} ranks of a stage do not fill whole scale-up domains", value=self.n_ranks,
                allowed=f"less than {self.domain_size} or a multiple of it",
            )  # fmt: skip
        if self.n_ranks % (self.attention_dp_size or 1):
            raise ValueError("attention_dp_size must divide n_ranks")


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
        return float(2.0 ** min(7.0, max(4.0, math.ceil(math.log2(max(mean_tokens, 1.0))))))
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
    if layout.etp_size > 1:
        share = np.repeat(share, layout.etp_size, axis=2)
    if not layout.dedup:
        return _direct(counts, share, layout)
    n_ranks, domain = layout.n_ranks, min(layout.domain_size, layout.n_ranks)
    to_rank = np.matmul(counts.astype(np.float32), share)
    tokens = np.maximum(tokens_per_rank, 1e-9).astype(np.float32)[None, :, None]
    top_k = float(counts[0].sum()) / max(float(np.sum(tokens_per_rank)), 1e-9)
    copies = _distinct(to_rank, tokens, placement.n_slots, top_k, placement.n_slots / layout.ep_size, layout)
    blocks = copies.reshape(counts.shape[0], n_ranks // domain, domain, n_ranks // domain, domain)
    inside = np.einsum("lpqpr->lpqr", blocks) * ~np.eye(domain, dtype=bool)
    up_out = inside.sum(axis=3).reshape(-1, n_ranks).astype(float)
    up_in = inside.sum(axis=2).reshape(-1, n_ranks).astype(float)
    if n_ranks == domain:
        zero = np.zeros_like(up_out)
        return up_out, up_in, zero, zero
    slices_there = min(layout.etp_size, domain)
    to_domain = to_rank.reshape(counts.shape[0], n_ranks, n_ranks // domain, domain).sum(axis=3) / slices_there
    n_there = placement.n_slots / layout.ep_size * domain / slices_there
    crossing = _distinct(to_domain, tokens, placement.n_slots, top_k, n_there, layout)
    nic_out, nic_in, fwd_out, fwd_in = _two_hop(blocks, crossing, n_ranks, domain)
    return up_out + fwd_out, up_in + fwd_in, nic_out, nic_in


def _direct(
    counts: NDArray[np.int64], share: NDArray[np.float32], layout: ExpertLayout
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """One copy per assignment and slice, straight to its rank. Only traffic inside domains needs the full matrix."""
    n_layers, n_ranks, n_experts = counts.shape
    domain = min(layout.domain_size, n_ranks)
    n_domains = n_ranks // domain
    near_counts = counts.astype(np.float32).reshape(n_layers, n_domains, domain, n_experts)
    near_share = share.reshape(share.shape[0], n_experts, n_domains, domain).transpose(0, 2, 1, 3)
    near = np.matmul(near_counts, near_share).astype(float)
    up = near * ~np.eye(domain, dtype=bool)
    up_out, up_in = up.sum(axis=3).reshape(n_layers, n_ranks), up.sum(axis=2).reshape(n_layers, n_ranks)
    if n_domains == 1:
        return up_out, up_in, np.zeros_like(up_out), np.zeros_like(up_out)
    all_out = counts.sum(axis=2) * float(layout.etp_size)
    all_in = np.matmul(counts.sum(axis=1, dtype=float)[:, None, :], share.astype(float))[:, 0, :]
    nic_out = all_out - near.sum(axis=3).reshape(n_layers, n_ranks)
    nic_in = all_in - near.sum(axis=2).reshape(n_layers, n_ranks)
    return up_out, up_in, np.maximum(nic_out, 0.0), np.maximum(nic_in, 0.0)


def _two_hop(
    copies: NDArray[np.float32], crossing: NDArray[np.float32], n_ranks: int, domain: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
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


def _distinct(
    assignments: NDArray[np.float32], tokens: NDArray[np.float32], n_slots: int, top_k: float, n_there: float,
    layout: ExpertLayout,
) -> NDArray[np.float32]:  # fmt: skip
    """Expected distinct tokens among assignments to a group of experts.

    T (1 - (1 - c)^m) with c the mean chance of an expert there and m chosen so that equal popularity gives the exact chance of
    K picks without replacement to miss the group; exact for one expert too. Assumption in between.
    """
    chance = np.minimum(assignments / (tokens * np.float32(n_there)), 1.0)
    miss_one = math.log1p(-min(top_k / n_slots, 1.0 - 1e-12))
    miss_all = _chance_missed(float(n_slots), top_k, n_there, layout)
    power = np.float32(min(math.log(max(miss_all, 1e-30)) / miss_one, 1e6))
    return np.asarray(np.minimum(tokens * (1.0 - (1.0 - chance) ** power), assignments), dtype=np.float32)


def _chance_missed(n_slots: Num, top_k: Num, n_there: Num, layout: ExpertLayout) -> Num:
    """Chance that a token has no expert among n neighbouring ones, under equal popularity and node-limited routing.

    With limits: a token touches g = min(limit, what it would touch without) groups, an expert in each, and K - g more among them
    (assumption; samples of the router agree within 2%). The n experts are several whole groups, or part of one.
    """
    if layout.topk_group >= layout.n_group:
        return _chance_none_there(n_slots, top_k, n_there)
    n_groups, group_size = float(layout.n_group), n_slots / float(layout.n_group)
    touched = _at_most(n_groups * (1.0 - _chance_none_there(n_slots, top_k, group_size)), float(layout.topk_group))
    whole = _at_least(n_there / group_size, 1.0)
    all_missed = _chance_none_there(n_groups, touched, whole)
    part = _at_most(n_there / group_size, 1.0)
    part_missed = (1.0 - part) * (1.0 - part / touched) ** _at_least(top_k - touched, 0.0)
    return all_missed + (1.0 - all_missed) * part_missed


def _chance_none_there(n_slots: Num, top_k: Num, n_there: Num) -> Num:
    """Chance that K of E equally popular experts, drawn without replacement, miss n given ones: C(E-n, K) / C(E, K)."""
    left = n_slots - n_there - top_k
    room = _at_least(left, 0.0)
    log_chance = (
        _log_gamma(room + top_k + 1.0) + _log_gamma(n_slots - top_k + 1.0)
        - _log_gamma(room + 1.0) - _log_gamma(n_slots + 1.0)
    )  # fmt: skip
    if isinstance(log_chance, float):
        return math.exp(min(log_chance, 0.0)) if left >= 0.0 else 0.0
    return np.where(np.asarray(left) >= 0.0, np.exp(np.minimum(log_chance, 0.0)), 0.0)


def _log_gamma(x: Num) -> Num:
    """Exact for floats; Stirling's series for arrays, within 6e-4 for x >= 1 (scipy is too slow to import here)."""
    if isinstance(x, float):
        return math.lgamma(x)
    return np.asarray((x - 0.5) * np.log(x) - x + 0.9189385332 + 1.0 / (12.0 * x) - 1.0 / (360.0 * x**3))


def expected_load(
    inclusion: FloatArray, tokens: Num, placement: Placement, layout: ExpertLayout, source_tokens: Num,
    capacity: Num | None = None,
) -> MoeLoad:  # fmt: skip
    """Closed form for the fullest rank of each layer, [..., L, 1], from inclusion probabilities p [L, E].

    Means are exact for independent tokens: rank load T sum p_e, distinct experts sum 1 - (1 - p_e)^T. The excess of the fullest
    rank over its mean is sigma E[max of R normals] (Blom), which counts where ranks are alike; the hottest rank's mean counts
    where they are not. Assumes T p_e large enough for a normal.

    Args:
        inclusion: [L, E].
        tokens: T of the pass; a grid of points is an array [..., 1, 1].
        placement: slots of experts on expert ranks.
        layout: ranks and domains.
        source_tokens: tokens that start on the fullest source rank, shaped like `tokens`.
        capacity: assignments that an expert takes before it drops more; None: all.
    """
    share = placement.share_on_rank()
    p, top_k = inclusion, float(inclusion[0].sum())
    t = np.asarray(tokens, dtype=float)
    limit = np.asarray(np.inf if capacity is None else capacity, dtype=float)
    if capacity is not None:
        p = _kept_share(p, t, limit)
    if t.ndim and t.shape[-2:] != (1, 1):
        raise ValueError("a grid of token numbers must end in two axes of length 1, for layers and ranks")
    mean = t * np.matmul(p[..., None, :], share)[..., 0, :]
    sigma = np.sqrt(t * np.matmul((p * (1.0 - p))[..., None, :], share)[..., 0, :])
    worst = np.minimum(_fullest(mean, sigma, layout.ep_size), t * top_k)
    worst = np.minimum(worst, limit * (placement.n_slots / layout.ep_size))
    chance = -np.expm1(t * np.log1p(-np.minimum(p, 1.0 - 1e-12)))
    there = (share > 0).astype(float)
    hit_mean = np.matmul(chance[..., None, :], there)[..., 0, :]
    hit_sigma = np.sqrt(np.matmul((chance * (1.0 - chance))[..., None, :], there)[..., 0, :])
    hit = np.minimum(_fullest(hit_mean, hit_sigma, layout.ep_size), placement.n_slots / layout.ep_size)
    hit = np.minimum(hit, np.maximum(worst, hit_mean.mean(axis=-1, keepdims=True)))
    peak = np.minimum((t * p).max(axis=-1, keepdims=True), limit)
    sizes = (float(placement.n_experts), float(placement.n_slots), top_k)
    return _with_traffic(worst, hit, peak, False, t, np.asarray(source_tokens, dtype=float), sizes, layout)


def _kept_share(p: FloatArray, tokens: FloatArray, capacity: FloatArray) -> FloatArray:
    """Inclusion probabilities less what a full expert drops: E[min(N, c)] / T of a normal N with mean T p."""
    mean = tokens * p
    sigma = np.sqrt(np.maximum(mean * (1.0 - p), 1e-12))
    z = (capacity - mean) / sigma
    above = 0.5 * np.vectorize(math.erfc)(z / math.sqrt(2.0))
    over = sigma * (np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) - z * above)
    return np.asarray((mean - np.maximum(over, 0.0)) / np.maximum(tokens, 1e-9))


def _fullest(mean: FloatArray, sigma: FloatArray, n_ranks: int) -> FloatArray:
    """Expected maximum over ranks (last axis, kept): the hottest rank's mean, or the excess of equal ranks by chance."""
    even = mean.mean(axis=-1, keepdims=True) + sigma.mean(axis=-1, keepdims=True) * normal_max(n_ranks)
    return np.asarray(np.maximum(mean.max(axis=-1, keepdims=True), even))


def uniform_load(
    tokens: Num, n_experts: Num, top_k: Num, layout: ExpertLayout, source_tokens: Num, *, balanced: bool,
    rank_imbalance_ratio: Num | None = None,
) -> MoeLoad:  # fmt: skip
    """`expected_load` for equal popularity, without a router: any of tokens, experts and top-k may be arrays.

    `rank_imbalance_ratio` puts the fullest rank at that multiple of the mean instead of what chance makes of it.
    """
    p = top_k / n_experts
    per_rank = n_experts / layout.ep_size
    mean = tokens * top_k / layout.ep_size
    excess = normal_max(layout.ep_size)
    if balanced:
        hit = per_rank * _clip_one(tokens * p)
        worst = mean
    else:
        worst = _at_most(mean + _sqrt(mean * (1.0 - p)) * excess, tokens * _at_most(top_k, per_rank))
        chance = _chance_hit(p, tokens)
        hit = per_rank * chance
        hit = _at_most(_at_most(hit + _sqrt(hit * (1.0 - chance)) * excess, per_rank), _larger(worst, hit))
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
    n_experts, n_slots, top_k = sizes
    per_hit = worst / _at_least(hit, 1e-9)
    tile = tile_rows(per_hit)
    # a random count fills its last tile half on average; where every token goes everywhere, counts are certain
    rounded, random = _ceil(per_hit / tile - 1e-9), _at_least(per_hit / tile + 0.5, 1.0)
    certain = balanced | (top_k >= n_experts)
    tiles = np.where(certain, rounded, random) if isinstance(certain, np.ndarray) else rounded if certain else random
    padded = hit * tiles * tile
    up, nic_out, nic_in, up_extra = _expected_copies(tokens / float(layout.n_ranks), n_slots, top_k, layout)
    skew = worst * layout.ep_size / _at_least(tokens * top_k, 1e-9)
    # the fullest source sends more than the mean one; who receives most is decided by the experts
    fuller = source_tokens * float(layout.n_ranks) / _at_least(tokens, 1e-9)
    return MoeLoad(
        *sizes, worst, padded, hit, peak, up * fuller + up_extra, up * skew + up_extra, nic_out * fuller, nic_in * skew
    )


def _expected_copies(source_tokens: Num, n_slots: Num, top_k: Num, layout: ExpertLayout) -> tuple[Num, Num, Num, Num]:
    """Mean copies per source rank under even load: to ranks of the own domain, over NICs out and in, and forwarded inside."""
    if layout.tokens_are_everywhere or layout.n_ranks == 1:
        zero = source_tokens * 0.0
        return zero, zero, zero, zero
    n, domain = layout.n_ranks, min(layout.domain_size, layout.n_ranks)
    per_rank = n_slots / layout.ep_size
    to_rank = _copies_to(source_tokens, top_k, n_slots, per_rank, layout)
    up = to_rank * float(domain - 1)
    if n <= domain:
        return up, up * 0.0, up * 0.0, up * 0.0
    if not layout.dedup:
        nic = to_rank * float(n - domain)
        return up, nic, nic, up * 0.0
    n_other = n // domain - 1
    slices_there = min(layout.etp_size, domain)
    crossing = _copies_to(source_tokens, top_k, n_slots, per_rank * domain / slices_there, layout) * float(n_other)
    forwarded = to_rank * float((n - domain) * (domain - 1)) / float(domain)
    return up, crossing, crossing, forwarded


def _copies_to(tokens: Num, top_k: Num, n_slots: Num, n_there: Num, layout: ExpertLayout) -> Num:
    if layout.dedup:
        return tokens * (1.0 - _chance_missed(n_slots, top_k, n_there, layout))
    return tokens * (top_k / n_slots * n_there)


_FEW_NORMALS = {0: 0.0, 1: 0.0, 2: 0.5642, 3: 0.8463, 4: 1.0294, 5: 1.1630}


def normal_max(n: int) -> float:
    """Expected maximum of n standard normals: exact to four figures up to 5, above by Blom's formula (1958), within 2%.

    >>> round(normal_max(8), 2)
    1.43
    """
    if n in _FEW_NORMALS:
        return _FEW_NORMALS[n]
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


def _at_most(x: Num, high: Num) -> Num:
    return min(high, x) if isinstance(x, float) and isinstance(high, float) else np.minimum(x, high)


def _larger(x: Num, low: Num) -> Num:
    return max(low, x) if isinstance(x, float) and isinstance(low, float) else np.maximum(x, low)
