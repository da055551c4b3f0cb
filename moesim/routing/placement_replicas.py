"""Which copy of an expert serves a token, and what that makes of traffic and balance.

Letters: T tokens, L layers, K experts per token, R ranks, d ranks of a scale-up domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.placement import Placement, check_domain

__all__ = ["DispatchCopies", "ReplicaRule", "choose_slots", "dispatch_copies", "home_ranks", "slot_counts"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
N_SWEEPS = 4


class ReplicaRule(StrEnum):
    """How a copy is chosen.

    `round_robin`: every source rank takes turns over all copies. `nearest`: turns over the copies on the own rank, else over
    those of the own domain, else over all. `least_loaded`: copies are filled so that the ranks of this very pass come out even;
    it knows all counts of the pass beforehand, which is the bound of what engines that balance while dispatching can do.
    """

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    NEAREST = "nearest"


@dataclass(frozen=True, slots=True, eq=False)
class DispatchCopies:
    """What one dispatch sends per layer, [L] each, summed over tokens.

    `own_rank`: assignments served where the token is. `in_domain`: distinct other ranks of the own domain per token.
    `cross_domain`: distinct other domains per token (kernels that send a token to a domain once). `cross_assignments`:
    assignments outside the domain (kernels that send one copy per assignment).
    """

    own_rank: Ints
    in_domain: Ints
    cross_domain: Ints
    cross_assignments: Ints


def home_ranks(n_tokens: int, n_ranks: int) -> Ints:
    """The rank each token starts on when tokens are dealt in equal runs: [T]."""
    return np.arange(n_tokens, dtype=np.int64) * n_ranks // max(n_tokens, 1)


def choose_slots(
    experts: NDArray[Any],
    placement: Placement,
    rule: ReplicaRule,
    source_rank: NDArray[Any],
    domain_size: int | None = None,
) -> NDArray[np.int32]:
    """The slot that serves each choice: [T, L, K]; each holds the chosen expert.

    Args:
        experts: [T, L, K].
        placement: of L layers, or one row for all.
        rule: how copies are chosen.
        source_rank: [T], where tokens start.
        domain_size: d; all ranks by default.

    Raises:
        InputError: arrays that do not fit each other.
        ParallelError: domains that do not divide the ranks.
    """
    chosen, source = np.asarray(experts, dtype=np.int64), np.asarray(source_rank, dtype=np.int64)
    if chosen.ndim != 3 or source.shape != chosen.shape[:1]:
        raise InputError(
            "needs experts [tokens, layers, k] and one source rank per token", field="experts", value=chosen.shape
        )
    if source.size and not 0 <= source.min() <= source.max() < placement.n_ranks:
        raise InputError(
            "out of range", field="source_rank", value=int(source.max()), allowed=f"0..{placement.n_ranks - 1}"
        )
    rows = len(placement.slots)
    if rows not in (1, chosen.shape[1]):
        raise InputError(
            "placement is of another number of layers", field="placement", value=rows, allowed=f"1 or {chosen.shape[1]}"
        )
    d = check_domain(domain_size, placement.n_ranks)
    out = np.empty(chosen.shape, np.int32)
    for layer in range(chosen.shape[1]):
        slots = placement.slots[layer % rows]
        if rule is ReplicaRule.LEAST_LOADED:
            out[:, layer] = _by_quota(chosen[:, layer], slots, placement)
        else:
            out[:, layer] = _in_turn(chosen[:, layer], slots, placement, source, d, near=rule is ReplicaRule.NEAREST)
    return out


def slot_counts(slots: NDArray[Any], placement: Placement) -> Ints:
    """Tokens per slot, [L, n_slots], of chosen slots [T, L, K]."""
    n_layers, n = slots.shape[1], placement.n_slots
    flat = slots.astype(np.int64) + np.arange(n_layers)[None, :, None] * n
    return np.bincount(flat.ravel(), minlength=n_layers * n).reshape(n_layers, n)


def dispatch_copies(
    ranks: NDArray[Any], source_rank: NDArray[Any], n_ranks: int, domain_size: int | None = None
) -> DispatchCopies:
    """Copies that a dispatch sends, from the rank of each choice [T, L, K] and the rank of each token [T]."""
    d = check_domain(domain_size, n_ranks)
    own = np.asarray(source_rank, dtype=np.int32)[:, None, None]
    place = np.sort(np.asarray(ranks, dtype=np.int32), axis=2)
    domain = place // d
    first_rank, first_domain = _is_first(place), _is_first(domain)
    near = domain == own // d
    return DispatchCopies(
        own_rank=(place == own).sum(axis=(0, 2)),
        in_domain=(first_rank & near & (place != own)).sum(axis=(0, 2)),
        cross_domain=(first_domain & ~near).sum(axis=(0, 2)),
        cross_assignments=(~near).sum(axis=(0, 2)),
    )


def _is_first(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    first = np.ones(ordered.shape, np.bool_)
    np.not_equal(ordered[..., 1:], ordered[..., :-1], out=first[..., 1:])
    return first


def _in_turn(chosen: Ints, slots: Ints, placement: Placement, source: Ints, d: int, *, near: bool) -> Ints:
    """Turns of each (source rank, expert) over its allowed copies; sources start at different copies."""
    n_ranks, n_experts = placement.n_ranks, placement.n_experts
    order = np.argsort(slots, kind="stable")
    rank = placement.slot_rank[order]
    here = np.arange(n_ranks)[:, None]
    distance = np.zeros((n_ranks, len(order)), np.int8)
    if near:
        distance += rank[None, :] != here
        distance += rank[None, :] // d != here // d
    expert = slots[order]
    starts = np.searchsorted(expert, np.arange(n_experts))
    nearest = np.minimum.reduceat(distance, starts, axis=1)
    allowed = distance == nearest[:, expert]
    allowed_source, allowed_at = np.nonzero(allowed)
    n_allowed = np.bincount(allowed_source * n_experts + expert[allowed_at], minlength=n_ranks * n_experts)
    first = np.cumsum(n_allowed) - n_allowed
    key = (source[:, None] * n_experts + chosen).ravel()
    turn = _turns(key, n_ranks * n_experts) + np.repeat(source, chosen.shape[1])
    picked: Ints = order[allowed_at[first[key] + turn % n_allowed[key]]]
    return picked.reshape(chosen.shape)


def _turns(key: Ints, n_keys: int) -> Ints:
    """How many earlier entries have the same key."""
    order = np.argsort(key, kind="stable")
    counts = np.bincount(key, minlength=n_keys)
    turn = np.empty(len(key), np.int64)
    turn[order] = np.arange(len(key)) - np.repeat(np.cumsum(counts) - counts, counts)
    return turn


def _by_quota(chosen: Ints, slots: Ints, placement: Placement) -> Ints:
    """Slots filled to the quotas that even the ranks out; an expert's tokens are mixed over its copies."""
    counts = np.bincount(chosen.ravel(), minlength=placement.n_experts)
    order = np.argsort(slots, kind="stable")
    quota = _whole_quotas(_level_quotas(counts, slots, placement)[order], slots[order], counts)
    key = chosen.ravel()
    mixed = np.mod(_turns(key, placement.n_experts) * 0.6180339887498949, 1.0)
    ranked = np.lexsort((mixed, key))
    out = np.empty(len(key), np.int64)
    out[ranked] = order[np.repeat(np.arange(len(order)), quota)]
    return out.reshape(chosen.shape)


def _level_quotas(counts: Ints, slots: Ints, placement: Placement) -> Floats:
    """Tokens per slot, [n_slots]: copies of one expert after another are filled like water to a common rank load, in sweeps."""
    copies = np.bincount(slots, minlength=placement.n_experts)
    quota = (counts / copies)[slots]
    rank = placement.slot_rank
    load = np.bincount(rank, quota, minlength=placement.n_ranks).astype(np.float64)
    several = np.flatnonzero((copies > 1) & (counts > 0))
    held = [np.flatnonzero(slots == e) for e in several]
    for _ in range(N_SWEEPS):
        for expert, at in zip(several, held, strict=True):
            np.subtract.at(load, rank[at], quota[at])
            quota[at] = _filled(load[rank[at]], float(counts[expert]))
            np.add.at(load, rank[at], quota[at])
    return quota


def _filled(base: Floats, water: float) -> Floats:
    """Water poured over columns of height `base` until they are level."""
    order = np.argsort(base)
    height = base[order]
    level = (water + np.cumsum(height)) / np.arange(1, len(base) + 1)
    n = int((level > height).sum())
    filled: Floats = np.maximum(level[max(n, 1) - 1] - base, 0.0)
    return filled


def _whole_quotas(quota: Floats, expert: Ints, counts: Ints) -> Ints:
    """Whole tokens per slot that sum to the experts' counts: running sums rounded within each expert."""
    first = np.searchsorted(expert, np.arange(len(counts)))
    ends = np.cumsum(quota)
    start = (ends - quota)[first][expert]
    upto = np.rint(ends - start).astype(np.int64)
    last = np.append(expert[1:] != expert[:-1], True)
    upto[last] = counts[expert[last]]
    before = np.zeros_like(upto)
    before[1:] = np.where(expert[1:] == expert[:-1], upto[:-1], 0)
    whole: Ints = np.maximum(upto - before, 0)
    return whole
