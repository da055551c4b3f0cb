"""Many ranks with two micro-batches each: all at once, as vectors over ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.sim.books import Group
from moesim.sim.schedule import Exchange
from moesim.sim.twin_parts import NEVER, Chain, Log, expect_both, largest, smallest

__all__ = ["ManyRanks"]

Floats = NDArray[np.float64]


class _Half:
    """One micro-batch of all ranks: on the way to a join, and some may still be in the collective before it."""

    def __init__(self, starts_s: Floats) -> None:
        self.chains: list[Chain] = []
        self.sent: list[Floats] = []
        self.floor_s: Floats | float = starts_s
        self.in_ends_s = starts_s
        self.latency_s: Floats | float = 0.0
        # the collective before: ranks that are still in it, since when, for how long
        self.tail: NDArray[np.bool_] | None = None
        self.tail_at_s = 0.0
        self.tail_work_s = starts_s

    def follow(self, group: Group) -> None:
        """On to the next group."""
        self.chain = Chain(group.work_s(), group.beside_s(), len(self.in_ends_s))
        self.chains.append(self.chain)
        # a collective or an end shares no port that way: no work
        self.out_s: Floats | float = group.join.out_s if isinstance(group.join, Exchange) else 0.0
        self.later_s: Floats | float = 0.0
        self.sent_s: Floats = self.chain.at_s
        if self.tail is None:
            self.chain.enter(self.gate_s())

    def gate_s(self) -> Floats:
        """When ranks go on from the last join, as far as is known."""
        return np.maximum(self.floor_s, self.in_ends_s) + self.latency_s

    def job(self) -> tuple[Floats, Floats | float]:
        """Start and work of what a rank has, or will have next, on its port out."""
        start, work = self.chain.expected_s, self.out_s
        if self.tail is None:
            return start, work
        return np.where(self.tail, self.tail_at_s, start), np.where(self.tail, self.tail_work_s, work)


class ManyRanks:
    """Where all ranks are: both micro-batches, and when engines are free."""

    def __init__(self, starts_s: Floats) -> None:
        self._halves = (_Half(starts_s), _Half(starts_s))
        self._free_s = np.zeros(len(starts_s))
        self._shared_s: Floats = np.zeros(len(starts_s))

    def follow(self, i: int, group: Group) -> None:
        """On to the next group in a batch."""
        half = self._halves[i]
        if half.chains:
            half.sent.append(half.sent_s)
        half.follow(group)

    def open_gate(self, i: int, floor_s: float, in_ends_s: Floats, latency_s: Floats) -> None:
        """All ranks have sent: each goes on when its bytes are in."""
        half = self._halves[i]
        half.floor_s, half.in_ends_s, half.latency_s = floor_s, in_ends_s, latency_s

    def move_gate(self, i: int, in_ends_s: Floats) -> None:
        """Bytes may be in later than was said."""
        half = self._halves[i]
        half.in_ends_s = in_ends_s
        if half.tail is None:
            half.chain.enter(half.gate_s())

    def meet(self, i: int, at_s: float, seconds: Floats, in_ends_s: Floats) -> None:
        """All ranks begin a collective at once; each goes on when it is through with it."""
        half = self._halves[i]
        half.floor_s, half.in_ends_s, half.latency_s = at_s + seconds, in_ends_s, 0.0
        half.tail, half.tail_at_s, half.tail_work_s = np.ones(len(seconds), dtype=bool), at_s, seconds

    def end_sending(self, i: int) -> None:
        """All ranks have sent: what their other batch has been delayed by is over."""
        other = self._halves[1 - i]
        other.later_s = other.later_s + self._shared_s

    def settle(self, at_s: float) -> None:
        """Fix what happened until now: ranks that left a collective, computes that came to the engine."""
        for half, other in (self._halves, self._halves[::-1]):
            if half.tail is not None:
                other.later_s = other.later_s + np.where(half.tail & (half.floor_s <= at_s), self._shared_s, 0.0)
        for half in self._halves:
            if half.tail is not None:
                left = half.tail & (half.floor_s > at_s)
                # a job to come has not been delayed by anything yet
                half.later_s = np.where(half.tail & ~left, 0.0, half.later_s)
                half.tail = left if left.any() else None
        for half in self._halves:
            if half.chain.is_open:
                self._free_s = np.maximum(self._free_s, half.chain.commit(at_s))

    def look_ahead(self) -> None:
        """What would happen if no further event of all ranks came."""
        if any(half.tail is not None for half in self._halves):
            # ends of collectives first: what follows them cannot come before them
            for half in self._halves:
                if half.tail is not None:
                    half.chain.enter(np.where(half.tail, NEVER, half.gate_s()))
            self._expect()
            for half in self._halves:
                if half.tail is not None:
                    half.floor_s = np.where(half.tail, half.sent_s, half.floor_s)
                    half.chain.enter(half.gate_s())
        self._expect()

    def _expect(self) -> None:
        """Starts and ends on engines, then ends on the ports out."""
        a, b = self._halves
        expect_both(a.chain, b.chain, self._free_s)
        (start_a, work_a), (start_b, work_b) = a.job(), b.job()
        end_a, end_b = start_a + work_a + a.later_s, start_b + work_b + b.later_s
        a_first = start_a <= start_b
        rest = np.where(a_first, end_a - start_b, end_b - start_a)
        self._shared_s = np.minimum(np.maximum(rest, 0.0), np.where(a_first, work_b, work_a))
        a.sent_s, b.sent_s = end_a + self._shared_s, end_b + self._shared_s

    def first_join_s(self, i: int) -> float:
        """When the first rank joins."""
        return smallest(self._halves[i].chain.expected_s)

    def last_join_s(self, i: int) -> float:
        """When the last rank joins."""
        return largest(self._halves[i].chain.expected_s)

    def last_sent_s(self, i: int) -> float:
        """When the last rank has sent."""
        return largest(self._halves[i].sent_s)

    def has_tail(self, i: int) -> bool:
        """Whether some ranks are still in the collective before."""
        return self._halves[i].tail is not None

    def next_leave_s(self, i: int) -> float:
        """When the first of those joins again."""
        half = self._halves[i]
        return smallest(half.chain.expected_s[half.tail])

    def log(self, i: int) -> Log:
        """What happened in the groups of a batch."""
        half = self._halves[i]
        rows = [(c.arrivals_s, c.begins_s, c.joined_s, c.beside_begins_s) for c in half.chains]
        arrivals, begins, joined, beside_begins = (np.array(column) for column in zip(*rows, strict=True))
        return Log(arrivals, begins, joined, beside_begins, np.array([*half.sent, half.sent_s]))
