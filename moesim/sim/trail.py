"""What a simulated pass waited for, walked back from its end: the communication that is exposed on that way.

From the rank that ends last, back in time: while its engine works, that is what the pass waits for. Where the engine stood idle,
the rank was in an exchange or collective, which waited for the rank that came to it last: between that rank's arrival and the end
is communication, but for what the rank computes meanwhile; before it, that rank is followed. Waiting for slower ranks is not on
the way: it is what ranks beside it do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moesim.sim.visits import Visits

__all__ = ["Trail"]

Floats = NDArray[np.float64]
#: Times closer than this part of the pass are the same.
CLOSE = 1e-10


class Trail:
    """When engines worked, and when ranks came to exchanges and collectives and left them."""

    def __init__(self) -> None:
        self._visits: list[Visits] = []
        self.ends_s: Floats = np.zeros(1)

    def follow(self, visits: Visits) -> None:
        """Groups that all ranks have been through."""
        self._visits.append(visits)

    def works(self) -> list[tuple[Floats, Floats]]:
        """When jobs of engines began and ended, [R] or [n, R] each."""
        found = [(visits.begin_s, visits.joined_s) for visits in self._visits]
        for visits in self._visits:
            besides = [(visits.hidden_s[g], group.beside_s()) for g, group in enumerate(visits.groups)]
            found += [(began, began + seconds) for began, seconds in besides if seconds is not None]
        return found

    def joins(self) -> list[tuple[Floats, Floats]]:
        """When ranks came to exchanges and collectives and left them, [R] or [n, R] each; at the end there is none."""
        return [(visits.joined_s[:-1], visits.left_s[:-1]) for visits in self._visits]

    @cached_property
    def exposed_s(self) -> float:
        """Seconds of the way in which there is communication and nothing else."""
        return _Walk(self).exposed_s()


class _Walk:
    """Times by rank, [R, n]."""

    def __init__(self, trail: Trail) -> None:
        self.ends_s = trail.ends_s
        self.began, self.ended = _by_rank(trail.works(), len(trail.ends_s))
        self.joined, self.left = _by_rank(trail.joins(), len(trail.ends_s))
        self.close_s = CLOSE * max(float(trail.ends_s.max()), 1e-30)

    def exposed_s(self) -> float:
        """From the end to the start."""
        rank = int(self.ends_s.argmax())
        at, exposed = float(self.ends_s[rank]), 0.0
        for _ in range(self.began.shape[1] + 2 * self.joined.shape[1] + 1):
            worked = self.work_before(rank, at)
            if worked is not None:
                at = worked
            join = self.join_before(rank, at)
            if join is None:
                if worked is None:
                    break
                continue
            came = np.where(self.joined[:, join] <= at, self.joined[:, join], -np.inf)
            last = int(came.argmax())
            since = float(came[last])
            exposed += at - since - self.worked_s(last, since, at)
            self.left[:, join] = np.inf  # gone through once
            rank, at = last, since
        return exposed

    def work_before(self, rank: int, at_s: float) -> float | None:
        """When the job began that the engine was at until then."""
        began, ended = self.began[rank], self.ended[rank]
        found = np.flatnonzero((began < at_s - self.close_s) & (ended >= at_s - self.close_s))
        return float(began[found].max()) if len(found) else None

    def join_before(self, rank: int, at_s: float) -> int | None:
        """The exchange or collective that a rank left then."""
        late = np.abs(self.left[rank] - at_s)
        join = int(late.argmin()) if len(late) else 0
        return join if len(late) and late[join] <= self.close_s else None

    def worked_s(self, rank: int, since_s: float, until_s: float) -> float:
        """How long an engine works in a stretch of time."""
        inside = np.minimum(self.ended[rank], until_s) - np.maximum(self.began[rank], since_s)
        return float(np.maximum(inside, 0.0).sum())


def _by_rank(times: Sequence[tuple[Floats, Floats]], n_ranks: int) -> tuple[Floats, Floats]:
    if not times:
        return np.zeros((n_ranks, 0)), np.zeros((n_ranks, 0))
    starts, ends = (np.vstack(column).T.copy() for column in zip(*times, strict=True))
    return starts, ends
