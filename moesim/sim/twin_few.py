"""Few ranks with two micro-batches each, one rank after another: plain floats, and of each rank only what it has to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.sim.books import Group
from moesim.sim.schedule import Exchange
from moesim.sim.twin_parts import NEVER, Log

__all__ = ["FewRanks"]

Floats = NDArray[np.float64]


class _Side:
    """One micro-batch of a rank.

    Its next job for the engine comes at `at_s` and takes `now_s`: a group's computes, then what runs `beside_s` the join, then
    nothing (`n_past` 0, 1, 2). It joins at `joined_s`, as far as is known, sends for `out_s` until `sent_s`; what has delayed
    that already is `later_s`. Its gate to the next group opens when port out (`floor_s`) and port in (`in_end_s`) are through,
    and is not known while the rank `is_in` a collective, since `since_s` for `met_s`.
    """

    __slots__ = (
        "arrival_s", "at_s", "begin_s", "beside_begin_s", "beside_s", "floor_s", "has_work", "in_end_s", "is_in", "joined_s",
        "latency_s", "later_s", "met_s", "n_past", "now_s", "out_s", "sent_s", "since_s",
    )  # fmt: skip

    def __init__(self, start_s: float) -> None:
        self.floor_s = self.in_end_s = start_s
        self.latency_s = self.later_s = self.now_s = self.out_s = self.since_s = self.met_s = 0.0
        self.arrival_s = self.begin_s = self.at_s = self.joined_s = self.sent_s = self.beside_begin_s = NEVER
        self.beside_s: float | None = None
        self.is_in = self.has_work = False
        self.n_past = 2

    def enter(self) -> None:
        """Say (again) when the rank goes on from its last join; where the first job is past, it stays."""
        gate = (self.floor_s if self.floor_s > self.in_end_s else self.in_end_s) + self.latency_s
        if not self.has_work:
            self.arrival_s = self.begin_s = self.joined_s = gate
            if self.n_past == 1:
                self.at_s = gate
        elif self.n_past == 0:
            self.at_s = gate


class _Rank:
    """Both micro-batches of a rank, when its engine is free, and how long they will share the port out."""

    __slots__ = ("a", "b", "free_s", "shared_s")

    def __init__(self, start_s: float) -> None:
        self.a, self.b = _Side(start_s), _Side(start_s)
        self.free_s = self.shared_s = 0.0

    def settle(self, at_s: float) -> None:
        """Fix what happened until now: a collective that it left, jobs that came to the engine."""
        a, b = self.a, self.b
        if (a.is_in and a.floor_s <= at_s) or (b.is_in and b.floor_s <= at_s):
            self._leave(at_s)
        # at a tie what came is before what a job that has just ended brings along, as in `_compute`
        is_b_before = False
        while True:
            side = b if b.at_s < a.at_s or (is_b_before and b.at_s == a.at_s) else a
            came = side.at_s
            if came > at_s:
                return
            begin = came if came > self.free_s else self.free_s
            self.free_s = end = begin + side.now_s
            if side.n_past == 0:
                side.arrival_s, side.begin_s, side.joined_s = came, begin, end
                if side.beside_s is not None:
                    side.at_s, side.now_s, side.n_past = end, side.beside_s, 1
                    is_b_before = side is a
                    continue
            else:
                side.beside_begin_s = begin
            side.at_s, side.n_past = NEVER, 2
            is_b_before = False

    def _leave(self, at_s: float) -> None:
        a, b = self.a, self.b
        a_leaves, b_leaves = a.is_in and a.floor_s <= at_s, b.is_in and b.floor_s <= at_s
        # a job to come has not been delayed by anything yet
        if a_leaves:
            a.is_in, a.later_s = False, 0.0
            b.later_s += 0.0 if b_leaves else self.shared_s
        if b_leaves:
            b.is_in, b.later_s = False, 0.0
            a.later_s += 0.0 if a_leaves else self.shared_s

    def look_ahead(self) -> None:
        """What would happen if no further event of all ranks came."""
        a, b = self.a, self.b
        if a.is_in or b.is_in:
            self._look_at_ends()
        if a.n_past == 0 or b.n_past == 0:
            self._compute()
        self._send()

    def _look_at_ends(self) -> None:
        """Ends of collectives first: what follows them cannot come before them, so the other batch has the engine to itself."""
        a, b = self.a, self.b
        if a.is_in != b.is_in:
            other = b if a.is_in else a
            if other.n_past == 0:
                other.joined_s = (other.at_s if other.at_s > self.free_s else self.free_s) + other.now_s
        self._send()
        if a.is_in:
            a.floor_s = a.sent_s
            a.enter()
        if b.is_in:
            b.floor_s = b.sent_s
            b.enter()

    def _compute(self) -> None:
        """When each is through with its first job, in order of arrival."""
        x, y = self.a, self.b
        if x.at_s > y.at_s:
            x, y = y, x
        end = (x.at_s if x.at_s > self.free_s else self.free_s) + x.now_s
        if x.n_past == 0:
            x.joined_s = end
            if x.beside_s is not None and y.at_s > end:
                # x's second job comes at the end of its first, so before y's first
                end += x.beside_s
        if y.n_past == 0:
            y.joined_s = (y.at_s if y.at_s > end else end) + y.now_s

    def _send(self) -> None:
        """When each has sent, or is through with its collective."""
        a, b = self.a, self.b
        start_a, work_a = (a.since_s, a.met_s) if a.is_in else (a.joined_s, a.out_s)
        start_b, work_b = (b.since_s, b.met_s) if b.is_in else (b.joined_s, b.out_s)
        end_a, end_b = start_a + work_a + a.later_s, start_b + work_b + b.later_s
        rest, work = (end_a - start_b, work_b) if start_a <= start_b else (end_b - start_a, work_a)
        shared = 0.0 if rest <= 0.0 else rest if rest < work else work
        a.sent_s, b.sent_s, self.shared_s = end_a + shared, end_b + shared, shared


class FewRanks:
    """Where all ranks are."""

    def __init__(self, starts_s: Floats) -> None:
        self._ranks = [_Rank(start) for start in starts_s.tolist()]
        self._sides = ([rank.a for rank in self._ranks], [rank.b for rank in self._ranks])
        # five times of each rank, group after group
        self._logs: tuple[list[float], list[float]] = ([], [])
        self._nothing: list[float | None] = [None] * len(starts_s)
        self._zeros = [0.0] * len(starts_s)
        self._has_begun, self._has_tail = [False, False], [False, False]

    def follow(self, i: int, group: Group) -> None:
        """On to the next group in a batch."""
        if self._has_begun[i]:
            self._log(i)
        self._has_begun[i] = True
        work, beside = group.work_s(), group.beside_s()
        has_work, n_past = work is not None, 0 if work is not None else 1 if beside is not None else 2
        besides = self._nothing if beside is None else beside.tolist()
        nows = work.tolist() if work is not None else besides if beside is not None else self._zeros
        # a collective or an end shares no port that way: no work
        outs = group.join.out_s.tolist() if isinstance(group.join, Exchange) else self._zeros
        for side, now, after, out in zip(self._sides[i], nows, besides, outs, strict=True):
            side.has_work = has_work
            side.n_past = n_past
            side.now_s = now
            side.beside_s = after
            side.out_s = out
            side.later_s = 0.0
            if side.is_in:
                continue
            # most often; in full in `enter`
            if has_work:
                side.at_s = (side.floor_s if side.floor_s > side.in_end_s else side.in_end_s) + side.latency_s
            else:
                side.enter()

    def open_gate(self, i: int, floor_s: float, in_ends_s: Floats, latency_s: Floats) -> None:
        """All ranks have sent: each goes on when its bytes are in."""
        for side, end, latency in zip(self._sides[i], in_ends_s.tolist(), latency_s.tolist(), strict=True):
            side.floor_s, side.in_end_s, side.latency_s = floor_s, end, latency

    def move_gate(self, i: int, in_ends_s: Floats) -> None:
        """Bytes may be in later than was said."""
        for side, end in zip(self._sides[i], in_ends_s.tolist(), strict=True):
            side.in_end_s = end
            if not side.is_in:
                side.enter()

    def meet(self, i: int, at_s: float, seconds: Floats, in_ends_s: Floats) -> None:
        """All ranks begin a collective at once; each goes on when it is through with it."""
        self._has_tail[i] = True
        for side, work, end in zip(self._sides[i], seconds.tolist(), in_ends_s.tolist(), strict=True):
            side.is_in, side.since_s, side.met_s = True, at_s, work
            side.floor_s, side.in_end_s, side.latency_s = at_s + work, end, 0.0

    def end_sending(self, i: int) -> None:
        """All ranks have sent: what their other batch has been delayed by is over."""
        for rank, other in zip(self._ranks, self._sides[1 - i], strict=True):
            other.later_s += rank.shared_s

    def settle(self, at_s: float) -> None:
        """Fix what happened until now."""
        for rank in self._ranks:
            rank.settle(at_s)
        for i, sides in enumerate(self._sides):
            self._has_tail[i] = self._has_tail[i] and any(side.is_in for side in sides)

    def look_ahead(self) -> None:
        """What would happen if no further event of all ranks came."""
        for rank in self._ranks:
            rank.look_ahead()

    def first_join_s(self, i: int) -> float:
        """When the first rank joins."""
        return min([side.joined_s for side in self._sides[i]])

    def last_join_s(self, i: int) -> float:
        """When the last rank joins."""
        return max([side.joined_s for side in self._sides[i]])

    def last_sent_s(self, i: int) -> float:
        """When the last rank has sent."""
        return max([side.sent_s for side in self._sides[i]])

    def has_tail(self, i: int) -> bool:
        """Whether some ranks are still in the collective before."""
        return self._has_tail[i]

    def next_leave_s(self, i: int) -> float:
        """When the first of those joins again."""
        return min([side.joined_s for side in self._sides[i] if side.is_in])

    def log(self, i: int) -> Log:
        """What happened in the groups of a batch."""
        self._log(i)
        return Log(*np.array(self._logs[i]).reshape(-1, len(self._ranks), 5).transpose(2, 0, 1))

    def _log(self, i: int) -> None:
        log = self._logs[i]
        for side in self._sides[i]:
            log += (side.arrival_s, side.begin_s, side.joined_s, side.beside_begin_s, side.sent_s)
