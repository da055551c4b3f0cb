"""From routing decisions to what each rank must do: assignments, distinct experts, tile padding, and traffic.

Two ways to the same record: `drawn_load` from sampled counts per (layer, source rank, expert), and `expected_load` in closed
form for the bottleneck rank. Letters: T tokens of the instance, E experts, K experts per token, L MoE layers, R expert ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.lowering.drawn import drawn_copies
from moesim.lowering.numbers import at_least, at_most, ceil, chance_hit, clip_one, larger, normal_max, sqrt
from moesim.lowering.pairs import pair_copies
from moesim.lowering.traffic import ExpertLayout, expected_copies, tokens_per_pair
from moesim.ops import Num
from moesim.routing import Placement

__all__ = ["ExpertLayout", "MoeLoad", "drawn_load", "expected_load", "uniform_load"]

FloatArray = NDArray[np.float64]
MIN_TILE, MAX_TILE = 16.0, 128.0


@dataclass(frozen=True, slots=True)
class MoeLoad:
    """What reached each rank, per MoE layer: shape [..., L, R], or [..., L, 1] for the expected bottleneck.

    `n_experts`, `n_slots` (replicas counted) and `top_k` are what was routed over; `*_copies` are token vectors that leave or
    enter a rank through scale-up ports and NICs; `tokens_per_pair` distinct tokens for each pair of token and expert on a rank;
    `pair_copies` the copies by pair of ranks, [L, R, R] from row to column.
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
    tokens_per_pair: Num = 1.0
    counts: NDArray[np.int64] | None = None
    pair_copies: tuple[FloatArray, FloatArray] | None = None


def tile_rows(mean_tokens: Num) -> Num:
    """Rows of a grouped GEMM's tile: the power of two next above the mean tokens per hit expert, from 16 to 128.

    Assumption, after the tile choices of the fused-MoE kernels in vLLM and of CUTLASS grouped GEMMs.
    """
    if isinstance(mean_tokens, float):
        return float(2.0 ** min(7.0, max(4.0, math.ceil(math.log2(max(mean_tokens, 1.0))))))
    return np.asarray(2.0 ** np.clip(np.ceil(np.log2(np.maximum(mean_tokens, 1.0))), 4.0, 7.0))


def drawn_load(
    counts: NDArray[Any], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout, top_k: int, *,
    pairs: bool = False,
) -> MoeLoad:  # fmt: skip
    """Load of every rank from sampled counts.

    Args:
        counts: [L, S, E] assignments by layer, source rank and expert; S is `layout.n_ranks`, or 1 where tokens are everywhere.
        tokens_per_rank: [S] tokens that start on each source rank.
        placement: slots of experts on expert ranks; replicas share an expert's load evenly.
        layout: ranks and domains.
        top_k: K.
        pairs: also keep the copies of every pair of ranks.
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
    traffic = drawn_copies(counts, tokens_per_rank, placement, layout)
    return MoeLoad(
        n_experts=float(placement.n_experts), n_slots=float(placement.n_slots), top_k=float(top_k),
        n_assignments=np.repeat(assignments, spread, axis=1),
        n_padded=np.repeat(padded, spread, axis=1),
        n_experts_hit=np.repeat(hit, spread, axis=1),
        max_expert_tokens=np.repeat(by_rank.max(axis=2), spread, axis=1),
        up_out_copies=traffic[0], up_in_copies=traffic[1], nic_out_copies=traffic[2], nic_in_copies=traffic[3],
        tokens_per_pair=tokens_per_pair(float(placement.n_slots), float(top_k), layout),
        counts=per_expert, pair_copies=pair_copies(counts, tokens_per_rank, placement, layout) if pairs else None,
    )  # fmt: skip


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
    sigma = np.sqrt(t * np.matmul((p * np.maximum(1.0 - p, 0.0))[..., None, :], share)[..., 0, :])
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
        hit = per_rank * clip_one(tokens * p)
        worst = mean
    else:
        worst = at_most(mean + sqrt(mean * (1.0 - p)) * excess, tokens * at_most(top_k, per_rank))
        chance = chance_hit(p, tokens)
        hit = per_rank * chance
        hit = at_most(at_most(hit + sqrt(hit * (1.0 - chance)) * excess, per_rank), larger(worst, hit))
    if rank_imbalance_ratio is not None:
        worst = mean * rank_imbalance_ratio
    peak = tokens * p if balanced else tokens * p + sqrt(tokens * p * (1.0 - p)) * 2.0
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
    per_hit = worst / at_least(hit, 1e-9)
    tile = tile_rows(per_hit)
    # a random count fills its last tile half on average; where every token goes everywhere, counts are certain
    rounded, random = ceil(per_hit / tile - 1e-9), at_least(per_hit / tile + 0.5, 1.0)
    certain = balanced | (top_k >= n_experts)
    tiles = np.where(certain, rounded, random) if isinstance(certain, np.ndarray) else rounded if certain else random
    padded = hit * tiles * tile
    up, nic_out, nic_in, up_extra = expected_copies(tokens / float(layout.n_ranks), n_slots, top_k, layout)
    skew = worst * layout.ep_size / at_least(tokens * top_k, 1e-9)
    # the fullest source sends more than the mean one; who receives most is decided by the experts
    fuller = source_tokens * float(layout.n_ranks) / at_least(tokens, 1e-9)
    return MoeLoad(
        *sizes, worst, padded, hit, peak, up * fuller + up_extra, up * skew + up_extra, nic_out * fuller, nic_in * skew,
        tokens_per_pair(n_slots, top_k, layout),
    )  # fmt: skip
