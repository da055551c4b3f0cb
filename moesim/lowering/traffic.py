"""Where tokens start, where experts live, and the copies of tokens that travel between them.

Two ways to the same four numbers per rank: from drawn counts, and in closed form under equal popularity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ParallelError
from moesim.lowering.limits import chance_missed, group_shares
from moesim.lowering.numbers import at_least, at_most
from moesim.ops import Num
from moesim.routing import Placement

__all__ = [
    "ExpertLayout",
    "distinct",
    "distinct_copies",
    "expected_copies",
    "limited_to",
    "powers",
    "slot_share",
    "tokens_per_assignment",
    "tokens_per_pair",
]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Where tokens start and where experts live, within one pipeline stage.

    Device rank r belongs to expert rank r // `etp_size`; devices are in scale-up domains of `domain_size`. With
    `tokens_are_everywhere` (attention not data-parallel) nothing is dispatched. `dedup` sends a token once per destination
    rank and once per destination domain; otherwise one copy per assignment travels (low-latency kernels). Whole sequences
    start on one of `attention_dp_size` groups of neighbouring ranks, which share the group's tokens out; None deals single
    tokens to all ranks. A token's experts lie in `topk_group` of `n_group` groups of neighbouring experts (node-limited routing);
    `missed` are the mean chances that a token has no expert on a rank and in a domain, where experts are not in order.
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
    missed: tuple[float, float] | None = None

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


def limited_to(layout: ExpertLayout, n_group: int, topk_group: int, top_k: int, placement: Placement) -> ExpertLayout:
    """The layout of a block whose tokens may reach `topk_group` of `n_group` groups of experts, as they are placed."""
    if topk_group >= n_group:
        return layout
    limited = replace(layout, n_group=n_group, topk_group=topk_group)
    if placement.is_in_order or layout.n_ranks == 1 or layout.tokens_are_everywhere:
        return limited
    rank, domain = (_missed_at(placement, limited, top_k, shares) for shares in _shares(placement, limited))
    return replace(limited, missed=(float(rank.mean()), float(domain.mean())))


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
    (n_rank, at_rank), (n_domain, at_domain) = powers(placement, layout, top_k)
    copies = distinct(to_rank, tokens, n_rank, at_rank[:, None, :])
    if n_ranks == domain:
        return copies, None
    slices_there = min(layout.etp_size, domain)
    to_domain = to_rank.reshape(counts.shape[0], n_ranks, n_ranks // domain, domain).sum(axis=3) / slices_there
    return copies, distinct(to_domain, tokens, n_domain, at_domain[:, None, :])


def distinct(
    assignments: NDArray[np.float32], tokens: NDArray[np.float32], n_there: float, power: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Expected distinct tokens among assignments to a group of experts.

    T (1 - (1 - c)^m) with c the mean chance of a slot there and m (`powers`) chosen so that equal popularity gives the exact
    chance of a token's picks to miss the group; exact for one expert too. Assumption in between.
    """
    chance = np.minimum(assignments / (tokens * np.float32(n_there)), 1.0)
    return np.asarray(np.minimum(tokens * (1.0 - (1.0 - chance) ** power), assignments), dtype=np.float32)


def powers(
    placement: Placement, layout: ExpertLayout, top_k: float
) -> tuple[tuple[float, NDArray[np.float32]], tuple[float, NDArray[np.float32]]]:
    """For ranks and for domains: slots there, and m of `distinct` at each place, [L or 1, R or D] ([1, 1] if all are alike)."""
    domain = min(layout.domain_size, layout.n_ranks)
    per_rank = placement.n_slots / layout.ep_size
    there = (per_rank, per_rank * domain / min(layout.etp_size, domain))
    if layout.missed is None or top_k <= 0:
        alike = (np.full((1, 1), _chance_missed(float(placement.n_slots), max(top_k, 1e-9), n, layout)) for n in there)
        chances = [(missed, top_k / placement.n_slots) for missed in alike]
    else:
        found = _shares(placement, layout)
        chances = [
            (_missed_at(placement, layout, round(top_k), shares), shares.mean(axis=-1) * (top_k / n))
            for shares, n in zip(found, there, strict=True)
        ]
    rank, domains = (_power(missed, chance) for missed, chance in chances)
    return (there[0], rank), (there[1], domains)


def _power(missed: FloatArray, chance: FloatArray | float) -> NDArray[np.float32]:
    one = np.log1p(-np.clip(chance, 1e-12, 1.0 - 1e-12))
    return np.asarray(np.minimum(np.log(np.maximum(missed, 1e-30)) / one, 1e6), dtype=np.float32)


def _shares(placement: Placement, layout: ExpertLayout) -> tuple[FloatArray, FloatArray]:
    """Parts of each group of experts on each rank and in each domain."""
    domain = min(layout.domain_size, layout.n_ranks)
    return (
        group_shares(placement, layout.n_group, layout.etp_size),
        group_shares(placement, layout.n_group, layout.etp_size, domain),
    )


def _missed_at(placement: Placement, layout: ExpertLayout, top_k: int, shares: FloatArray) -> FloatArray:
    n_experts, n_groups = float(placement.n_experts), float(layout.n_group)
    touched = n_groups * (1.0 - float(_chance_none_there(n_experts, float(top_k), n_experts / n_groups)))
    return chance_missed(shares, placement.n_experts, max(top_k, 1), min(touched, float(layout.topk_group)))


def _chance_missed(n_slots: Num, top_k: Num, n_there: Num, layout: ExpertLayout) -> Num:
    """Chance that a token has no expert among n neighbouring ones, under equal popularity and node-limited routing.

    With limits: a token touches g = min(limit, what it would touch without) groups, an expert in each, and K - g more among them
    (assumption; samples of the router agree within 1%). The n experts are several whole groups, or part of one. Elsewhere experts
    lie as `limits.chance_missed` says.
    """
    if layout.topk_group >= layout.n_group:
        return _chance_none_there(n_slots, top_k, n_there)
    n_groups, group_size = float(layout.n_group), n_slots / float(layout.n_group)
    touched = at_most(n_groups * (1.0 - _chance_none_there(n_slots, top_k, group_size)), float(layout.topk_group))
    whole = at_least(n_there / group_size, 1.0)
    all_missed = _chance_none_there(n_groups, touched, whole)
    part = at_most(n_there / group_size, 1.0)
    again = at_most(n_there / at_least(group_size - 1.0, 1e-9), 1.0)
    part_missed = (1.0 - part) * (1.0 - again / touched) ** at_least(top_k - touched, 0.0)
    return all_missed + (1.0 - all_missed) * part_missed


def tokens_per_assignment(n_slots: Num, top_k: Num, ep_size: int, limit: tuple[int, int]) -> Num:
    """Distinct tokens per token-expert pair on one of `ep_size` ranks, under equal popularity: R P(rank is reached) / K.

    `limit` is (groups, groups allowed) of node-limited routing.
    """
    layout = ExpertLayout(ep_size, ep_size, 1, ep_size, False, True, None, *limit)
    reached = 1.0 - _chance_missed(n_slots, top_k, n_slots / ep_size, layout)
    return reached * float(ep_size) / top_k


def tokens_per_pair(n_slots: Num, top_k: Num, layout: ExpertLayout) -> Num:
    """`tokens_per_assignment` of a layout, with its limit and placement."""
    if layout.missed is not None:
        return (1.0 - layout.missed[0]) * float(layout.ep_size) / top_k
    return tokens_per_assignment(n_slots, top_k, layout.ep_size, (layout.n_group, layout.topk_group))


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
    to_rank = _copies_to(source_tokens, top_k, n_slots, per_rank, layout, 0)
    up = to_rank * float(domain - 1)
    if n <= domain:
        return up, up * 0.0, up * 0.0, up * 0.0
    if not layout.dedup:
        nic = to_rank * float(n - domain)
        return up, nic, nic, up * 0.0
    n_other = n // domain - 1
    slices_there = min(layout.etp_size, domain)
    crossing = _copies_to(source_tokens, top_k, n_slots, per_rank * domain / slices_there, layout, 1) * float(n_other)
    forwarded = to_rank * float((n - domain) * (domain - 1)) / float(domain)
    return up, crossing, crossing, forwarded


def _copies_to(tokens: Num, top_k: Num, n_slots: Num, n_there: Num, layout: ExpertLayout, kind: int) -> Num:
    """Mean copies to one rank (`kind` 0) or one domain (1)."""
    if not layout.dedup:
        return tokens * (top_k / n_slots * n_there)
    if layout.missed is not None:
        return tokens * (1.0 - layout.missed[kind])
    return tokens * (1.0 - _chance_missed(n_slots, top_k, n_there, layout))
