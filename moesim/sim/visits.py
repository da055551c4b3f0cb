"""A micro-batch's steps in groups that end where all ranks meet, and when ranks went through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.sim.schedule import Compute, Exchange, Meeting, Step

__all__ = ["Group", "Stay", "Visit", "Visits", "groups_of"]

Floats = NDArray[np.float64]


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

    @classmethod
    def blank(cls, groups: Sequence[Group], n_ranks: int) -> Visits:
        """Visits that no rank has made yet, to be filled in."""
        a, b, c, d, e, f, g = np.zeros((7, len(groups), n_ranks))
        return cls(groups, a, b, c, d, e, f, g, np.zeros(len(groups)))

    def __iter__(self) -> Iterator[Visit]:
        rows = zip(
            self.groups, self.arrival_s, self.begin_s, self.joined_s, self.left_s, self.sent_s, self.taken_s, self.hidden_s,
            self.met_s.tolist(), strict=True,
        )  # fmt: skip
        return (Visit(*row) for row in rows)


class Visit(NamedTuple):
    """The same of one group, [R] each."""

    group: Group
    arrival_s: Floats
    begin_s: Floats
    joined_s: Floats
    left_s: Floats
    sent_s: Floats
    taken_s: Floats
    hidden_s: Floats
    met_s: float

    @property
    def came_s(self) -> Floats:
        """When ranks came out of the join before: to the engine, or straight to the next join."""
        return self.arrival_s if self.group.computes else self.joined_s


@dataclass(frozen=True, slots=True)
class Stay:
    """All visits of one micro-batch, from where all ranks begin it to where it is through."""

    batch: int
    visits: tuple[Visit, ...]
