"""Token flow inside one forward pass, as a discrete-event simulation: one process per rank of a stage.

Every rank computes, sends its tokens, receives others', computes its experts and sends results back. Compute engines and ports
are busy for the durations of the cost model; what the simulation adds is who waits for whom. In `rank` granularity a rank's
port carries all of its traffic of one exchange as one transfer: it starts to receive when the first sender starts, at full port
speed, and is done when its bytes are through and the last sender has finished.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from moesim.cost import CostModel
from moesim.errors import ConservationError
from moesim.ops import Program
from moesim.sim.elements import Gathering, Server, Transfer
from moesim.sim.schedule import Compute, Exchange, Meeting, Step, schedule
from moesim.timeline import Cause, Timeline

__all__ = ["FlowResult", "simulate"]


@dataclass(frozen=True, slots=True)
class FlowResult:
    """What a simulated pass took and where ranks worked and waited; `n_holds` is how many timed events it needed."""

    time_s: float
    timeline: Timeline
    waits_s: dict[Cause, float]
    bytes_sent: float
    n_holds: int


def simulate(program: Program, model: CostModel, *, record: bool = True) -> FlowResult:
    """Run one pass.

    Args:
        program: the pass; arrays in it have one column per rank.
        model: gives every duration.
        record: keep spans; off, only times and waits are kept.

    Raises:
        ConservationError: bytes or processes do not balance at the end.
    """
    run = _Run(schedule(program, model), program, record)
    run.start()
    run.env.run()
    run.check()
    time_s = run.env.now + sum(_largest(model.cost(op).time_s) for op in program.stage_sends) * (program.pp_size - 1)
    return FlowResult(
        time_s, run.timeline, {c: s / program.n_ranks for c, s in run.waits_s.items()}, run.bytes_sent, run.n_holds
    )


class _Run:
    """State of one simulation."""

    def __init__(self, steps: Sequence[Step], program: Program, record: bool) -> None:
        self.env = simpy.Environment()
        self.steps = steps
        self.n_ranks = program.n_ranks
        self.timeline = Timeline(program.n_ranks)
        self.record = record
        self.waits_s = dict.fromkeys(Cause, 0.0)
        self.engines = [Server() for _ in range(self.n_ranks)]
        self.out_ports = [Server() for _ in range(self.n_ranks)]
        self.in_ports = [Server() for _ in range(self.n_ranks)]
        self.meetings = {i: Gathering(self.env, self.n_ranks) for i, s in enumerate(steps) if isinstance(s, Meeting)}
        self.transfers = {
            i: Transfer(Gathering(self.env, self.n_ranks)) for i, s in enumerate(steps) if isinstance(s, Exchange)
        }
        self.bytes_sent = 0.0
        self.n_holds = 0
        self.n_alive = 0

    def start(self) -> None:
        """One process per rank."""
        for rank in range(self.n_ranks):
            self.env.process(self.forward(rank))

    def forward(self, rank: int) -> Generator[Any, Any, None]:
        """One rank's way through the pass."""
        self.n_alive += 1
        for index, step in enumerate(self.steps):
            if isinstance(step, Compute):
                yield from self.compute(rank, step)
            elif isinstance(step, Meeting):
                yield from self.meet(rank, step, self.meetings[index])
            else:
                yield from self.exchange(rank, step, self.transfers[index])
        self.n_alive -= 1

    def compute(self, rank: int, step: Compute) -> Generator[Any, Any, None]:
        """Hold the engine for the operators between two exchanges."""
        now = self.env.now
        start, end = self.engines[rank].reserve(now, step.seconds[rank])
        self.wait(rank, "compute", step.layer, now, start, Cause.ENGINE_BUSY)
        if self.record:
            at = start
            for name, seconds in step.parts:
                self.timeline.add(rank, "compute", name, step.layer, at, at + seconds[rank])
                at += seconds[rank]
        yield self.hold(end - now)

    def meet(self, rank: int, step: Meeting, meeting: Gathering) -> Generator[Any, Any, None]:
        """Wait for the last rank, then take part in the collective."""
        arrived = self.env.now
        yield meeting.arrive()
        now = self.env.now
        self.wait(rank, "comm", step.layer, arrived, now, Cause.BARRIER)
        start, end = self.out_ports[rank].reserve(now, step.seconds[rank])
        self.wait(rank, "comm", step.layer, now, start, Cause.LINK_BUSY)
        if self.record:
            self.timeline.add(rank, "comm", step.name, step.layer, start, end)
        yield self.hold(end - now)

    def exchange(self, rank: int, step: Exchange, transfer: Transfer) -> Generator[Any, Any, None]:
        """Send this rank's tokens and take in the others', while hidden operators run on the engine."""
        now = self.env.now
        start, sent = self.out_ports[rank].reserve(now, step.out_s[rank])
        self.wait(rank, "comm", step.layer, now, start, Cause.LINK_BUSY)
        if transfer.first_start_s is None:
            transfer.first_start_s = start
        self.hide(rank, step, start)
        _, received = self.in_ports[rank].reserve(transfer.first_start_s, step.in_s[rank])
        transfer.ranks.add(rank)
        if sent > now:
            yield self.hold(sent - now)
        yield transfer.all_sent.arrive()
        done = max(self.env.now, received, sent) + step.latency_s[rank]
        if self.record:
            self.timeline.add(rank, "comm", step.name, step.layer, start, sent + step.latency_s[rank])
        own = max(sent, received) + step.latency_s[rank]
        self.wait(rank, "comm", step.layer, own, done, Cause.DATA)
        if done > self.env.now:
            yield self.hold(done - self.env.now)

    def hide(self, rank: int, step: Exchange, now: float) -> None:
        """Put operators that run beside an exchange on the engine."""
        for name, seconds in step.hidden:
            start, end = self.engines[rank].reserve(now, seconds[rank])
            if self.record:
                self.timeline.add(rank, "compute", name, step.layer, start, end)

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

    def check(self) -> None:
        """Nothing alive, everybody met, bytes out are bytes in."""
        if self.n_alive:
            raise ConservationError(f"{self.n_alive} of {self.n_ranks} ranks never finished the pass")
        for index, transfer in self.transfers.items():
            step = self.steps[index]
            if len(transfer.ranks) != self.n_ranks or not isinstance(step, Exchange):
                raise ConservationError(f"{len(transfer.ranks)} of {self.n_ranks} ranks took part in an exchange")
            if abs(step.out_bytes - step.in_bytes) > 1e-3 * max(step.out_bytes, 1.0):
                raise ConservationError(
                    f"{step.name} of layer {step.layer}: {step.out_bytes:.0f} bytes out, {step.in_bytes:.0f} in"
                )
            self.bytes_sent += step.out_bytes


def _largest(x: Any) -> float:
    return float(x.max()) if hasattr(x, "max") else float(x)
