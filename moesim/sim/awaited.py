"""Whom ranks waited for, and why it was late: what the last rank of a join had more of than the mean since the join before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.sim.idle import last_of
from moesim.sim.schedule import Exchange
from moesim.sim.visits import Stay, Visit
from moesim.timeline import Awaited

__all__ = ["Circumstances", "awaited_ranks"]

Floats = NDArray[np.float64]
TRAFFIC, ENGINE, LINK, END = "traffic", "engine", "link", -1


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known of a pass beyond its times: groups of operators by name, and the factors of slow engines and links."""

    groups: Mapping[str, str] = field(default_factory=dict)
    slow_ranks: Mapping[int, float] = field(default_factory=dict)
    slow_links: Mapping[int, float] = field(default_factory=dict)


def awaited_ranks(
    stays: Sequence[Stay], joins: Sequence[tuple[int, int, float]], known: Circumstances, n_ranks: int,
    end: tuple[int, float] | None = None,
) -> tuple[Awaited, ...]:  # fmt: skip
    """Ranks that others waited for, the most waited for first.

    Args:
        stays: of the pass.
        joins: stay, place of the visit in it, and what all ranks waited there for its last one, in seconds of all ranks.
        known: names and slow parts.
        n_ranks: R.
        end: the rank that is through last and what the others then waited for it, summed.
    """
    blame = _Blame(stays, known)
    waits: dict[int, float] = {}
    layers: dict[int, set[int]] = {}
    reasons: dict[int, dict[str, float]] = {}

    def put(rank: int, layer: int, seconds: float, shares: Mapping[str, float]) -> None:
        waits[rank] = waits.get(rank, 0.0) + seconds / n_ranks
        layers.setdefault(rank, set()).add(layer)
        of_rank = reasons.setdefault(rank, {})
        for reason, share in shares.items():
            of_rank[reason] = of_rank.get(reason, 0.0) + share * seconds / n_ranks

    for i, k, seconds in joins:
        visit = stays[i].visits[k]
        rank = last_of(visit)
        put(rank, visit.group.join.layer if visit.group.join else END, seconds, blame.shares(visit, rank))
    if end is not None and end[1] > 0.0:
        put(end[0], END, end[1], _as_shares(blame.whole_pass(end[0])))
    ordered = sorted(waits, key=lambda rank: (-waits[rank], rank))
    return tuple(Awaited(rank, waits[rank], len(layers[rank]), reasons[rank]) for rank in ordered)


class _Blame:
    """Excesses of a rank over the mean rank; means of rows that layers share are taken once."""

    def __init__(self, stays: Sequence[Stay], known: Circumstances) -> None:
        self._stays, self._known = stays, known
        self._means: dict[int, float] = {}

    def shares(self, visit: Visit, rank: int) -> dict[str, float]:
        """What made a rank late for a join, in parts of 1."""
        found: dict[str, float] = {}
        for step in visit.group.computes:
            for name, row in step.parts:
                self._work(found, name, row, rank)
        if visit.group.computes:
            queued = float(visit.begin_s[rank] - visit.arrival_s[rank])
            queued -= float(visit.begin_s.mean() - visit.arrival_s.mean())
            if queued > 0.0:  # its other micro-batch held the engine: as late as what it has more of in the whole pass
                for reason, share in _as_shares(self.whole_pass(rank)).items():
                    _put(found, reason, share * queued)
        came = visit.came_s
        self._bytes(found, float(came[rank]) - float(came.mean()), rank)
        join = visit.group.join
        if isinstance(join, Exchange):
            self._bytes(found, float(join.out_s[rank]) - self._mean(join.out_s), rank)
        return _as_shares(found)

    def whole_pass(self, rank: int) -> dict[str, float]:
        """What a rank has more of than the mean over the whole pass, seconds by reason."""
        found: dict[str, float] = {}
        for name, row in self._totals.items():
            self._work(found, name, row, rank)
        return found

    @cached_property
    def _totals(self) -> dict[str, Floats]:
        """Seconds of each operator over the whole pass, [R]."""
        totals: dict[str, Floats] = {}
        for stay in self._stays:
            for visit in stay.visits:
                join = visit.group.join
                parts = [part for step in visit.group.computes for part in step.parts]
                parts += join.hidden if isinstance(join, Exchange) else ()
                for name, row in parts:
                    if name in totals:
                        totals[name] += row
                    else:
                        totals[name] = row.copy()
        return totals

    def _work(self, found: dict[str, float], name: str, row: Floats, rank: int) -> None:
        seconds, factor = float(row[rank]), self._known.slow_ranks.get(rank, 1.0)
        excess = seconds / factor - self._mean(row)
        if factor > 1.0:
            _put(found, ENGINE, seconds - seconds / factor)
        if excess > 0.0:
            _put(found, self._known.groups.get(name, name), excess)

    def _bytes(self, found: dict[str, float], excess: float, rank: int) -> None:
        if excess > 0.0:
            _put(found, LINK if self._known.slow_links.get(rank, 1.0) > 1.0 else TRAFFIC, excess)

    def _mean(self, row: Floats) -> float:
        key = id(row)
        if key not in self._means:
            self._means[key] = float(row.mean())
        return self._means[key]


def _put(found: dict[str, float], reason: str, seconds: float) -> None:
    found[reason] = found.get(reason, 0.0) + seconds


def _as_shares(excess: Mapping[str, float]) -> dict[str, float]:
    """Parts of 1 of what is above zero; nothing stands out: traffic, as some sender must be the last."""
    above = {reason: seconds for reason, seconds in excess.items() if seconds > 0.0}
    total = sum(above.values())
    return {reason: seconds / total for reason, seconds in above.items()} if total > 0.0 else {TRAFFIC: 1.0}
