"""What happened when, on which rank and engine: spans of work and of waiting, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cause", "Span", "Timeline"]


class Cause(StrEnum):
    """Why a rank stood still."""

    BARRIER = "waiting for the slowest rank"
    DATA = "waiting for tokens to arrive"
    LINK_BUSY = "port busy"
    ENGINE_BUSY = "engine busy"


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of time on one lane of one rank; `cause` is set where the rank waits. `layer` is -1 outside layers."""

    rank: int
    lane: str
    name: str
    layer: int
    start_s: float
    end_s: float
    cause: Cause | None = None

    @property
    def duration_s(self) -> float:
        """End less start."""
        return self.end_s - self.start_s


@dataclass(slots=True)
class Timeline:
    """All spans of a run in the order in which they were recorded."""

    n_ranks: int
    spans: list[Span] = field(default_factory=list)

    def add(
        self, rank: int, lane: str, name: str, layer: int, start_s: float, end_s: float, cause: Cause | None = None
    ) -> None:
        """Record a span; empty ones are dropped."""
        if end_s > start_s:
            self.spans.append(Span(rank, lane, name, layer, start_s, end_s, cause))

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def waits_by_cause_s(self) -> dict[Cause, float]:
        """Mean time per rank spent waiting, by cause."""
        total: dict[Cause, float] = {}
        for span in self.spans:
            if span.cause is not None:
                total[span.cause] = total.get(span.cause, 0.0) + span.duration_s / self.n_ranks
        return total

    def busy_s(self, lane: str) -> NDArray[np.float64]:
        """Time that a lane of each rank works, [R]."""
        busy = np.zeros(self.n_ranks)
        for span in self.spans:
            if span.cause is None and span.lane == lane:
                busy[span.rank] += span.duration_s
        return busy

    def wait_map_s(self, layers: Sequence[int]) -> NDArray[np.float64]:
        """Waiting by rank and layer, [R, L]."""
        column = {layer: i for i, layer in enumerate(layers)}
        waits = np.zeros((self.n_ranks, len(column)))
        for span in self.spans:
            if span.cause is not None and span.layer in column:
                waits[span.rank, column[span.layer]] += span.duration_s
        return waits

    def overlaps(self) -> list[tuple[Span, Span]]:
        """Pairs of working spans that share a lane of a rank at the same time; empty if the simulation is sound."""
        bad = []
        by_lane: dict[tuple[int, str], list[Span]] = {}
        for span in self.spans:
            if span.cause is None:
                by_lane.setdefault((span.rank, span.lane), []).append(span)
        for lane_spans in by_lane.values():
            ordered = sorted(lane_spans, key=lambda s: (s.start_s, s.end_s))
            for a, b in pairwise(ordered):
                if b.start_s < a.end_s - 1e-12:
                    bad.append((a, b))
        return bad
