"""The books of a simulated pass: who worked and waited when, and that everything balances at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConservationError
from moesim.sim.schedule import Compute, Exchange, Meeting, Step
from moesim.sim.trail import Trail
from moesim.timeline import Cause, Timeline

__all__ = ["Books", "FlowResult", "Group", "Visits", "groups_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FlowResult:
    """What a simulated pass took and where ranks worked and waited; `n_holds` is how many timed activities it had.

    `own_comm_s` is time in exchanges and collectives without waiting for others, mean per rank; stages of a pipeline hand on for
    `sends_s` in all. [R] each: `engine_busy_s`, `out_busy_s` and `in_busy_s` of engines and ports.
    """

    time_s: float
    timeline: Timeline
    waits_s: dict[Cause, float]
    bytes_sent: float
    n_holds: int
    trail: Trail = field(default_factory=Trail, repr=False, compare=False)
    own_comm_s: float = 0.0
    sends_s: float = 0.0
    engine_busy_s: Floats = field(default_factory=lambda: np.zeros(0))
    out_busy_s: Floats = field(default_factory=lambda: np.zeros(0))
    in_busy_s: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def exposed_comm_s(self) -> float:
        """Time in which the rank that the pass waits for computes nothing because of communication (`sim.trail`)."""
        return self.trail.exposed_s + self.sends_s

    @property
    def hidden_comm_s(self) -> float:
        """The rest of the communication of a rank: with compute over it, mean per rank."""
        return max(0.0, self.own_comm_s - self.trail.exposed_s)

    @property
    def slower_wait_s(self) -> float:
        """Time in which the mean rank computes nothing beyond that: it waits for slower ones."""
        return max(0.0, self.time_s - self.exposed_comm_s - float(self.engine_busy_s.mean()))

    @property
    def port_utilisation(self) -> Floats:
        """Part of the pass in which the busier direction of each rank's ports is in use, [R]."""
        return np.maximum(self.out_busy_s, self.in_busy_s) / max(self.time_s, 1e-30)


class Group(NamedTuple):
    """Consecutive computes of a micro-batch and what all ranks meet in after them; None at the end of its steps.

    The engine takes them as one job: nothing makes a rank give way to its other micro-batch between two layers.
    """

    computes: tuple[Compute, ...]
    join: Exchange | Meeting | None

    def work_s(self) -> Floats | None:
        """[R] seconds of all computes, if there are any."""
        return _total([step.seconds for step in self.computes])

    def beside_s(self) -> Floats | None:
        """[R] seconds of what runs beside the join, if anything does."""
        return _total([seconds for _, seconds in self.join.hidden]) if isinstance(self.join, Exchange) else None


def _total(rows: Sequence[Floats]) -> Floats | None:
    if len(rows) < 2:
        return rows[0] if rows else None
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total


def groups_of(steps: Iterable[Step]) -> list[Group]:
    """Steps cut behind each exchange and collective."""
    groups, computes = [], []
    for step in steps:
        if isinstance(step, Compute):
            computes.append(step)
        else:
            groups.append(Group(tuple(computes), step))
            computes = []
    return [*groups, Group(tuple(computes), None)]


@dataclass(frozen=True, slots=True)
class Visits:
    """When the ranks went through groups, one after another: [G, R] each.

    They come to the engine at `arrival_s`, where computes start at `begin_s`, and to the join at `joined_s`. A collective begins
    at `met_s`, [G]. A rank's own bytes are out at `sent_s`, those for it in at `taken_s`; what runs beside them starts at
    `hidden_s`. It goes on at `left_s`. Rows that a group has no use for may hold anything.
    """

    groups: Sequence[Group]
    arrival_s: Floats
    begin_s: Floats
    joined_s: Floats
    left_s: Floats
    sent_s: Floats
    taken_s: Floats
    hidden_s: Floats
    met_s: Floats


class Books:
    """Sums over a pass; spans too if `record`."""

    def __init__(self, n_ranks: int, record: bool) -> None:
        self.n_ranks, self.record = n_ranks, record
        self.timeline = Timeline(n_ranks)
        self.waits_s = dict.fromkeys(Cause, 0.0)
        self.engine_busy_s, self.out_busy_s, self.in_busy_s, self.ends_s = (np.zeros(n_ranks) for _ in range(4))
        self.comm_s = 0.0
        self.trail = Trail()
        self.bytes_sent = 0.0
        self.n_holds = 0

    def enter(self, visits: Visits) -> None:
        """Put groups that all ranks have been through into the books."""
        groups = visits.groups
        seconds = [step.seconds for group in groups for step in group.computes]
        self.n_holds += self.n_ranks * len(seconds)
        self.engine_busy_s += self._sum(seconds)
        computing = [g for g, group in enumerate(groups) if group.computes]
        self._waited(Cause.ENGINE_BUSY, visits.arrival_s[computing], visits.begin_s[computing])
        # at the end of a micro-batch nothing is joined
        self.comm_s += float((visits.left_s - visits.joined_s)[: len(groups) - 1].sum())
        self._meetings(visits)
        self._exchanges(visits)
        self.trail.follow(visits)
        if self.record:
            for g in range(len(groups)):
                self._trace(visits, g)

    def _meetings(self, visits: Visits) -> None:
        joins = [(g, group.join) for g, group in enumerate(visits.groups) if isinstance(group.join, Meeting)]
        rows = [g for g, _ in joins]
        busy = self._sum([join.seconds for _, join in joins])
        self.n_holds += self.n_ranks * len(joins)
        self.out_busy_s += busy
        self.in_busy_s += busy
        self._waited(Cause.BARRIER, visits.joined_s[rows], visits.met_s[rows, None])

    def _exchanges(self, visits: Visits) -> None:
        joins = [(g, group.join) for g, group in enumerate(visits.groups) if isinstance(group.join, Exchange)]
        if not joins:
            return
        rows = [g for g, _ in joins]
        out_s, in_s, latency = (
            np.array(x) for x in zip(*((j.out_s, j.in_s, j.latency_s) for _, j in joins), strict=True)
        )
        sent = visits.sent_s[rows]
        self.n_holds += 2 * self.n_ranks * len(joins)
        self.out_busy_s += out_s.sum(axis=0)
        self.in_busy_s += in_s.sum(axis=0)
        self.engine_busy_s += self._sum([seconds for _, join in joins for _, seconds in join.hidden])
        self._waited(Cause.LINK_BUSY, visits.joined_s[rows] + out_s, sent)
        self._waited(Cause.DATA, np.maximum(sent, visits.taken_s[rows]) + latency, visits.left_s[rows])

    def _sum(self, rows: Sequence[Floats]) -> Floats:
        return np.array(rows).sum(axis=0) if rows else np.zeros(self.n_ranks)

    def _waited(self, cause: Cause, starts_s: Floats, ends_s: Floats) -> None:
        """Waiting wherever an end is after its start."""
        self.waits_s[cause] += float(np.maximum(ends_s - starts_s, 0.0).sum())

    def _trace(self, visits: Visits, g: int) -> None:
        """Spans of one group."""
        at, join, joined = visits.begin_s[g], visits.groups[g].join, visits.joined_s[g]
        for i, step in enumerate(visits.groups[g].computes):
            if i == 0:
                self.span("compute", "wait", step.layer, visits.arrival_s[g], at, Cause.ENGINE_BUSY)
            self.spans("compute", step.parts, step.layer, at)
            at = at + step.seconds
        if isinstance(join, Meeting):
            met = np.full(self.n_ranks, visits.met_s[g])
            self.span("comm", "wait", join.layer, joined, met, Cause.BARRIER)
            self.span("comm", join.name, join.layer, met, visits.left_s[g])
        elif join is not None:
            self.spans("compute", join.hidden, join.layer, visits.hidden_s[g])
            sent = visits.sent_s[g]
            landed = np.maximum(sent, visits.taken_s[g]) + join.latency_s
            self.span("comm", "wait", join.layer, joined + join.out_s, sent, Cause.LINK_BUSY)
            self.span("comm", "wait", join.layer, landed, visits.left_s[g], Cause.DATA)
            self.span("comm", join.name, join.layer, joined, sent + join.latency_s)

    def span(
        self, lane: str, name: str, layer: int, start_s: Floats, end_s: Floats, cause: Cause | None = None
    ) -> None:
        """A span for every rank whose end is after its start."""
        for rank, (start, end) in enumerate(zip(start_s.tolist(), end_s.tolist(), strict=True)):
            self.timeline.add(rank, lane, name, layer, start, end, cause)

    def spans(self, lane: str, parts: Sequence[tuple[str, Floats]], layer: int, at_s: Floats) -> None:
        """Operators one after another."""
        for name, seconds in parts:
            self.span(lane, name, layer, at_s, at_s + seconds)
            at_s = at_s + seconds

    def balance(self, steps: Iterable[Step]) -> None:
        """Bytes out are bytes in.

        Raises:
            ConservationError: where they are not.
        """
        for step in steps:
            if not isinstance(step, Exchange):
                continue
            if abs(step.out_bytes - step.in_bytes) > 1e-3 * max(step.out_bytes, 1.0):
                raise ConservationError(
                    f"{step.name} of layer {step.layer}: {step.out_bytes:.0f} bytes out, {step.in_bytes:.0f} in"
                )
            self.bytes_sent += step.out_bytes

    def result(self, sends_s: float) -> FlowResult:
        """Close the books; stages of a pipeline hand on for `sends_s` in all."""
        n = self.n_ranks
        end, self.trail.ends_s = float(self.ends_s.max()), self.ends_s
        own_s = self.comm_s - self.waits_s[Cause.BARRIER] - self.waits_s[Cause.DATA]
        return FlowResult(
            time_s=end + sends_s, timeline=self.timeline, waits_s={c: s / n for c, s in self.waits_s.items()},
            bytes_sent=self.bytes_sent, n_holds=self.n_holds, trail=self.trail, own_comm_s=own_s / n, sends_s=sends_s,
            engine_busy_s=self.engine_busy_s, out_busy_s=self.out_busy_s, in_busy_s=self.in_busy_s,
        )  # fmt: skip
