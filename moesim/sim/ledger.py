"""What a simulated pass shows of its ranks, worked out when first asked for: idle engines, whom they waited for, spans."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.sim.awaited import Circumstances, awaited_ranks
from moesim.sim.idle import Idle, boundaries, idle_times, last_of
from moesim.sim.schedule import Meeting
from moesim.sim.visits import Stay, Visit, Visits
from moesim.timeline import NOBODY, Awaited, Cause, Timeline

__all__ = ["Ledger"]

Floats = NDArray[np.float64]
#: Waits that are no longer than this are none.
ROUNDING_S = 1e-13


class Ledger:
    """Every visit of a pass, with its micro-batch.

    `ends_s` [R] is when ranks are through, after which stages of a pipeline hand on for `sends_s`.
    """

    def __init__(
        self, n_ranks: int, visits: Sequence[tuple[int, Visits]], ends_s: Floats, sends_s: float = 0.0,
        known: Circumstances | None = None,
    ) -> None:  # fmt: skip
        self.n_ranks, self._visits, self._ends_s, self._sends_s = n_ranks, tuple(visits), ends_s, sends_s
        self._known = known or Circumstances()

    @cached_property
    def _stays(self) -> tuple[Stay, ...]:
        return tuple(Stay(batch, tuple(visits)) for batch, visits in self._visits)

    @cached_property
    def idle(self) -> Idle:
        """Idle time of engines until the pass is over."""
        found = idle_times(self._stays, self.n_ranks)
        found.by_cause_s[Cause.TRANSFER] += self._sends_s
        rest = self._rest_s(found)
        found.by_cause_s[Cause.BARRIER] += rest
        found.waits_s[-1] = found.waits_s.get(-1, np.zeros(self.n_ranks)) + rest
        return found

    @cached_property
    def awaited(self) -> tuple[Awaited, ...]:
        """Ranks that others waited for, the most waited for first."""
        last = int(self._ends_s.argmax())
        end = last, float(self._rest_s().sum())
        return awaited_ranks(self._stays, self.idle.awaited, self._known, self.n_ranks, end)

    def _rest_s(self, idle: Idle | None = None) -> Floats:
        """What each rank waits for the last one at the end; work beside the very last exchange may outlast its own end."""
        done = np.maximum(self._ends_s, (idle or self.idle).free_s)
        rest: Floats = np.maximum(self._ends_s.max() - done, 0.0)
        return rest

    @cached_property
    def own_comm_s(self) -> float:
        """Time in exchanges and collectives without waiting for others, mean per rank; compute may go on meanwhile."""
        total = 0.0
        for stay in self._stays:
            for visit in stay.visits:
                times = boundaries(visit)
                if times is not None and isinstance(visit.group.join, Meeting):
                    total += float((times.left_s - times.late_s).sum())
                elif times is not None:
                    total += float((times.own_s - times.joined_s).sum())
        return total / max(self.n_ranks, 1)

    def wait_map_s(self, layers: Sequence[int]) -> Floats:
        """Idle time of engines by rank and layer, own transfers left out, [R, L]."""
        nothing = np.zeros(self.n_ranks)
        return np.array([self.idle.waits_s.get(layer, nothing) for layer in layers]).T

    def timeline(self, ranks: Sequence[int] | None = None) -> Timeline:
        """Spans of all ranks, or of some."""
        chosen = None if ranks is None else tuple(sorted(set(ranks)))
        timeline = Timeline(self.n_ranks, ranks=chosen)
        for stay in self._stays:
            scribe = _Scribe(timeline, stay.batch)
            for visit in stay.visits:
                scribe.write(visit)
        return timeline


class _Scribe:
    """Writes visits of a micro-batch as spans of the ranks that a timeline is for."""

    def __init__(self, timeline: Timeline, batch: int) -> None:
        self._timeline, self._batch = timeline, batch
        self._ranks = timeline.recorded
        self._at = slice(None) if timeline.ranks is None else np.array(timeline.ranks, dtype=int)

    def write(self, visit: Visit) -> None:
        """Computes, then the join."""
        at = visit.begin_s
        for i, step in enumerate(visit.group.computes):
            if i == 0:
                self._span("compute", "wait", step.layer, visit.arrival_s, at, Cause.ENGINE_BUSY)
            self._parts(step.parts, step.layer, at)
            at = at + step.seconds
        join, times = visit.group.join, boundaries(visit)
        if join is None or times is None:
            return
        layer, awaited = join.layer, last_of(visit)
        if isinstance(join, Meeting):
            self._span("comm", "wait", layer, times.own_s, times.late_s, Cause.BARRIER, awaited)
            self._span("comm", join.name, layer, times.late_s, times.left_s)
            return
        self._parts(join.hidden, layer, visit.hidden_s)
        self._span("comm", "wait", layer, times.out_s, times.sent_s, Cause.LINK_BUSY)
        self._span("comm", "wait", layer, times.own_s, times.late_s, Cause.BARRIER, awaited)
        self._span("comm", "wait", layer, times.late_s, times.left_s, Cause.DATA, awaited)
        self._span("comm", join.name, layer, times.joined_s, times.sent_s + join.latency_s)

    def _parts(self, parts: Sequence[tuple[str, Floats]], layer: int, at_s: Floats) -> None:
        for name, seconds in parts:
            self._span("compute", name, layer, at_s, at_s + seconds)
            at_s = at_s + seconds

    def _span(
        self, lane: str, name: str, layer: int, start_s: Floats, end_s: Floats, cause: Cause | None = None,
        awaited: int = NOBODY,
    ) -> None:  # fmt: skip
        starts, ends = start_s[self._at].tolist(), end_s[self._at].tolist()
        for rank, start, end in zip(self._ranks, starts, ends, strict=True):
            if cause is None or end - start > ROUNDING_S:
                self._timeline.add(rank, lane, name, layer, start, end, cause, self._batch, awaited)
