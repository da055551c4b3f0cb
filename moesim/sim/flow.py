"""Token flow inside one forward pass, as a discrete-event simulation: one process per rank of a stage and micro-batch.

Every rank computes, sends its tokens, receives others', computes its experts and sends results back. Compute engines and ports
are busy for the durations of the cost model; what the simulation adds is who waits for whom. In `rank` granularity a rank's
port carries all of its traffic of one exchange as one transfer: it starts to receive when the first sender starts, at full port
speed, and is done when its bytes are through and the last sender has finished. In `pair` and `chunk` granularity every receiver
waits for the messages meant for it.

A rank with one micro-batch has its engine and ports to itself, so it runs ahead of the clock until it meets others; two
micro-batches queue for the engine and share the ports as the clock goes.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.cost import CostModel
from moesim.errors import ConservationError
from moesim.ops import Program
from moesim.sim.elements import FairPort, Gathering, Server, SharedTransfer, Transfer
from moesim.sim.options import FlowOptions
from moesim.sim.schedule import Compute, Exchange, Meeting, Step, split_schedule
from moesim.timeline import Cause, Timeline

__all__ = ["FlowResult", "simulate"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FlowResult:
    """What a simulated pass took and where ranks worked and waited; `n_holds` is how many timed activities it had.

    Means per rank: `exposed_comm_s` is time inside the pass in which the compute engine stands idle (transfers and waits with no
    compute over them), `hidden_comm_s` the rest of the time spent in exchanges and collectives. [R] each: `engine_busy_s`,
    `out_busy_s` and `in_busy_s` of engines and ports.
    """

    time_s: float
    timeline: Timeline
    waits_s: dict[Cause, float]
    bytes_sent: float
    n_holds: int
    exposed_comm_s: float = 0.0
    hidden_comm_s: float = 0.0
    engine_busy_s: Floats = field(default_factory=lambda: np.zeros(0))
    out_busy_s: Floats = field(default_factory=lambda: np.zeros(0))
    in_busy_s: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def port_utilisation(self) -> Floats:
        """Part of the pass in which the busier direction of each rank's ports is in use, [R]."""
        return np.maximum(self.out_busy_s, self.in_busy_s) / max(self.time_s, 1e-30)


def simulate(
    program: Program, model: CostModel, *, record: bool = True, options: FlowOptions | None = None
) -> FlowResult:
    """Run one pass.

    Args:
        program: the pass; arrays in it have one column per rank.
        model: gives every duration.
        record: keep spans; off, only times and waits are kept.
        options: granularity, stragglers, launches.

    Raises:
        ConservationError: bytes or processes do not balance at the end.
        InputError: options that do not fit the pass.
    """
    parts = split_schedule(program, model, options)
    run = _Run(program.n_ranks, record)
    alone = len(parts.batches) == 1
    stages = (
        [[parts.before + parts.batches[0] + parts.after]] if alone else [[parts.before], parts.batches, [parts.after]]
    )
    for batches in stages:
        run.run(batches, alone=alone)
    sends = sum(_largest(model.cost(op).time_s) for op in program.stage_sends) * (program.pp_size - 1)
    return run.result(sends)


class _Run:
    """State of one simulation."""

    def __init__(self, n_ranks: int, record: bool) -> None:
        self.env = simpy.Environment()
        self.n_ranks = n_ranks
        self.timeline = Timeline(n_ranks)
        self.record = record
        self.waits_s = dict.fromkeys(Cause, 0.0)
        self.engines = [Server() for _ in range(n_ranks)]
        self.out_busy_s, self.in_busy_s = [0.0] * n_ranks, [0.0] * n_ranks
        self.out_free_s, self.in_free_s = [0.0] * n_ranks, [0.0] * n_ranks
        self.comm_s = 0.0
        self.out_ports = [FairPort(self.env) for _ in range(n_ranks)]
        self.in_ports = [FairPort(self.env) for _ in range(n_ranks)]
        self.pair_free_s = np.zeros((2, n_ranks))
        self.bytes_sent = 0.0
        self.n_holds = 0
        self.n_alive = 0
        self.ends_s = [0.0] * n_ranks

    def run(self, batches: Sequence[Sequence[Step]], *, alone: bool) -> None:
        """One process per rank and micro-batch, from where the ranks are to the end of the steps."""
        transfers = []
        for steps in batches:
            meetings: dict[int, Any] = {}
            for i, step in enumerate(steps):
                if isinstance(step, Meeting):
                    meetings[i] = Gathering(self.env, self.n_ranks)
                elif isinstance(step, Exchange):
                    meetings[i] = Transfer(Gathering(self.env, self.n_ranks))
            transfers.append((steps, meetings))
            for rank in range(self.n_ranks):
                work = self.forward(rank, steps, meetings) if alone else self.interleave(rank, steps, meetings)
                self.env.process(work)
        with _collector_paused():
            self.env.run()
        for steps, meetings in transfers:
            self.check(steps, meetings)

    def forward(self, rank: int, steps: Sequence[Step], meetings: dict[int, Any]) -> Generator[Any, Any, None]:
        """One rank's way through the pass with engine and ports to itself; `at` is its own clock, ahead of the simulation's."""
        self.n_alive += 1
        env, record = self.env, self.record
        at, engine_free, busy, comm, n_holds = 0.0, 0.0, 0.0, 0.0, 0
        for index, step in enumerate(steps):
            if isinstance(step, Compute):
                n_holds += 1
                seconds = step.seconds[rank]
                if engine_free > at:
                    self.wait(rank, "compute", step.layer, at, engine_free, Cause.ENGINE_BUSY)
                    at = engine_free
                if record:
                    self.record_compute(rank, step, at)
                at += seconds
                busy += seconds
            elif isinstance(step, Exchange):
                n_holds += 2
                meeting = meetings[index]
                sent = at + step.out_s[rank]
                if meeting.first_start_s is None or at < meeting.first_start_s:
                    meeting.first_start_s = at
                meeting.ranks.add(rank)
                if step.pairs is not None:
                    meeting.starts_s[rank] = at
                if step.hidden:
                    engine_free, hidden_s = self.hide(rank, step, max(at, engine_free))
                    busy += hidden_s
                yield meeting.all_sent.arrive(sent)
                done, sent = self.land(rank, step, meeting, sent)
                comm += done - at
                if record:
                    self.timeline.add(rank, "comm", step.name, step.layer, at, sent + step.latency_s[rank])
                at = done
            else:
                n_holds += 1
                yield meetings[index].arrive(at)
                now = env.now
                if now > at:
                    self.wait(rank, "comm", step.layer, at, now, Cause.BARRIER)
                seconds = step.seconds[rank]
                if record:
                    self.timeline.add(rank, "comm", step.name, step.layer, now, now + seconds)
                comm += now + seconds - at
                self.out_busy_s[rank] += seconds
                self.in_busy_s[rank] += seconds
                at = now + seconds
        self.ends_s[rank] = at
        self.engines[rank].busy_s += busy
        self.comm_s += comm
        self.n_holds += n_holds
        self.n_alive -= 1

    def land(self, rank: int, step: Exchange, transfer: Transfer, sent: float) -> tuple[float, float]:
        """When a rank has everything that it waits for, and when it was through with sending."""
        latency = step.latency_s[rank]
        if step.pairs is not None:
            if transfer.arrived_s is None:
                transfer.arrived_s = self.pair_ends(step, transfer)
            all_sent, received = transfer.arrived_s[0][rank], transfer.arrived_s[1][rank]
            own, done = float(all_sent) + latency, float(max(received, all_sent)) + latency
            self.wait(rank, "comm", step.layer, own, done, Cause.DATA)
            return done, float(all_sent)
        first, into = transfer.first_start_s or 0.0, step.in_s[rank]
        begun = max(first, self.in_free_s[rank])
        received = self.in_free_s[rank] = begun + into
        self.out_busy_s[rank] += step.out_s[rank]
        self.in_busy_s[rank] += into
        done = max(self.env.now, received, sent) + latency
        own = max(sent, received) + latency
        if done > own:
            self.wait(rank, "comm", step.layer, own, done, Cause.DATA)
        return done, sent

    def pair_ends(self, step: Exchange, transfer: Transfer) -> tuple[Floats, Floats]:
        """All ends of an exchange by pairs, once every sender has said when it starts: nobody is done before that."""
        if step.pairs is None:
            raise TypeError(f"{step.name} has no pairs")
        starts = np.array([transfer.starts_s[rank] for rank in range(self.n_ranks)])
        sent, received, self.pair_free_s = step.pairs.finish(starts, self.pair_free_s)
        for rank in range(self.n_ranks):
            self.out_busy_s[rank] += step.out_s[rank]
            self.in_busy_s[rank] += step.in_s[rank]
        return sent, received

    def interleave(self, rank: int, steps: Sequence[Step], meetings: dict[int, Any]) -> Generator[Any, Any, None]:
        """One micro-batch of a rank beside others: it queues for the engine and shares the ports."""
        self.n_alive += 1
        if self.ends_s[rank] > self.env.now:
            yield self.env.timeout(self.ends_s[rank] - self.env.now)
        for index, step in enumerate(steps):
            if isinstance(step, Compute):
                yield from self.compute(rank, step)
            elif isinstance(step, Meeting):
                yield from self.meet(rank, step, meetings[index])
            else:
                yield from self.exchange(rank, step, meetings[index])
        self.ends_s[rank] = max(self.ends_s[rank], self.env.now)
        self.n_alive -= 1

    def compute(self, rank: int, step: Compute) -> Generator[Any, Any, None]:
        """Hold the engine for the operators between two exchanges."""
        now = self.env.now
        start, end = self.engines[rank].reserve(now, step.seconds[rank])
        self.wait(rank, "compute", step.layer, now, start, Cause.ENGINE_BUSY)
        if self.record:
            self.record_compute(rank, step, start)
        yield self.hold(end - now)

    def meet(self, rank: int, step: Meeting, meeting: Gathering) -> Generator[Any, Any, None]:
        """Wait for the last rank, then take part in the collective."""
        arrived = self.env.now
        yield meeting.arrive(arrived)
        now = self.env.now
        self.wait(rank, "comm", step.layer, arrived, now, Cause.BARRIER)
        done = self.out_ports[rank].submit(step.seconds[rank])
        yield self.in_ports[rank].submit(step.seconds[rank])
        yield done
        self.n_holds += 1
        self.comm_s += self.env.now - arrived
        if self.record:
            self.timeline.add(rank, "comm", step.name, step.layer, now, self.env.now)

    def exchange(self, rank: int, step: Exchange, transfer: Transfer) -> Generator[Any, Any, None]:
        """Send this rank's tokens and take in the others', while hidden operators run on the engine."""
        began = self.env.now
        transfer.ranks.add(rank)
        self.hide(rank, step, began, reserve=True)
        if step.pairs is not None:
            # pairs of one exchange share ports fairly; of two exchanges, the one that began first goes first
            begun = max(began, self.out_free_s[rank])
            self.out_free_s[rank] = begun + step.out_s[rank]
            transfer.starts_s[rank] = begun
            yield transfer.all_sent.arrive(begun)
            done, sent = self.land(rank, step, transfer, begun)
            yield self.hold(max(0.0, done - self.env.now))
        else:
            if transfer.shared is None:
                transfer.shared = SharedTransfer(self.env, self.in_ports, step.in_s, step.latency_s)
            yield transfer.shared.send(rank, self.out_ports[rank], step.out_s[rank])
            sent = transfer.shared.sent_s[rank]
            self.wait(rank, "comm", step.layer, began + step.out_s[rank], sent, Cause.LINK_BUSY)
            self.wait(rank, "comm", step.layer, sent, self.env.now - step.latency_s[rank], Cause.DATA)
            self.n_holds += 2
        self.comm_s += self.env.now - began
        if self.record:
            self.timeline.add(rank, "comm", step.name, step.layer, began, sent + step.latency_s[rank])

    def hide(self, rank: int, step: Exchange, at: float, *, reserve: bool = False) -> tuple[float, float]:
        """Put operators that run beside an exchange on the engine; when it is free again, and their time."""
        total = 0.0
        for name, row in step.hidden:
            seconds = row[rank]
            start, end = self.engines[rank].reserve(at, seconds) if reserve else (at, at + seconds)
            if self.record:
                self.timeline.add(rank, "compute", name, step.layer, start, end)
            at, total = end, total + seconds
        return at, total

    def record_compute(self, rank: int, step: Compute, at: float) -> None:
        """Spans of the operators of one hold."""
        for name, seconds in step.parts:
            self.timeline.add(rank, "compute", name, step.layer, at, at + seconds[rank])
            at += seconds[rank]

    def hold(self, seconds: float) -> Any:
        """A timed event."""
        self.n_holds += 1
        return self.env.timeout(seconds)

    def wait(self, rank: int, lane: str, layer: int, start: float, end: float, cause: Cause) -> None:
        """Keep the books on waiting."""
        if end > start:
            self.waits_s[cause] += end - start
            if self.record:
                self.timeline.add(rank, lane, "wait", layer, start, end, cause)

    def check(self, steps: Sequence[Step], meetings: dict[int, Any]) -> None:
        """Nothing alive, everybody met, bytes out are bytes in."""
        if self.n_alive:
            raise ConservationError(f"{self.n_alive} of {self.n_ranks} ranks never finished the pass")
        for index, step in enumerate(steps):
            if not isinstance(step, Exchange):
                continue
            if len(meetings[index].ranks) != self.n_ranks:
                raise ConservationError(
                    f"{len(meetings[index].ranks)} of {self.n_ranks} ranks took part in an exchange"
                )
            if abs(step.out_bytes - step.in_bytes) > 1e-3 * max(step.out_bytes, 1.0):
                raise ConservationError(
                    f"{step.name} of layer {step.layer}: {step.out_bytes:.0f} bytes out, {step.in_bytes:.0f} in"
                )
            self.bytes_sent += step.out_bytes

    def result(self, sends_s: float) -> FlowResult:
        """Close the books."""
        n = self.n_ranks
        end = max(self.ends_s)
        busy = np.array([engine.busy_s for engine in self.engines])
        out = np.array(self.out_busy_s) + np.array([port.busy_s for port in self.out_ports])
        into = np.array(self.in_busy_s) + np.array([port.busy_s for port in self.in_ports])
        exposed = end - float(busy.mean())
        return FlowResult(
            time_s=end + sends_s, timeline=self.timeline, waits_s={c: s / n for c, s in self.waits_s.items()},
            bytes_sent=self.bytes_sent, n_holds=self.n_holds, exposed_comm_s=exposed + sends_s,
            hidden_comm_s=max(0.0, self.comm_s / n - exposed), engine_busy_s=busy, out_busy_s=out, in_busy_s=into,
        )  # fmt: skip


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


def _largest(x: Any) -> float:
    return float(x.max()) if hasattr(x, "max") else float(x)
