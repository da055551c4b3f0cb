"""Expert loads behind the load labels of aiconfigurator's MoE tables, rebuilt so that every row gets load statistics.

The tables name a distribution (``balanced``, ``power_law_1.01``, ``power_law_1.2``), not the loads. The rule that made them
is public (aiconfigurator, docs/POWER_LAW_DISTRIBUTION.md and collector/helper.py) and is written down here anew, with T
tokens, E experts, K top-k, R ranks:

- ``balanced``: token t takes experts (t + i * ceil(E / K)) mod E, i < K (spread evenly if there are fewer tokens than the
  stride); the timed rank owns the first E / R experts.
- ``power_law_a``: loads are independent draws from a density ~ x^-a, scaled to T * K assignments, capped at T per expert, the
  rest handed round-robin to the least loaded expert of every rank; tokens are filled expert by expert, hottest first; the
  *most loaded* rank is timed. Five draws are averaged there; here a seeded average stands for the expectation.

Where the timed layer routes within expert groups (DeepSeek-V3: best 4 of 8 groups), the label is not what ran: a token's
experts outside its best groups are replaced. `group_limit` repeats that, ties going to the lowest index (assumption).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

__all__ = ["TILES", "LoadSummary", "Routing", "balanced", "group_limit", "power_law", "rank_load", "summarise"]

TILES = (16, 64, 128)
"""Row tiles whose counts are kept: the smallest, middle and largest that grouped GEMM kernels commonly use."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Kinds of tokens: how many tokens are of each kind [S], and the experts they chose [S, K]."""

    weights: NDArray[np.int64]
    chosen: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """Load of one rank, averaged over draws: tokens that touch it, assignments, experts hit, hottest expert, row tiles."""

    n_tokens: float
    n_assignments: float
    n_experts_hit: float
    max_expert_load: float
    n_tiles: tuple[float, ...]


def balanced(n_tokens: int, n_experts: int, topk: int) -> Routing:
    """Tokens spread round-robin over the experts."""
    stride = -(-n_experts // topk)
    if n_tokens >= stride:
        start = np.arange(min(n_tokens, n_experts), dtype=np.float64)
        weights = np.bincount(np.arange(n_tokens) % n_experts, minlength=len(start))
    else:
        start = np.arange(n_tokens) * stride / n_tokens
        weights = np.ones(n_tokens, dtype=np.int64)
    chosen = np.floor((start[:, None] + np.arange(topk)[None, :] * stride) % n_experts).astype(np.int64)
    return Routing(weights.astype(np.int64), chosen)


def power_law(
    n_tokens: int, n_experts: int, topk: int, ep_size: int, exponent: float, rng: np.random.Generator
) -> Routing:
    """One draw of power-law routing, its most loaded rank moved to rank 0.

    Raises:
        InputError: an exponent of exactly 1 (the inverse CDF used by the source is not defined there).
    """
    if exponent == 1.0:
        raise InputError("power-law exponent must not be 1", field="distribution", value=exponent)
    low, high = (1.0, n_tokens * 0.8) if n_tokens * topk > n_experts else (0.01, 2.0)
    q = 1.0 - exponent
    draws = ((high**q - low**q) * rng.random(n_experts) + low**q) ** (1.0 / q)
    total = n_tokens * topk
    counts = np.minimum(np.round(draws / draws.sum() * total), n_tokens)
    per_rank = counts.reshape(ep_size, n_experts // ep_size)
    _settle(per_rank, total, n_tokens)
    worst = int(per_rank.sum(axis=1).argmax())
    per_rank[[0, worst]] = per_rank[[worst, 0]]
    return _fill_tokens(per_rank.reshape(-1).astype(np.int64), n_tokens, topk)


def group_limit(routing: Routing, n_experts: int, n_group: int, topk_group: int) -> Routing:
    """Replace choices outside each token's best `topk_group` of `n_group` groups, as group-limited routing does."""
    n_kinds, topk = routing.chosen.shape
    hot = np.zeros((n_kinds, n_experts), dtype=np.int64)
    np.put_along_axis(hot, routing.chosen, 1, axis=1)
    grouped = hot.reshape(n_kinds, n_group, n_experts // n_group)
    score = np.minimum(grouped.sum(axis=2), 2)
    best = np.argsort(-score, axis=1, kind="stable")[:, :topk_group]
    allowed = np.zeros((n_kinds, n_group), dtype=np.int64)
    np.put_along_axis(allowed, best, 1, axis=1)
    rank_key = np.repeat(allowed, n_experts // n_group, axis=1) * (1 + hot)
    chosen = np.argsort(-rank_key, axis=1, kind="stable")[:, :topk]
    return Routing(routing.weights, chosen)


def rank_load(routing: Routing, n_local: int, topk_slots_run: bool = False) -> tuple[NDArray[np.float64], float]:
    """Loads of the first rank's `n_local` experts and the number of tokens that touch it.

    With `topk_slots_run`, slots of touching tokens that belong to other ranks run as well, as one more expert (the case
    for SGLang 0.5.10's Triton and Marlin kernels, seen in the measured times).
    """
    local = routing.chosen < n_local
    weight = np.broadcast_to(routing.weights[:, None], local.shape)[local]
    counts = np.bincount(routing.chosen[local], weights=weight, minlength=n_local).astype(np.float64)
    touching = float(routing.weights[local.any(axis=1)].sum())
    if topk_slots_run:
        counts = np.append(counts, touching * routing.chosen.shape[1] - counts.sum())
    return counts, touching


def summarise(loads: list[tuple[NDArray[np.float64], float]]) -> LoadSummary:
    """Average load statistics over draws."""
    return LoadSummary(
        n_tokens=float(np.mean([touching for _, touching in loads])),
        n_assignments=float(np.mean([c.sum() for c, _ in loads])),
        n_experts_hit=float(np.mean([(c > 0).sum() for c, _ in loads])),
        max_expert_load=float(np.mean([c.max() for c, _ in loads])),
        n_tiles=tuple(float(np.mean([np.ceil(c / tile).sum() for c, _ in loads])) for tile in TILES),
    )


def _fill_tokens(counts: NDArray[np.int64], n_tokens: int, topk: int) -> Routing:
    """Give experts to tokens column by column, hottest expert first; tokens alike are one kind."""
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    cuts = np.unique(np.concatenate(([0], (ends % n_tokens), [n_tokens])))
    cuts = cuts[cuts <= n_tokens]
    positions = cuts[:-1, None] + np.arange(topk)[None, :] * n_tokens
    chosen = order[np.searchsorted(ends, positions, side="right")]
    return Routing(np.diff(cuts), chosen)


def _settle(per_rank: NDArray[np.float64], total: int, cap: int) -> None:
    """Give out (or take back) what rounding and capping left over, in equal shares per rank with room, in place."""
    while (rest := int(total - per_rank.sum())) != 0:
        room = (per_rank < cap if rest > 0 else per_rank > 0).any(axis=1)
        ranks = np.flatnonzero(room)
        shares = np.full(len(ranks), abs(rest) // len(ranks))
        shares[: abs(rest) % len(ranks)] += 1
        for rank, share in zip(ranks[shares > 0], shares[shares > 0], strict=True):
            if rest > 0:
                per_rank[rank] = _fill(per_rank[rank], int(share), cap)
            else:
                per_rank[rank] = -_fill(-per_rank[rank], int(share), 0)


def _fill(values: NDArray[np.float64], n_units: int, cap: int) -> NDArray[np.float64]:
    """Add `n_units` one by one to the smallest value below `cap` (water filling)."""
    n_units = min(n_units, int((cap - values).sum()))
    ordered = np.sort(values)
    room = ordered * np.arange(1, len(ordered) + 1) - np.cumsum(ordered)
    n_raised = int(np.searchsorted(room, n_units, side="right"))
    level = np.floor((n_units + ordered[:n_raised].sum()) / n_raised)
    filled = np.maximum(values, min(level, cap))
    rest = n_units - int((filled - values).sum())
    if rest > 0:
        filled[np.argsort(filled, kind="stable")[:rest]] += 1.0
    return filled
