"""When engines stand idle, and why: from the visits of a pass, as vectors over ranks.

An engine is idle where no micro-batch of its rank computes. That time belongs to the micro-batch whose compute ends it: to what
that one did meanwhile in the join, or joins, before. A batch that waits while the engine works on another costs nothing and is
told apart (`queue_s`). Busy and idle time of a rank add up to the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.sim.schedule import Exchange, Meeting
from moesim.sim.visits import Stay, Visit
from moesim.timeline import NOBODY, Cause

__all__ = ["Boundaries", "Idle", "boundaries", "idle_times", "last_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Times within one join, [R] each, in order: between two of them a rank has one cause to be there.

    Its own bytes leave until `out_s`, share the port until `sent_s` and are through at `own_s`; the last sender begins at
    `late_s`; all has come at `left_s`.
    """

    joined_s: Floats
    out_s: Floats
    sent_s: Floats
    own_s: Floats
    late_s: Floats
    left_s: Floats


def last_of(visit: Visit) -> int:
    """The rank that others wait for in the join: the last to come to a collective, or the last whose bytes are out.

    `NOBODY` where messages go by pair of ranks: each receiver waits for senders of its own.
    """
    join = visit.group.join
    if isinstance(join, Meeting):
        return _last(visit.joined_s)
    if join is None or join.pairs is not None:
        return NOBODY
    return _last(visit.sent_s)


def _last(times_s: Floats) -> int:
    """The first of the ranks that are last but for rounding."""
    return int((times_s >= times_s.max() * (1.0 - 1e-12)).argmax())


def boundaries(visit: Visit) -> Boundaries | None:
    """Times within the join of a visit; None if it has none.

    What a rank waits after its own traffic is through, it waits for the last sender: to begin (`late_s`), then for its bytes.
    """
    join, joined = visit.group.join, visit.joined_s
    if isinstance(join, Meeting):
        met = np.maximum(joined, visit.met_s)
        return Boundaries(joined, joined, joined, joined, met, visit.left_s)
    if not isinstance(join, Exchange):
        return None
    own = np.minimum(np.maximum(visit.sent_s, visit.taken_s) + join.latency_s, visit.left_s)
    last = last_of(visit)
    late = own if last == NOBODY else np.clip(joined[last] + join.latency_s, own, visit.left_s)
    sent = np.minimum(visit.sent_s, own)
    return Boundaries(joined, np.minimum(joined + join.out_s, sent), sent, own, late, visit.left_s)


@dataclass(slots=True)
class Idle:
    """Idle time of engines: `by_cause_s` [R] of each cause, `waits_s` [R] of each layer without own transfers.

    `queue_s` [R] is what micro-batches waited while the engine worked, `free_s` [R] when it is done for good. `awaited` has, for
    each join, the stay that holds its visit, its place there, and what all ranks waited in it for its last rank.
    """

    by_cause_s: dict[Cause, Floats]
    waits_s: dict[int, Floats]
    queue_s: Floats
    free_s: Floats
    awaited: list[tuple[int, int, float]] = field(default_factory=list)


def idle_times(stays: Sequence[Stay], n_ranks: int) -> Idle:
    """Idle time by cause of all ranks, from where each begins to where it is through."""
    found = Idle({cause: np.zeros(n_ranks) for cause in Cause}, {}, np.zeros(n_ranks), np.zeros(n_ranks))
    if not stays:
        return found
    begins, ends, joins = _jobs(stays)
    begin_s, end_s = np.array(begins), np.array(ends)
    found.free_s = end_s.max(axis=0)
    starts = _idle_since(begin_s, end_s, stays[0].visits[0].came_s, any(s.batch for s in stays))
    for i, k, job in joins:
        _enter(found, stays[i].visits[k], (i, k), starts[job])
    for stay in stays:
        for visit in stay.visits:
            if visit.group.computes:
                found.queue_s += np.maximum(visit.begin_s - visit.arrival_s, 0.0)
    found.by_cause_s[Cause.ENGINE_BUSY] = found.queue_s
    return found


def _jobs(stays: Sequence[Stay]) -> tuple[list[Floats], list[Floats], list[tuple[int, int, int]]]:
    """Begins and ends of what engines do, and each join (stay, place) with the job that ends the idle time in it."""
    begins: list[Floats] = []
    ends: list[Floats] = []
    joins: list[tuple[int, int, int]] = []
    for i, stay in enumerate(stays):
        pending: list[int] = []
        for k, visit in enumerate(stay.visits):
            work = [(visit.begin_s, visit.joined_s)] if visit.group.computes else []
            beside = visit.group.beside_s()
            if beside is not None:
                work.append((visit.hidden_s, visit.hidden_s + beside))
            for begin, end in work:
                joins += [(i, at, len(begins)) for at in pending]
                pending = []
                begins.append(begin)
                ends.append(end)
            if visit.group.join is not None:
                pending.append(k)
        # the end of a micro-batch is a job of no length
        joins += [(i, at, len(begins)) for at in pending]
        begins.append(stay.visits[-1].joined_s)
        ends.append(stay.visits[-1].joined_s)
    return begins, ends, joins


def _idle_since(begins: Floats, ends: Floats, start: Floats, has_two: bool) -> Floats:
    """Since when the engine has been idle before each job, [J, R]; the job's begin where it was not."""
    order = begins.argsort(axis=0, kind="stable") if has_two else None
    if order is not None:
        begins, ends = np.take_along_axis(begins, order, axis=0), np.take_along_axis(ends, order, axis=0)
    free = np.maximum.accumulate(np.vstack([start[None], ends[:-1]]), axis=0)
    since = np.minimum(free, begins)
    if order is None:
        return since
    found = np.empty_like(since)
    np.put_along_axis(found, order, since, axis=0)
    return found


def _enter(found: Idle, visit: Visit, at: tuple[int, int], since_s: Floats) -> None:
    """Idle time in one join, as far as it lies after `since_s`."""
    times, join = boundaries(visit), visit.group.join
    if times is None or join is None:
        return
    joined, out, sent, own, late, left = (
        np.maximum(t, since_s)
        for t in (times.joined_s, times.out_s, times.sent_s, times.own_s, times.late_s, times.left_s)
    )
    port, barrier, rest = sent - out, late - own, left - late
    is_meeting = isinstance(join, Meeting)
    data = np.zeros_like(rest) if is_meeting else rest
    by_cause = found.by_cause_s
    by_cause[Cause.TRANSFER] += (out - joined) + (own - sent) + (rest if is_meeting else 0.0)
    by_cause[Cause.LINK_BUSY] += port
    by_cause[Cause.BARRIER] += barrier
    by_cause[Cause.DATA] += data
    waits = barrier + data
    layer = found.waits_s.setdefault(join.layer, np.zeros_like(rest))
    layer += waits + port
    if last_of(visit) != NOBODY and (total := float(waits.sum())) > 0.0:
        found.awaited.append((*at, total))
