"""Which rank holds which expert, and what that makes of the load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, ParallelError

__all__ = ["Placement", "check_domain", "check_slots", "contiguous", "given", "striped", "trivial"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Expert slots of all ranks, rank after rank: each holds one expert; an expert in several slots shares its tokens evenly.

    Attributes:
        slots: [L or 1, n_slots], the expert in each slot; one row serves every layer.
        n_ranks: R; slots / R of them lie on each rank.
        n_experts: E.
    """

    slots: Ints
    n_ranks: int
    n_experts: int

    def __post_init__(self) -> None:
        if self.slots.ndim != 2 or self.slots.shape[1] % self.n_ranks:
            raise ParallelError("slots must divide over the ranks", field="routing.placement", value=self.slots.shape)
        if self.slots.min() < 0 or self.slots.max() >= self.n_experts:
            worst = int(self.slots.max() if self.slots.max() >= self.n_experts else self.slots.min())
            raise InputError("expert out of range", field="routing.placement", value=worst,
                             allowed=f"0..{self.n_experts - 1}")  # fmt: skip
        if (self.replicas == 0).any():
            missing = np.argwhere(self.replicas == 0)[0]
            raise InputError(
                f"expert {missing[1]} has no slot", field="routing.placement", hint="place each at least once"
            )
        self.slots.flags.writeable = False

    @property
    def n_slots(self) -> int:
        """Slots of all ranks together."""
        return int(self.slots.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """Slots on one rank."""
        return self.n_slots // self.n_ranks

    @property
    def n_redundant(self) -> int:
        """Slots beyond one for each expert."""
        return self.n_slots - self.n_experts

    @property
    def is_in_order(self) -> bool:
        """Whether every layer has each expert once, in order."""
        return self.n_redundant == 0 and len(self.slots) == 1 and bool((np.diff(self.slots[0]) == 1).all())

    @property
    def slot_rank(self) -> Ints:
        """The rank of each slot: [n_slots]."""
        return np.arange(self.n_slots, dtype=np.int64) // self.slots_per_rank

    @property
    def replicas(self) -> Ints:
        """Slots of each expert: [L or 1, E]."""
        rows = len(self.slots)
        flat = (self.slots + np.arange(rows)[:, None] * self.n_experts).ravel()
        return np.bincount(flat, minlength=rows * self.n_experts).reshape(rows, self.n_experts)

    def slot_loads(self, counts: NDArray[Any]) -> Floats:
        """Tokens per slot, an expert's tokens split evenly over its slots: [L, n_slots] of counts [L, E]."""
        share = np.asarray(counts, dtype=np.float64) / self.replicas
        slots = np.broadcast_to(self.slots, (len(share), self.n_slots))
        loads: Floats = np.take_along_axis(share, slots, axis=1)
        return loads

    def rank_loads(self, counts: NDArray[Any]) -> Floats:
        """Tokens per rank: [L, R] of counts [L, E]; rows sum to the counts' rows."""
        per_slot = self.slot_loads(counts)
        loads: Floats = per_slot.reshape(len(per_slot), self.n_ranks, self.slots_per_rank).sum(axis=2)
        return loads

    def held(self) -> NDArray[np.bool_]:
        """Whether a rank holds a copy of an expert: [L or 1, E, R]."""
        rows = len(self.slots)
        held = np.zeros((rows, self.n_experts, self.n_ranks), np.bool_)
        held[np.arange(rows)[:, None], self.slots, self.slot_rank[None, :]] = True
        return held

    def share_on_rank(self) -> Floats:
        """The part of each expert's tokens that each rank serves: [L or 1, E, R]; sums to 1 over ranks."""
        rows = len(self.slots)
        share = np.zeros((rows, self.n_experts, self.n_ranks))
        layer = np.arange(rows)[:, None]
        np.add.at(share, (layer, self.slots, self.slot_rank[None, :]), 1.0)
        share /= self.replicas[:, :, None]
        return share


def contiguous(n_experts: int, n_ranks: int) -> Placement:
    """Experts in order, E / R on each rank.

    Raises:
        ParallelError: R does not divide E.

    >>> contiguous(4, 2).slots.tolist()
    [[0, 1, 2, 3]]
    """
    _check_divides(n_experts, n_ranks)
    return Placement(np.arange(n_experts, dtype=np.int64)[None, :], n_ranks, n_experts)


def striped(n_experts: int, n_ranks: int) -> Placement:
    """Experts dealt out in turn: rank r holds r, r + R, r + 2R, ...

    Raises:
        ParallelError: R does not divide E.

    >>> striped(4, 2).slots.tolist()
    [[0, 2, 1, 3]]
    """
    _check_divides(n_experts, n_ranks)
    slots = np.arange(n_experts, dtype=np.int64).reshape(-1, n_ranks).T.reshape(1, -1)
    return Placement(np.ascontiguousarray(slots), n_ranks, n_experts)


def trivial(n_experts: int, n_ranks: int, n_slots: int) -> Placement:
    """Slots filled with experts in order, starting again at expert 0 when all have one: what engines do without balancing.

    Source: SGLang's `--init-expert-location trivial` (physical expert i holds logical expert i mod E).

    Raises:
        ParallelError: too few slots, or slots that R does not divide.

    >>> trivial(4, 3, 6).slots.tolist()
    [[0, 1, 2, 3, 0, 1]]
    """
    check_slots(n_experts, n_ranks, n_slots)
    return Placement((np.arange(n_slots, dtype=np.int64) % n_experts)[None, :], n_ranks, n_experts)


def given(per_rank: tuple[tuple[int, ...], ...], n_experts: int) -> Placement:
    """A placement as a user lists it: the experts in each rank's slots, the same for all layers.

    Raises:
        InputError: ranks of different slot counts, an expert out of range or without a slot.
    """
    widths = {len(rank) for rank in per_rank}
    if len(widths) != 1 or 0 in widths:
        raise InputError("every rank must list the same number of experts", field="routing.placement.given",
                         value=[len(rank) for rank in per_rank])  # fmt: skip
    slots = np.array(per_rank, dtype=np.int64).reshape(1, -1)
    return Placement(slots, len(per_rank), n_experts)


def check_slots(n_experts: int, n_ranks: int, n_slots: int) -> None:
    """Refuse slots that cannot hold the experts or do not divide over the ranks.

    Raises:
        ParallelError: too few slots, or slots that R does not divide.
    """
    if n_ranks < 1 or n_slots < n_experts or n_slots % n_ranks:
        raise ParallelError("expert slots must be at least the experts and divide over the ranks", field="routing.placement",
                            value=f"{n_slots} slots, {n_ranks} ranks, {n_experts} experts",
                            allowed=f"a multiple of {n_ranks} from {n_experts} on")  # fmt: skip


def check_domain(domain_size: int | None, n_ranks: int) -> int:
    """Ranks of a scale-up domain, at most all of them.

    Raises:
        ParallelError: it does not divide the ranks.
    """
    size = n_ranks if domain_size is None else min(domain_size, n_ranks)
    if size < 1 or n_ranks % size:
        raise ParallelError("scale-up domains must divide the ranks", field="domain_size", value=size,
                            allowed=f"a divisor of {n_ranks}")  # fmt: skip
    return size


def _check_divides(n_experts: int, n_ranks: int) -> None:
    if n_ranks < 1 or n_experts % n_ranks:
        fits = [r for r in range(1, n_experts + 1) if n_experts % r == 0]
        raise ParallelError(f"{n_ranks} ranks do not divide {n_experts} experts", field="ep_size", value=n_ranks,
                            allowed=f"one of {fits}", hint="or add redundant experts")  # fmt: skip
