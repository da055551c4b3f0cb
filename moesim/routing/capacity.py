"""Capacity: how many tokens an expert takes, which are dropped beyond that, and what padding adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

__all__ = ["DropRule", "Kept", "apply_capacity", "capped_counts", "expert_capacity", "padded_counts"]

Ints = NDArray[np.int64]


class DropRule(StrEnum):
    """Which assignments go when an expert is full."""

    ARRIVAL = "arrival"
    WEIGHT = "weight"


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What is left of one layer's assignments: tokens x K = assignments + drops.

    Attributes:
        kept: [n_tokens, K], whether the assignment is carried out.
        counts: [E], tokens that each expert computes.
        dropped: [E], assignments that each expert refused.
    """

    kept: NDArray[np.bool_]
    counts: Ints
    dropped: Ints

    @property
    def n_assignments(self) -> int:
        """Assignments carried out."""
        return int(self.counts.sum())

    @property
    def n_dropped(self) -> int:
        """Assignments dropped."""
        return int(self.dropped.sum())


def expert_capacity(n_tokens: int, n_experts: int, top_k: int, capacity_factor: float | None) -> int:
    """Slots of one expert: ceil(c T K / E), at most T; T itself without a factor (dropless).

    Source: GShard, arXiv 2006.16668 section 3.1; Switch Transformer, arXiv 2101.03961 equation 3.

    >>> expert_capacity(128, 8, 2, 1.25)
    40
    """
    if capacity_factor is None:
        return n_tokens
    if not capacity_factor > 0 or not math.isfinite(capacity_factor):
        raise InputError("must be more than zero", field="capacity_factor", value=capacity_factor)
    # the small term keeps 1.1 x 10 from being 12
    return min(n_tokens, math.ceil(capacity_factor * n_tokens * top_k / n_experts - 1e-9))


def apply_capacity(
    experts: NDArray[Any],
    n_experts: int,
    capacity: int,
    rule: DropRule = DropRule.ARRIVAL,
    weights: NDArray[Any] | None = None,
) -> Kept:
    """Drop what exceeds each expert's capacity in one layer.

    Args:
        experts: [n_tokens, K], tokens in order of arrival, choices in order of preference.
        n_experts: E.
        capacity: slots of each expert.
        rule: `arrival`: all first choices in token order, then all second choices, and so on; `weight`: the lowest router
            weights go first.
        weights: [n_tokens, K], needed by `weight`.

    Raises:
        InputError: `weight` without weights.
    """
    chosen = np.asarray(experts, dtype=np.int64)
    if rule is DropRule.WEIGHT and weights is None:
        raise InputError("dropping by weight needs the router's weights", field="weights")
    by_choice = chosen.T.ravel()  # first choices of all tokens, then second ones
    if rule is DropRule.WEIGHT:
        priority = np.argsort(-np.asarray(weights, dtype=np.float64).T.ravel(), kind="stable")
    else:
        priority = np.arange(by_choice.size)
    line = priority[np.argsort(by_choice[priority], kind="stable")]  # expert after expert, each in its order
    counts = np.bincount(by_choice, minlength=n_experts)
    start = np.cumsum(counts) - counts
    place = np.arange(by_choice.size) - start[by_choice[line]]
    kept = np.empty(by_choice.size, np.bool_)
    kept[line] = place < capacity
    left = np.minimum(counts, capacity)
    return Kept(kept.reshape(chosen.shape[::-1]).T, left, counts - left)


def capped_counts(counts: NDArray[Any], capacity: int) -> tuple[Ints, Ints]:
    """Counts that fit and counts that are dropped, of any shape; which tokens they are does not matter here."""
    whole = np.asarray(counts, dtype=np.int64)
    fit = np.minimum(whole, capacity)
    return fit, whole - fit


def padded_counts(counts: NDArray[Any], tile: int) -> Ints:
    """Rows that a kernel computes when each expert's tokens are rounded up to whole tiles; no tokens, no tile.

    >>> padded_counts(np.array([0, 1, 64, 65]), 64).tolist()
    [0, 64, 64, 128]
    """
    if tile < 1:
        raise InputError("must be at least 1", field="tile", value=tile)
    whole = np.asarray(counts, dtype=np.int64)
    return -(-whole // tile) * tile
