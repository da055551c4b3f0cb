"""Parts of the run of two micro-batches: jobs that share receiving ports, and jobs that queue for engines; vectors over ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEVER", "Chain", "InJob", "InPorts", "Log", "expect_both", "largest", "smallest"]

Floats = NDArray[np.float64]

# later than any time of a pass; finite, so that differences are not nan
NEVER = 1e30


class Log(NamedTuple):
    """When ranks went through groups, [G, R] each: to the engine, from its queue, to the join, work beside that, sent."""

    arrivals_s: Floats
    begins_s: Floats
    joined_s: Floats
    beside_begins_s: Floats
    sent_s: Floats


class InJob:
    """Bytes of one exchange that all ranks take in: seconds of work left, [R], and when they will be in if no other job comes."""

    __slots__ = ("end_s", "last_s", "left_s")

    def __init__(self, left_s: Floats) -> None:
        self.left_s = self.end_s = left_s
        self.last_s = NEVER

    def ends(self, end_s: Floats) -> None:
        """Set when they will be in."""
        self.end_s, self.last_s = end_s, largest(end_s)


def largest(x: Floats) -> float:
    """The largest; for short vectors much quicker than their own way."""
    return float(x[x.argmax()])


def smallest(x: Floats) -> float:
    """The smallest."""
    return float(x[x.argmin()])


class InPorts:
    """Receiving ports of all ranks, shared evenly. Jobs start at all ranks at once, so a sum of minima says when each ends."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.jobs: list[InJob] = []

    def start(self, at_s: float, work_s: Floats) -> InJob:
        """Begin to take in at all ranks; moves the ends of jobs that are under way."""
        self._advance(at_s)
        new, end = InJob(work_s), at_s + work_s
        for job in self.jobs:
            # processor sharing: until a job ends, each other has had as much work as it, or all of its own
            beside = np.minimum(job.left_s, work_s)
            job.ends(job.end_s + beside)
            end = end + beside
        new.ends(end)
        self.jobs.append(new)
        return new

    def _advance(self, at_s: float) -> None:
        if all(job.last_s <= at_s for job in self.jobs):
            self.jobs = []
        elif len(self.jobs) == 1:
            self.jobs[0].left_s = np.maximum(self.jobs[0].end_s - at_s, 0.0)
        else:
            done = self._share(at_s - self._now_s)
            for job in self.jobs:
                # by ends too: a rest of rounding is no work
                job.left_s = np.where(job.end_s <= at_s, 0.0, np.maximum(job.left_s - done, 0.0))
            self.jobs = [job for job in self.jobs if job.last_s > at_s]
        self._now_s = at_s

    def _share(self, passed_s: float) -> Floats | float:
        """Work done on each job that is still under way after some time."""
        n = len(self.jobs)
        if n == 2:
            return np.maximum(passed_s / 2, passed_s - np.minimum(self.jobs[0].left_s, self.jobs[1].left_s))
        ordered = np.sort(np.stack([job.left_s for job in self.jobs]), axis=0)
        ended = np.cumsum(ordered, axis=0) - ordered
        return np.asarray(((passed_s - ended) / np.arange(n, 0, -1)[:, None]).max(axis=0))


class Chain:
    """What a micro-batch has for the engine up to its join, on all ranks: its computes as one job, then work beside the join.

    `at_s` is when the next of the two jobs comes to the engine, `joined_s` when the first is through; NEVER where that is past or
    unknown. `arrivals_s` and `begins_s` are logs of the first job, `beside_begins_s` of the second, which comes with the join.
    """

    __slots__ = (
        "_beside_s", "_work_s", "arrivals_s", "at_s", "begins_s", "beside_begins_s", "expected_begin_s", "expected_s",
        "expected_then_s", "has_moved", "is_open", "joined_s", "now_s", "place", "then_s",
    )  # fmt: skip

    def __init__(self, work_s: Floats | None, beside_s: Floats | None, n_ranks: int) -> None:
        self._work_s, self._beside_s = work_s, beside_s
        self.at_s = self.joined_s = self.expected_s = np.full(n_ranks, NEVER)
        self.arrivals_s = self.begins_s = self.beside_begins_s = self.at_s
        self.expected_begin_s = self.expected_then_s = self.at_s
        # jobs that are past: none, the first (or there is none), both
        self.place = np.full(n_ranks, 1 if work_s is None else 0)
        self.has_moved = work_s is None
        self.is_open = work_s is not None or beside_s is not None
        # the next job, and the one that comes to the engine at its end
        self.now_s = beside_s if work_s is None else work_s
        self.then_s = None if work_s is None else beside_s

    def enter(self, gate_s: Floats) -> None:
        """Say (again) when ranks come; those that are past the first job stay."""
        if self._work_s is None:
            self.arrivals_s = self.begins_s = self.joined_s = gate_s
            self.at_s = np.where(self.place == 1, gate_s, NEVER)
        elif self.is_open:
            self.at_s = np.where(self.place == 0, gate_s, self.at_s) if self.has_moved else gate_s

    def expect(self, begin_s: Floats, end_s: Floats, then_s: Floats) -> None:
        """What would happen: start and end of the next job, start of the one that comes at its end."""
        self.expected_begin_s, self.expected_then_s = begin_s, then_s
        self.expected_s = np.minimum(end_s, self.joined_s) if self.has_moved else end_s

    def commit(self, until_s: float) -> Floats | float:
        """Take what was expected of arrivals until a time as what happened; when the engine is free of them."""
        came = self.at_s <= until_s
        if not came.any():
            return 0.0
        begin, then = self.expected_begin_s, self.expected_then_s
        end = begin + self.now_s
        if self.has_moved or not came.all() or (self.then_s is not None and not (end <= until_s).all()):
            return self._commit_some(until_s, came, end)
        self.arrivals_s, self.begins_s, self.beside_begins_s, self.joined_s = self.at_s, begin, then, end
        self.is_open = False
        return end if self.then_s is None else then + self.then_s

    def _commit_some(self, until_s: float, came: NDArray[np.bool_], end: Floats) -> Floats:
        is_first = came & (self.place == 0)
        is_second = came & (self.place == 1)
        self.arrivals_s = np.where(is_first, self.at_s, self.arrivals_s)
        self.begins_s = np.where(is_first, self.expected_begin_s, self.begins_s)
        self.joined_s = np.where(is_first, end, self.joined_s)
        free = np.where(came, end, 0.0)
        both = is_first
        if self._beside_s is not None:
            both = is_first & (end <= until_s)
            free = np.where(both, self.expected_then_s + self._beside_s, free)
            self.beside_begins_s = np.where(is_second, self.expected_begin_s, self.beside_begins_s)
            self.beside_begins_s = np.where(both, self.expected_then_s, self.beside_begins_s)
        over = is_second | both
        self.place, self.has_moved = np.where(over, 2, self.place + is_first), True
        self.at_s = np.where(over, NEVER, np.where(is_first, end, self.at_s))
        self.is_open = not (self.place == 2).all()
        if self._beside_s is not None and self._work_s is not None:
            self.now_s = np.where(self.place == 0, self._work_s, self._beside_s)
            self.then_s = np.where(self.place == 0, self._beside_s, 0.0)
        return free


def expect_both(a: Chain, b: Chain, free_s: Floats) -> None:
    """What would happen to the jobs of two chains, in order of arrival, the first chain's first at a tie."""
    for chain in (a, b):
        if not chain.is_open:
            chain.expected_s = chain.joined_s
        elif not (a.is_open and b.is_open):
            begin = np.maximum(chain.at_s, free_s)
            end = begin + _or_0(chain.now_s)
            chain.expect(begin, end, end)
    if not (a.is_open and b.is_open):
        return
    # where a chain's jobs are past, its time is NEVER and it comes second, so the other does not wait for it
    a_first = a.at_s <= b.at_s
    now_a, now_b = _or_0(a.now_s), _or_0(b.now_s)
    begin_a, begin_b = np.maximum(a.at_s, free_s), np.maximum(b.at_s, free_s)
    end_a, end_b = begin_a + now_a, begin_b + now_b
    if a.then_s is None and b.then_s is None:
        begin_a, begin_b = (
            np.where(a_first, begin_a, np.maximum(begin_a, end_b)),
            np.where(a_first, np.maximum(begin_b, end_a), begin_b),
        )
        end_a, end_b = begin_a + now_a, begin_b + now_b
        a.expect(begin_a, end_a, end_a)
        b.expect(begin_b, end_b, end_b)
        return
    # the first's second job comes at its end: before the second's first job only if that comes later
    end_1 = np.where(a_first, end_a, end_b)
    at_2 = np.where(a_first, b.at_s, a.at_s)
    then_1 = np.where(a_first, _or_0(a.then_s), _or_0(b.then_s))
    is_before = at_2 > end_1
    begin_2 = np.maximum(at_2, end_1 + np.where(is_before, then_1, 0.0))
    end_2 = begin_2 + np.where(a_first, now_b, now_a)
    start_then_1 = np.where(is_before, end_1, end_2)
    start_then_2 = end_2 + np.where(is_before, 0.0, then_1)
    for chain, is_first, begin, end in ((a, a_first, begin_a, end_a), (b, ~a_first, begin_b, end_b)):
        chain.expect(
            np.where(is_first, begin, begin_2),
            np.where(is_first, end, end_2),
            np.where(is_first, start_then_1, start_then_2),
        )


def _or_0(work_s: Floats | None) -> Floats | float:
    return 0.0 if work_s is None else work_s
