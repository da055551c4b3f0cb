"""What happened when, on which rank and engine: spans of work and of waiting, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOBODY", "Awaited", "Cause", "Span", "Timeline", "TokenFlow"]

#: `Span.awaited` of work, and of waits that no single rank is the reason of.
NOBODY = -1


class Cause(StrEnum):
    """Why an engine stood still or, last, why a micro-batch did while its engine worked on another."""

    BARRIER = "waiting for the slowest rank"
    DATA = "waiting for tokens to arrive"
    LINK_BUSY = "port busy"
    TRANSFER = "own tokens under way"
    ENGINE_BUSY = "engine busy"

    @property
    def is_wait(self) -> bool:
        """Whether an engine stands still for others: not while the rank's own tokens move, nor while the engine works."""
        return self in (Cause.BARRIER, Cause.DATA, Cause.LINK_BUSY)


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of time of one micro-batch on one lane of one rank; `layer` is -1 outside layers.

    `cause` is set where the micro-batch waits, `awaited` is the rank that it waits for, if there is one.
    """

    rank: int
    lane: str
    name: str
    layer: int
    start_s: float
    end_s: float
    cause: Cause | None = None
    batch: int = 0
    awaited: int = NOBODY

    @property
    def duration_s(self) -> float:
        """End less start."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Awaited:
    """A rank that others waited for: `wait_s` is idle time of engines, a mean over all ranks of the pass.

    `n_layers` are the layers in which it was the last, `reasons_s` the parts of `wait_s` by what made it late: groups of
    operators of which it had more than the mean rank, ``traffic`` for bytes, ``engine`` and ``link`` where those are slowed.
    """

    rank: int
    wait_s: float
    n_layers: int
    reasons_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TokenFlow:
    """One hop of a sampled token in a layer: from where and when its row left to where and when work on it began.

    `stage` is ``dispatch`` (home rank to an expert's) or ``combine`` (back).
    """

    token: int
    layer: int
    stage: str
    from_rank: int
    from_s: float
    to_rank: int
    to_s: float


@dataclass(slots=True)
class Timeline:
    """Spans of a run in the order in which they were recorded, of all ranks or of `ranks` alone; `hops` of sampled tokens."""

    n_ranks: int
    spans: list[Span] = field(default_factory=list)
    ranks: tuple[int, ...] | None = None
    hops: tuple[TokenFlow, ...] = ()

    def add(
        self, rank: int, lane: str, name: str, layer: int, start_s: float, end_s: float, cause: Cause | None = None,
        batch: int = 0, awaited: int = NOBODY,
    ) -> None:  # fmt: skip
        """Record a span; empty ones are dropped."""
        if end_s > start_s:
            self.spans.append(Span(rank, lane, name, layer, start_s, end_s, cause, batch, awaited))

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    @property
    def recorded(self) -> tuple[int, ...]:
        """Ranks whose spans are here."""
        return tuple(range(self.n_ranks)) if self.ranks is None else self.ranks

    def busy_s(self, lane: str) -> NDArray[np.float64]:
        """Time that a lane of each rank works, [R]; nothing for ranks that were not recorded."""
        busy = np.zeros(self.n_ranks)
        for span in self.spans:
            if span.cause is None and span.lane == lane:
                busy[span.rank] += span.duration_s
        return busy

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
