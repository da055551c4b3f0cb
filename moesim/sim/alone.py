"""One micro-batch: every rank has its engine and ports to itself, so all ranks step together from join to join.

Times of a step are vectors over ranks. Ranks depend on each other only through two numbers of each exchange, the first sender's
start and the last one's end, and through the last arrival at a collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.sim.books import Books, Group, Visits, groups_of
from moesim.sim.schedule import Exchange, Meeting, Step

__all__ = ["run_alone"]

Floats = NDArray[np.float64]


def run_alone(steps: Sequence[Step], books: Books) -> None:
    """Take all ranks through the steps, from where the books say they are."""
    ranks, groups = _Ranks(books), groups_of(steps)
    rows = [ranks.through(group) for group in groups]
    arrival, begin, joined, left, sent, taken, hidden, met = (np.array(column) for column in zip(*rows, strict=True))
    books.enter(Visits(groups, arrival, begin, joined, left, sent, taken, hidden, met))
    books.ends_s = ranks.at_s
    books.balance(steps)


class _Ranks:
    """Where all ranks are: their clocks, and when engines and receiving ports are free."""

    def __init__(self, books: Books) -> None:
        self.at_s = books.ends_s.copy()
        self.engine_free_s = np.zeros(books.n_ranks)
        self.in_free_s = np.zeros(books.n_ranks)
        self.pair_free_s = np.zeros((2, books.n_ranks))

    def through(self, group: Group) -> tuple[Floats | float, ...]:
        """Computes, then the join; its row of `Visits`."""
        arrival = begin = joined = self.at_s
        work, join = group.work_s(), group.join
        if work is not None:
            begin = np.maximum(arrival, self.engine_free_s)
            joined = begin + work
        left = sent = taken = hidden = joined
        met = 0.0
        if isinstance(join, Exchange):
            beside = group.beside_s()
            if beside is not None:
                hidden = np.maximum(joined, self.engine_free_s)
                self.engine_free_s = hidden + beside
            sent, taken, left = self._exchange(join, joined)
        elif isinstance(join, Meeting):
            met = float(joined.max())
            left = self.in_free_s = met + join.seconds
        self.at_s = left
        return arrival, begin, joined, left, sent, taken, hidden, met

    def _exchange(self, step: Exchange, start: Floats) -> tuple[Floats, Floats, Floats]:
        """When own bytes are out, when those for a rank are in, when it goes on."""
        if step.pairs is not None:
            sent, received, self.pair_free_s = step.pairs.finish(start, self.pair_free_s)
            # messages wait for each other in ways of their own: whatever comes after the own ones is waited for
            return sent, sent, np.maximum(received, sent) + step.latency_s
        sent = start + step.out_s
        # bytes that come early queue behind those of the exchange before, at ranks that still take these in
        self.in_free_s = received = np.maximum(self.in_free_s, start.min()) + step.in_s
        return sent, received, np.maximum(received, sent.max()) + step.latency_s
