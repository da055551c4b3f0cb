"""Two micro-batches of every rank, interleaved: all ranks step together from one event that they share to the next.

Batches of a rank meet on its engine (first come, first served) and on its ports (shared evenly). Between events of all ranks, the
first start and the last end of sending in an exchange and the last arrival at a collective, every engine and port has at most one
job per batch, so when jobs start and end follows in closed form: vectors over ranks. Each event fixes what came before it, opens
the way for one batch, and what is to come is worked out anew. Times are those of `events` up to rounding, save the order of
computes that come to an engine at the very same moment: here the first batch goes first.

A port out with works w and w', the one that starts first alone until a > t + w - x: both end x later than alone, with
x = min(max(0, end of the first if alone - start of the second), work of the second).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.sim.books import Books, Group, Visit, groups_of
from moesim.sim.schedule import Exchange, Meeting, Step
from moesim.sim.twin_parts import NEVER, Chain, InJob, InPorts, expect_both

__all__ = ["run_twins"]

Floats = NDArray[np.float64]


def run_twins(batches: Sequence[Sequence[Step]], books: Books) -> None:
    """Take two micro-batches of all ranks through their steps, from where the books say that ranks are."""
    run = _Run([_Batch(groups_of(steps), books.ends_s) for steps in batches], books.n_ranks)
    run.run()
    for batch in run.batches:
        books.enter(batch.visits())
    books.ends_s = np.maximum(*(batch.chain.joined_s for batch in run.batches))
    for steps in batches:
        books.balance(steps)


class _Passage:
    """What is known of one group: its computes, and its join as that goes on."""

    __slots__ = ("chain", "group", "in_job", "met_s", "sent_s")

    def __init__(self, group: Group, n_ranks: int) -> None:
        self.group = group
        self.chain = Chain(group.work_s(), group.beside_s(), n_ranks)
        self.met_s = 0.0
        self.sent_s: Floats | None = None
        self.in_job: InJob | None = None


class _Batch:
    """One micro-batch: all ranks are on the way to the same join, and some may still be in the collective before it."""

    def __init__(self, groups: list[Group], starts_s: Floats) -> None:
        self._rest = groups[::-1]
        self._n_ranks = len(starts_s)
        self.passages: list[_Passage] = []
        self.gate_job: InJob | None = None
        self.floor_s: Floats | float = starts_s
        self.latency_s: Floats | float = 0.0
        # the collective before: ranks that are still in it, since when, for how long, until when
        self.tail: NDArray[np.bool_] | None = None
        self.tail_at_s = 0.0
        self.tail_work_s = starts_s
        self.follow()

    def follow(self) -> None:
        """On to the next group."""
        self.passage = _Passage(self._rest.pop(), self._n_ranks)
        self.passages.append(self.passage)
        self.chain, self.join = self.passage.chain, self.passage.group.join
        self.has_started = False
        self.later_s: Floats | float = 0.0
        self.sent_s: Floats = self.chain.at_s
        if self.tail is None:
            self.chain.enter(self.gate_s())

    def gate_s(self) -> Floats:
        """When ranks go on from the last join, as far as is known."""
        job = self.gate_job
        return np.maximum(self.floor_s, self.floor_s if job is None else job.end_s) + self.latency_s

    def next_s(self) -> float:
        """The next event of all ranks."""
        expected, join = self.chain.expected_s, self.join
        if join is None:
            return NEVER
        if isinstance(join, Meeting):
            return float(expected.max())
        if not self.has_started:
            return float(expected.min())
        return float(self.sent_s.max() if self.tail is None else expected[self.tail].min())

    def job(self) -> tuple[Floats | float, Floats | float]:
        """Start and work of what a rank has, or will have next, on its port out."""
        join = self.join
        start, work = (self.chain.expected_s, join.out_s) if isinstance(join, Exchange) else (NEVER, 0.0)
        if self.tail is None:
            return start, work
        return np.where(self.tail, self.tail_at_s, start), np.where(self.tail, self.tail_work_s, work)

    def visits(self) -> list[Visit]:
        """Everything that happened, once it is over."""
        found = []
        for passage, following in zip(self.passages, [*self.passages[1:], None], strict=True):
            chain, join = passage.chain, passage.group.join
            visit = Visit(passage.group, chain.arrivals_s, chain.begins_s, chain.joined_s, chain.joined_s)
            visit.met_s, visit.sent_s = passage.met_s, passage.sent_s
            if following is not None:
                visit.left_s = following.chain.arrivals_s if following.group.computes else following.chain.joined_s
            if isinstance(join, Exchange) and passage.in_job is not None and passage.sent_s is not None:
                visit.own_s = np.maximum(passage.sent_s, passage.in_job.end_s) + join.latency_s
                visit.hidden_s = chain.beside_begins_s if join.hidden else None
            found.append(visit)
        return found


class _Run:
    """Both batches, engines and ports."""

    def __init__(self, batches: list[_Batch], n_ranks: int) -> None:
        self.batches = batches
        self.in_ports = InPorts()
        self.free_s = np.zeros(n_ranks)
        self.shared_s: Floats = np.zeros(n_ranks)

    def run(self) -> None:
        """Event by event of all ranks, until there is none."""
        first, second = self.batches
        self.look_ahead()
        while True:
            at, other_at = first.next_s(), second.next_s()
            if min(at, other_at) >= NEVER / 2:
                break
            if at <= other_at:
                self.happen(first, second, at)
            else:
                self.happen(second, first, other_at)
        self.commit(NEVER / 2)

    def happen(self, batch: _Batch, other: _Batch, at_s: float) -> None:
        """One event of all ranks in one batch."""
        join = batch.join
        if isinstance(join, Meeting):
            self.settle(at_s)
            self.meet(batch, join, at_s)
        elif not isinstance(join, Exchange):
            return
        elif not batch.has_started:
            batch.has_started = True
            batch.passage.in_job = self.in_ports.start(at_s, join.in_s)
            if not self.gates_move():
                return
        elif batch.tail is not None:
            self.settle(at_s)
        else:
            other.later_s = other.later_s + self.shared_s
            self.settle(at_s)
            batch.passage.sent_s = batch.sent_s
            batch.gate_job, batch.floor_s, batch.latency_s = batch.passage.in_job, at_s, join.latency_s
            batch.follow()
        self.look_ahead()

    def meet(self, batch: _Batch, join: Meeting, at_s: float) -> None:
        """All ranks begin a collective at once; each goes on when it is through with it."""
        batch.passage.met_s = at_s
        batch.gate_job, batch.latency_s = self.in_ports.start(at_s, join.seconds), 0.0
        batch.floor_s = at_s + join.seconds
        batch.tail, batch.tail_at_s, batch.tail_work_s = np.ones(len(self.free_s), dtype=bool), at_s, join.seconds
        self.gates_move()
        batch.follow()

    def gates_move(self) -> bool:
        """Whether a job that has come may delay those whose ends ranks wait for; their gates, worked out anew."""
        moved = False
        for batch in self.batches:
            if batch.gate_job is not None and len(self.in_ports.jobs) > 1 and batch.gate_job in self.in_ports.jobs:
                moved = True
                if batch.tail is None:
                    batch.chain.enter(batch.gate_s())
        return moved

    def settle(self, at_s: float) -> None:
        """Fix what happened until now: ranks that left a collective, computes that came to the engine."""
        for batch, other in (self.batches, self.batches[::-1]):
            if batch.tail is not None:
                other.later_s = other.later_s + np.where(batch.tail & (batch.floor_s <= at_s), self.shared_s, 0.0)
        for batch in self.batches:
            if batch.tail is not None:
                left = batch.tail & (batch.floor_s > at_s)
                # a job to come has not been delayed by anything yet
                batch.later_s = np.where(batch.tail & ~left, 0.0, batch.later_s)
                batch.tail = left if left.any() else None
        self.commit(at_s)

    def commit(self, until_s: float) -> None:
        """Jobs that came to engines until a time stay as they are."""
        for batch in self.batches:
            if batch.chain.is_open:
                self.free_s = np.maximum(self.free_s, batch.chain.commit(until_s))

    def look_ahead(self) -> None:
        """What would happen if no further event of all ranks came."""
        if any(batch.tail is not None for batch in self.batches):
            # ends of collectives first: what follows them cannot come before them
            for batch in self.batches:
                if batch.tail is not None:
                    batch.chain.enter(np.where(batch.tail, NEVER, batch.gate_s()))
            self.expect()
            for batch in self.batches:
                if batch.tail is not None:
                    batch.floor_s = np.where(batch.tail, batch.sent_s, batch.floor_s)
                    batch.chain.enter(batch.gate_s())
        self.expect()

    def expect(self) -> None:
        """Starts and ends on engines, then on ports out."""
        expect_both(self.batches[0].chain, self.batches[1].chain, self.free_s)
        self.share()

    def share(self) -> None:
        """Ends on the ports out."""
        a, b = self.batches
        (start_a, work_a), (start_b, work_b) = a.job(), b.job()
        end_a, end_b = start_a + work_a + a.later_s, start_b + work_b + b.later_s
        a_first = np.asarray(start_a) <= start_b
        rest = np.where(a_first, end_a - start_b, end_b - start_a)
        self.shared_s = np.minimum(np.maximum(rest, 0.0), np.where(a_first, work_b, work_a))
        a.sent_s, b.sent_s = end_a + self.shared_s, end_b + self.shared_s
