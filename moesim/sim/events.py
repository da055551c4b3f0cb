"""A pass event by event (simpy): one process per rank and micro-batch, which queue for engines and share ports as the clock goes.

The reference that the quicker ways, `alone` and `twin`, are tested against; and the only way for micro-batches by pairs of ranks,
and for more than two of them.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import ConservationError
from moesim.sim.books import Books
from moesim.sim.elements import FairPort, Gathering, QueuePort, Server, SharedTransfer, Transfer
from moesim.sim.schedule import Exchange, Meeting, Step
from moesim.sim.visits import Visits, groups_of

__all__ = ["run_by_event"]

Floats = NDArray[np.float64]


def run_by_event(batches: Sequence[Sequence[Step]], books: Books) -> None:
    """Run the micro-batches side by side, from where the books say that ranks are.

    Raises:
        ConservationError: bytes or processes do not balance at the end.
    """
    run = _Run(books, n_batches=len(batches))
    for steps in batches:
        run.start(steps)
    with _collector_paused():
        run.env.run()
    if run.n_alive:
        raise ConservationError(f"{run.n_alive} of {books.n_ranks} ranks never finished the pass")
    for i, visits in enumerate(run.visits):
        books.enter(visits, i)
    books.ends_s = np.array(run.ends_s)
    for steps in batches:
        books.balance(steps)


class _Run:
    """State of one simulation."""

    def __init__(self, books: Books, n_batches: int) -> None:
        self.env = simpy.Environment()
        self.books, self.n_ranks = books, books.n_ranks
        ranks = range(self.n_ranks)
        self.engines = [Server() for _ in ranks]
        self.out_free_s = [0.0] * self.n_ranks
        self.out_ports = [FairPort(self.env) for _ in ranks]
        # with one micro-batch nothing shares a port, save bytes that come early for a rank that still takes in older ones
        port: type[FairPort | QueuePort] = FairPort if n_batches > 1 else QueuePort
        self.in_ports = [port(self.env) for _ in ranks]
        self.pair_free_s = np.zeros((2, self.n_ranks))
        self.n_alive = 0
        self.visits: list[Visits] = []
        self.ends_s: list[float] = books.ends_s.tolist()

    def start(self, steps: Sequence[Step]) -> None:
        """One process per rank."""
        groups = groups_of(steps)
        meetings: dict[int, Any] = {}
        for i, group in enumerate(groups):
            gathering = Gathering(self.env, self.n_ranks)
            meetings[i] = Transfer(gathering) if isinstance(group.join, Exchange) else gathering
        works = [group.work_s() for group in groups]
        visits = Visits.blank(groups, self.n_ranks)
        self.visits.append(visits)
        for rank in range(self.n_ranks):
            self.env.process(self.rank(rank, visits, works, meetings))

    def rank(
        self, rank: int, visits: Visits, works: Sequence[Floats | None], meetings: dict[int, Any]
    ) -> Generator[Any, Any, None]:
        """One micro-batch of a rank beside others; fills in its visits."""
        self.n_alive += 1
        if self.ends_s[rank] > self.env.now:
            yield self.env.timeout(self.ends_s[rank] - self.env.now)
        for g, group in enumerate(visits.groups):
            visits.arrival_s[g, rank] = begin = self.env.now
            work, join = works[g], group.join
            if work is not None:
                begin, end = self.engine(rank, work)
                yield self.env.timeout(end - self.env.now)
            visits.begin_s[g, rank], visits.joined_s[g, rank] = begin, self.env.now
            if isinstance(join, Meeting):
                visits.met_s[g] = yield from self.meet(rank, join, meetings[g])
            elif join is not None:
                beside = group.beside_s()
                if beside is not None:
                    visits.hidden_s[g, rank] = self.engine(rank, beside)[0]
                exchange = self.exchange if join.pairs is None else self.exchange_by_pair
                visits.sent_s[g, rank], visits.taken_s[g, rank] = yield from exchange(rank, join, meetings[g])
            visits.left_s[g, rank] = self.env.now
        self.ends_s[rank] = max(self.ends_s[rank], self.env.now)
        self.n_alive -= 1

    def engine(self, rank: int, seconds: Floats) -> tuple[float, float]:
        """Start and end of a job that comes to the engine now."""
        return self.engines[rank].reserve(self.env.now, float(seconds[rank]))

    def meet(self, rank: int, step: Meeting, meeting: Gathering) -> Generator[Any, Any, float]:
        """Wait for the last rank, then take part in the collective; when that began."""
        seconds = float(step.seconds[rank])
        yield meeting.arrive(self.env.now)
        met = float(self.env.now)
        done = self.out_ports[rank].submit(seconds)
        yield self.in_ports[rank].submit(seconds)
        yield done
        return met

    def exchange(self, rank: int, step: Exchange, transfer: Transfer) -> Generator[Any, Any, tuple[float, float]]:
        """Send this rank's tokens and take in the others'; when it had sent and taken."""
        if transfer.shared is None:
            transfer.shared = SharedTransfer(self.env, self.in_ports, step.in_s.tolist(), step.latency_s.tolist())
        yield transfer.shared.send(rank, self.out_ports[rank], float(step.out_s[rank]))
        return transfer.shared.sent_s[rank], transfer.shared.received_s[rank]

    def exchange_by_pair(
        self, rank: int, step: Exchange, transfer: Transfer
    ) -> Generator[Any, Any, tuple[float, float]]:
        """The same by messages: those of one exchange share ports fairly; of two, the one that began first goes first."""
        begun = max(self.env.now, self.out_free_s[rank])
        self.out_free_s[rank] = begun + float(step.out_s[rank])
        transfer.starts_s[rank] = begun
        yield transfer.all_sent.arrive(begun)
        if transfer.arrived_s is None:
            transfer.arrived_s = self.pair_ends(step, transfer)
        sent, received = (float(x[rank]) for x in transfer.arrived_s)
        yield self.env.timeout(max(0.0, max(received, sent) + float(step.latency_s[rank]) - self.env.now))
        return sent, sent  # as in `alone`: whatever comes after the own messages is waited for

    def pair_ends(self, step: Exchange, transfer: Transfer) -> tuple[Floats, Floats]:
        """All ends of an exchange by pairs, once every sender has said when it starts: nobody is done before that."""
        if step.pairs is None:
            raise TypeError(f"{step.name} has no pairs")
        starts = np.array([transfer.starts_s[rank] for rank in range(self.n_ranks)])
        sent, received, self.pair_free_s = step.pairs.finish(starts, self.pair_free_s)
        return sent, received


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Events are freed by reference counts; looking for cycles among millions of them takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
