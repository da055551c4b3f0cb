"""Two micro-batches of every rank, interleaved: all ranks step together from one event that they share to the next.

Batches of a rank meet on its engine (first come, first served) and on its ports (shared evenly). Between events of all ranks, the
first start and the last end of sending in an exchange and the last arrival at a collective, every engine and port has at most one
job per batch, so when jobs start and end follows in closed form. Each event fixes what came before it, opens the way for one
batch, and what is to come is worked out anew: as vectors over ranks (`twin_many`), or rank by rank where these are few
(`twin_few`). Times are those of `events` up to rounding, save the order of computes that come to an engine at one moment.

A port out with works w and w', the one that starts first alone until a > t + w - x: both end x later than alone, with
x = min(max(0, end of the first if alone - start of the second), work of the second).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.sim.books import Books, Group, Visits, groups_of
from moesim.sim.schedule import Exchange, Meeting, Step
from moesim.sim.twin_few import FewRanks
from moesim.sim.twin_many import ManyRanks
from moesim.sim.twin_parts import NEVER, InJob, InPorts, Log

__all__ = ["run_twins"]

# up to so many ranks the calls of vector operations cost more than a loop over ranks (measured)
N_FEW = 24


def run_twins(batches: Sequence[Sequence[Step]], books: Books, *, n_few: int = N_FEW) -> None:
    """Take two micro-batches of all ranks through their steps, from where the books say that ranks are.

    Up to `n_few` ranks are stepped one by one, more as vectors.
    """
    ranks = FewRanks(books.ends_s) if books.n_ranks <= n_few else ManyRanks(books.ends_s)
    run = _Run([groups_of(steps) for steps in batches], ranks)
    run.run()
    logs = [ranks.log(i) for i in (0, 1)]
    for i, (batch, log) in enumerate(zip(run.batches, logs, strict=True)):
        books.enter(batch.visits(log), i)
    books.ends_s = np.maximum(*(log.joined_s[-1] for log in logs))
    for steps in batches:
        books.balance(steps)


@dataclass(slots=True)
class _Passage:
    """What is known of one group: when its collective began, its bytes on receiving ports."""

    group: Group
    met_s: float = 0.0
    in_job: InJob | None = None


class _Batch:
    """One micro-batch: all ranks are on the way to the same join, and some may still be in the collective before it."""

    def __init__(self, groups: list[Group]) -> None:
        self._rest = groups[::-1]
        self.passages: list[_Passage] = []
        self.gate_job: InJob | None = None

    def follow(self) -> Group:
        """On to the next group."""
        self.passage = _Passage(self._rest.pop())
        self.passages.append(self.passage)
        self.join = self.passage.group.join
        self.has_started = False
        return self.passage.group

    def visits(self, log: Log) -> Visits:
        """Everything that happened, once it is over."""
        passages = self.passages
        left = np.concatenate([log.arrivals_s[1:], log.joined_s[-1:]])
        nothing = log.joined_s[0]
        taken = np.array([nothing if passage.in_job is None else passage.in_job.end_s for passage in passages])
        met = np.array([passage.met_s for passage in passages])
        return Visits(
            [passage.group for passage in passages], log.arrivals_s, log.begins_s, log.joined_s, left, log.sent_s, taken,
            log.beside_begins_s, met,
        )  # fmt: skip


class _Run:
    """Events of all ranks, and what receiving ports have; `ranks` knows where each is."""

    def __init__(self, groups: Sequence[list[Group]], ranks: FewRanks | ManyRanks) -> None:
        self.batches = [_Batch(some) for some in groups]
        self.ranks = ranks
        self.in_ports = InPorts()

    def run(self) -> None:
        """Event by event of all ranks, until there is none."""
        for i, batch in enumerate(self.batches):
            self.ranks.follow(i, batch.follow())
        self.ranks.look_ahead()
        times = [self.next_s(0), self.next_s(1)]
        while min(times) < NEVER / 2:
            i = 0 if times[0] <= times[1] else 1
            if self.happen(i, times[i]):
                self.ranks.look_ahead()
                times[1 - i] = self.next_s(1 - i)
            times[i] = self.next_s(i)
        self.ranks.settle(NEVER / 2)

    def next_s(self, i: int) -> float:
        """The next event of all ranks in a batch."""
        batch, ranks = self.batches[i], self.ranks
        if batch.join is None:
            return NEVER
        if isinstance(batch.join, Meeting):
            return ranks.last_join_s(i)
        if not batch.has_started:
            return ranks.first_join_s(i)
        return ranks.next_leave_s(i) if ranks.has_tail(i) else ranks.last_sent_s(i)

    def happen(self, i: int, at_s: float) -> bool:
        """One event of all ranks in a batch; whether it may change what is to come."""
        batch, ranks = self.batches[i], self.ranks
        join = batch.join
        if isinstance(join, Meeting):
            ranks.settle(at_s)
            batch.passage.met_s = at_s
            batch.gate_job = self.in_ports.start(at_s, join.seconds)
            ranks.meet(i, at_s, join.seconds, batch.gate_job.end_s)
            self.gates_move()
            ranks.follow(i, batch.follow())
        elif not isinstance(join, Exchange):
            return False
        elif not batch.has_started:
            batch.has_started = True
            had_tail = ranks.has_tail(i)
            if had_tail:
                ranks.settle(at_s)
            batch.passage.in_job = self.in_ports.start(at_s, join.in_s)
            return self.gates_move() or had_tail
        elif ranks.has_tail(i):
            ranks.settle(at_s)
        else:
            ranks.end_sending(i)
            ranks.settle(at_s)
            batch.gate_job = batch.passage.in_job
            if batch.gate_job is not None:
                ranks.open_gate(i, at_s, batch.gate_job.end_s, join.latency_s)
            ranks.follow(i, batch.follow())
        return True

    def gates_move(self) -> bool:
        """Whether a job that has come may delay those whose ends ranks wait for; their gates, worked out anew."""
        jobs, moved = self.in_ports.jobs, False
        if len(jobs) < 2:
            return False
        for i, batch in enumerate(self.batches):
            if batch.gate_job is not None and batch.gate_job in jobs:
                moved = True
                self.ranks.move_gate(i, batch.gate_job.end_s)
        return moved
