"""Engines, ports and meeting points that the processes of a simulation share.

Engines serve in order of arrival, one job at a time, for a duration known on arrival; ties go to the lower rank because processes
are started in rank order and simpy keeps that order. Ports that several transfers use at once share their rate evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import simpy

__all__ = ["FairPort", "Gathering", "Server", "Transfer"]


@dataclass(slots=True)
class Server:
    """An engine or a port: `reserve` says when a job that comes now will start and end."""

    free_at_s: float = 0.0
    busy_s: float = 0.0

    def reserve(self, now_s: float, duration_s: float) -> tuple[float, float]:
        """Queue behind what is reserved already."""
        start = max(now_s, self.free_at_s)
        self.free_at_s = start + duration_s
        self.busy_s += duration_s
        return start, self.free_at_s


class FairPort:
    """A port whose jobs run side by side, each at an equal share of its rate (processor sharing, the fluid limit of round robin).

    A job of s seconds alone takes s (n + 1) beside n others that do not end before it.
    """

    __slots__ = ("_env", "_jobs", "_updated_s", "_version", "busy_s")

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._jobs: list[list[Any]] = []
        self._updated_s = 0.0
        self._version = 0
        self.busy_s = 0.0

    def submit(self, duration_s: float) -> Any:
        """Start a job now; the event of its end."""
        done = self._env.event()
        if duration_s <= 0.0:
            return done.succeed()
        self._advance()
        self.busy_s += duration_s
        self._jobs.append([duration_s, done])
        self._plan()
        return done

    def _advance(self) -> None:
        now = self._env.now
        if self._jobs:
            worked = (now - self._updated_s) / len(self._jobs)
            for job in self._jobs:
                job[0] -= worked
        self._updated_s = now

    def _plan(self) -> None:
        """The next end, unless another job comes first."""
        self._version += 1
        if self._jobs:
            first = min(job[0] for job in self._jobs)
            timer: Any = self._env.timeout(max(0.0, first) * len(self._jobs))
            timer.callbacks.append(partial(self._end, self._version, first))

    def _end(self, version: int, first: float, _event: Any) -> None:
        if version != self._version:
            return
        self._advance()
        left = []
        for job in self._jobs:
            if job[0] <= 1e-9 * first:
                job[1].succeed()
            else:
                left.append(job)
        self._jobs = left
        self._plan()


class Gathering:
    """A barrier for `n` processes: all go on at the latest time that any of them named."""

    def __init__(self, env: simpy.Environment, n: int) -> None:
        self._env = env
        self._n_missing = n
        self._latest_s = 0.0
        self.released: Any = env.event()

    def arrive(self, at_s: float = 0.0) -> Any:
        """Count one in, who is there at `at_s` (now, if that is past); the event to wait for."""
        self._latest_s = max(self._latest_s, at_s)
        self._n_missing -= 1
        if self._n_missing == 0:
            delay = self._latest_s - self._env.now
            if delay > 0.0:
                timer: Any = self._env.timeout(delay)
                timer.callbacks.append(self._release)
            else:
                self.released.succeed()
        return self.released

    def _release(self, _event: Any) -> None:
        self.released.succeed()

    @property
    def n_missing(self) -> int:
        """Processes that have not arrived."""
        return self._n_missing


@dataclass(slots=True)
class Transfer:
    """One expert exchange of all ranks: when each began to send, and the meeting of all senders."""

    all_sent: Gathering
    first_start_s: float | None = None
    ranks: set[int] = field(default_factory=set)
    starts_s: dict[int, float] = field(default_factory=dict)
    received: list[Any] = field(default_factory=list)
    arrived_s: Any = None
