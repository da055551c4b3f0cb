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
from moesim.sim.books import Books, Group, groups_of
from moesim.sim.elements import FairPort, Gathering, QueuePort, Server, SharedTransfer, Transfer
from moesim.sim.schedule import Exchange, Meeting, Step
from moesim.sim.trail import Mark
from moesim.timeline import Cause

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
        self.ends_s: list[float] = books.ends_s.tolist()

    def start(self, steps: Sequence[Step]) -> None:
        """One process per rank."""
        groups = groups_of(steps)
        meetings: dict[int, Any] = {}
        for i, group in enumerate(groups):
            gathering = Gathering(self.env, self.n_ranks)
            meetings[i] = Transfer(gathering) if isinstance(group.join, Exchange) else gathering
        works = [group.work_s() for group in groups]
        marks = [Mark(self.n_ranks) for _ in groups]
        for mark in marks:
            self.books.trail.enter(mark)
        for rank in range(self.n_ranks):
            self.env.process(self.rank(rank, groups, works, meetings, marks))

    def rank(
        self,
        rank: int,
        groups: Sequence[Group],
        works: Sequence[Floats | None],
        meetings: dict[int, Any],
        marks: Sequence[Mark],
    ) -> Generator[Any, Any, None]:
        """One micro-batch of a rank beside others."""
        self.n_alive += 1
        if self.ends_s[rank] > self.env.now:
            yield self.env.timeout(self.ends_s[rank] - self.env.now)
        for index, group in enumerate(groups):
            work, mark = works[index], marks[index]
            if work is not None:
                mark.began_s[rank], mark.end_s[rank] = yield from self.compute(rank, group, work)
            join, mark.joined_s[rank] = group.join, self.env.now
            if isinstance(join, Meeting):
                yield from self.meet(rank, join, meetings[index])
            elif join is not None:
                exchange = self.exchange if join.pairs is None else self.exchange_by_pair
                yield from exchange(rank, join, meetings[index], mark)
            mark.left_s[rank] = self.env.now
        self.ends_s[rank] = max(self.ends_s[rank], self.env.now)
        self.n_alive -= 1

    def compute(self, rank: int, group: Group, work: Floats) -> Generator[Any, Any, tuple[float, float]]:
        """Hold the engine for the operators between two joins; from when until when."""
        now = self.env.now
        begin, end = self.engine(rank, work, now)
        start = begin
        self.wait(rank, "compute", group.computes[0].layer, now, start, Cause.ENGINE_BUSY)
        for step in group.computes:
            for name, seconds in step.parts:
                self.span(rank, "compute", name, step.layer, start, start + float(seconds[rank]))
                start += float(seconds[rank])
        yield self.env.timeout(end - now)
        self.books.n_holds += len(group.computes)
        return begin, end

    def engine(self, rank: int, seconds: Floats, at_s: float) -> tuple[float, float]:
        """Start and end of a job that comes to the engine now."""
        self.books.engine_busy_s[rank] += seconds[rank]
        return self.engines[rank].reserve(at_s, float(seconds[rank]))

    def meet(self, rank: int, step: Meeting, meeting: Gathering) -> Generator[Any, Any, None]:
        """Wait for the last rank, then take part in the collective."""
        arrived, seconds = self.env.now, float(step.seconds[rank])
        yield meeting.arrive(arrived)
        now = self.env.now
        self.wait(rank, "comm", step.layer, arrived, now, Cause.BARRIER)
        done = self.out_ports[rank].submit(seconds)
        yield self.in_ports[rank].submit(seconds)
        yield done
        self.ports_busy(rank, seconds, seconds)
        self.books.n_holds += 1
        self.books.comm_s += self.env.now - arrived
        self.span(rank, "comm", step.name, step.layer, now, self.env.now)

    def ports_busy(self, rank: int, out_s: float, in_s: float) -> None:
        """Work done by ports."""
        self.books.out_busy_s[rank] += out_s
        self.books.in_busy_s[rank] += in_s

    def exchange(self, rank: int, step: Exchange, transfer: Transfer, mark: Mark) -> Generator[Any, Any, None]:
        """Send this rank's tokens and take in the others', while hidden operators run on the engine."""
        began, out_s, latency_s = self.env.now, float(step.out_s[rank]), float(step.latency_s[rank])
        self.hide(rank, step, began, mark)
        if transfer.shared is None:
            transfer.shared = SharedTransfer(self.env, self.in_ports, step.in_s.tolist(), step.latency_s.tolist())
        yield transfer.shared.send(rank, self.out_ports[rank], out_s)
        sent, received = transfer.shared.sent_s[rank], transfer.shared.received_s[rank]
        self.wait(rank, "comm", step.layer, began + out_s, sent, Cause.LINK_BUSY)
        self.wait(rank, "comm", step.layer, max(sent, received) + latency_s, self.env.now, Cause.DATA)
        self.ports_busy(rank, out_s, float(step.in_s[rank]))
        self.books.n_holds += 2
        self.books.comm_s += self.env.now - began
        self.span(rank, "comm", step.name, step.layer, began, sent + latency_s)

    def exchange_by_pair(self, rank: int, step: Exchange, transfer: Transfer, mark: Mark) -> Generator[Any, Any, None]:
        """The same by messages: those of one exchange share ports fairly; of two, the one that began first goes first."""
        began, latency_s = self.env.now, float(step.latency_s[rank])
        self.hide(rank, step, began, mark)
        begun = max(began, self.out_free_s[rank])
        self.out_free_s[rank] = begun + float(step.out_s[rank])
        transfer.starts_s[rank] = begun
        yield transfer.all_sent.arrive(begun)
        if transfer.arrived_s is None:
            transfer.arrived_s = self.pair_ends(step, transfer)
        sent, received = (float(x[rank]) for x in transfer.arrived_s)
        done = max(received, sent) + latency_s
        self.wait(rank, "comm", step.layer, sent + latency_s, done, Cause.DATA)
        yield self.env.timeout(max(0.0, done - self.env.now))
        self.ports_busy(rank, float(step.out_s[rank]), float(step.in_s[rank]))
        self.books.n_holds += 2
        self.books.comm_s += self.env.now - began
        self.span(rank, "comm", step.name, step.layer, began, sent + latency_s)

    def pair_ends(self, step: Exchange, transfer: Transfer) -> tuple[Floats, Floats]:
        """All ends of an exchange by pairs, once every sender has said when it starts: nobody is done before that."""
        if step.pairs is None:
            raise TypeError(f"{step.name} has no pairs")
        starts = np.array([transfer.starts_s[rank] for rank in range(self.n_ranks)])
        sent, received, self.pair_free_s = step.pairs.finish(starts, self.pair_free_s)
        return sent, received

    def hide(self, rank: int, step: Exchange, at_s: float, mark: Mark) -> None:
        """Put operators that run beside an exchange on the engine."""
        for i, (name, row) in enumerate(step.hidden):
            start, mark.beside_end_s[rank] = self.engine(rank, row, at_s)
            if i == 0:
                mark.beside_began_s[rank] = start
            self.span(rank, "compute", name, step.layer, start, float(mark.beside_end_s[rank]))

    def span(self, rank: int, lane: str, name: str, layer: int, start_s: float, end_s: float) -> None:
        """Record work."""
        if self.books.record:
            self.books.timeline.add(rank, lane, name, layer, start_s, end_s)

    def wait(self, rank: int, lane: str, layer: int, start_s: float, end_s: float, cause: Cause) -> None:
        """Keep the books on waiting."""
        if end_s > start_s:
            self.books.waits_s[cause] += end_s - start_s
            if self.books.record:
                self.books.timeline.add(rank, lane, "wait", layer, start_s, end_s, cause)


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
