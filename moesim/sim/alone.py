"""One micro-batch: every rank has its engine and ports to itself, so all ranks step together from join to join.

Times of a step are vectors over ranks. Ranks depend on each other only through two numbers of each exchange, the first sender's
start and the last one's end, and through the last arrival at a collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.sim.books import Books, Group, Visit, groups_of
from moesim.sim.schedule import Exchange, Meeting, Step

__all__ = ["run_alone"]

Floats = NDArray[np.float64]


def run_alone(steps: Sequence[Step], books: Books) -> None:
    """Take all ranks through the steps, from where the books say they are."""
    ranks = _Ranks(books)
    books.enter([ranks.through(group) for group in groups_of(steps)])
    books.ends_s = ranks.at_s
    books.balance(steps)


class _Ranks:
    """Where all ranks are: their clocks, and when engines and receiving ports are free."""

    def __init__(self, books: Books) -> None:
        self.at_s = books.ends_s.copy()
        self.engine_free_s = np.zeros(books.n_ranks)
        self.in_free_s = np.zeros(books.n_ranks)
        self.pair_free_s = np.zeros((2, books.n_ranks))

    def through(self, group: Group) -> Visit:
        """Computes, then the join."""
        arrival, work = self.at_s, group.work_s()
        begin = arrival
        if work is not None:
            begin = np.maximum(arrival, self.engine_free_s)
            self.at_s = begin + work
        visit = Visit(group, arrival, begin, self.at_s, self.at_s)
        if isinstance(group.join, Exchange):
            self._exchange(group.join, visit)
        elif isinstance(group.join, Meeting):
            visit.met_s = float(self.at_s.max())
            visit.left_s = self.in_free_s = visit.met_s + group.join.seconds
        self.at_s = visit.left_s
        return visit

    def _exchange(self, step: Exchange, visit: Visit) -> None:
        start = visit.joined_s
        beside = visit.group.beside_s()
        if beside is not None:
            visit.hidden_s = np.maximum(start, self.engine_free_s)
            self.engine_free_s = visit.hidden_s + beside
        if step.pairs is not None:
            sent, received, self.pair_free_s = step.pairs.finish(start, self.pair_free_s)
            # messages wait for each other in ways of their own: whatever comes after the own ones is waited for
            visit.sent_s = visit.taken_s = sent
            visit.left_s = np.maximum(received, sent) + step.latency_s
            return
        visit.sent_s = sent = start + step.out_s
        # bytes that come early queue behind those of the exchange before, at ranks that still take these in
        self.in_free_s = visit.taken_s = received = np.maximum(self.in_free_s, start.min()) + step.in_s
        visit.left_s = np.maximum(received, sent.max()) + step.latency_s
