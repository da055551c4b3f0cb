"""Where tokens start, where experts live, and the copies of tokens that travel between them.

Two ways to the same four numbers per rank: from drawn counts, and in closed form under equal popularity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ParallelError
from moesim.lowering.numbers import at_least, at_most
from moesim.ops import Num
from moesim.routing import Placement

__all__ = ["ExpertLayout", "distinct", "distinct_copies", "expected_copies", "slot_share", "tokens_per_assignment"]

FloatArray = NDArray[np.float64]


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


def slot_share(placement: Placement, layout: ExpertLayout) -> NDArray[np.float32]:
    """Part of each expert's assignments that each device rank gets a copy of, [L or 1, E, R]."""
    share = placement.share_on_rank().astype(np.float32)
    return np.repeat(share, layout.etp_size, axis=2) if layout.etp_size > 1 else share


def distinct_copies(
    counts: NDArray[np.int64], tokens_per_rank: FloatArray, placement: Placement, layout: ExpertLayout
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Distinct tokens from each rank to each rank, [L, R, R], and to each domain, [L, R, D] (None if there is one)."""
    n_ranks, domain = layout.n_ranks, min(layout.domain_size, layout.n_ranks)
    to_rank = np.matmul(counts.astype(np.float32), slot_share(placement, layout))
    tokens = np.maximum(tokens_per_rank, 1e-9).astype(np.float32)[None, :, None]
    top_k = float(counts[0].sum()) / max(float(np.sum(tokens_per_rank)), 1e-9)
    copies = distinct(to_rank, tokens, placement.n_slots, top_k, placement.n_slots / layout.ep_size, layout)
    if n_ranks == domain:
        return copies, None
    slices_there = min(layout.etp_size, domain)
    to_domain = to_rank.reshape(counts.shape[0], n_ranks, n_ranks // domain, domain).sum(axis=3) / slices_there
    n_there = placement.n_slots / layout.ep_size * domain / slices_there
    return copies, distinct(to_domain, tokens, placement.n_slots, top_k, n_there, layout)


def distinct(
    assignments: NDArray[np.float32], tokens: NDArray[np.float32], n_slots: int, top_k: float, n_there: float,
    layout: ExpertLayout,
) -> NDArray[np.float32]:  # fmt: skip
    """Expected distinct tokens among assignments to a group of experts.

    T (1 - (1 - c)^m) with c the mean chance of an expert there and m chosen so that equal popularity gives the exact chance of
    K picks without replacement to miss the group; exact for one expert too. Assumption in between.
    """
    if top_k <= 0:
        return np.zeros_like(assignments)
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
    touched = at_most(n_groups * (1.0 - _chance_none_there(n_slots, top_k, group_size)), float(layout.topk_group))
    whole = at_least(n_there / group_size, 1.0)
    all_missed = _chance_none_there(n_groups, touched, whole)
    part = at_most(n_there / group_size, 1.0)
    part_missed = (1.0 - part) * (1.0 - part / touched) ** at_least(top_k - touched, 0.0)
    return all_missed + (1.0 - all_missed) * part_missed


def tokens_per_assignment(n_slots: Num, top_k: Num, ep_size: int, limit: tuple[int, int]) -> Num:
    """Distinct tokens per token-expert pair on one of `ep_size` ranks, under equal popularity: R P(rank is reached) / K.

    `limit` is (groups, groups allowed) of node-limited routing.
    """
    layout = ExpertLayout(ep_size, ep_size, 1, ep_size, False, True, None, *limit)
    reached = 1.0 - _chance_missed(n_slots, top_k, n_slots / ep_size, layout)
    return reached * float(ep_size) / top_k


def _chance_none_there(n_slots: Num, top_k: Num, n_there: Num) -> Num:
    """Chance that K of E equally popular experts, drawn without replacement, miss n given ones: C(E-n, K) / C(E, K)."""
    left = n_slots - n_there - top_k
    room = at_least(left, 0.0)
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


def expected_copies(source_tokens: Num, n_slots: Num, top_k: Num, layout: ExpertLayout) -> tuple[Num, Num, Num, Num]:
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
