"""Engines, ports and meeting points that the processes of a simulation share.

Engines serve in order of arrival, one job at a time, for a duration known on arrival; ties go to the lower rank because processes
are started in rank order and simpy keeps that order. Ports that several transfers use at once share their rate evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import simpy

__all__ = ["FairPort", "Gathering", "QueuePort", "Server", "SharedTransfer", "Transfer"]


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
        self.start(duration_s, done.succeed)
        return done

    def start(self, duration_s: float, then: Callable[[], Any]) -> None:
        """Start a job now; `then` is called at its end."""
        if duration_s <= 0.0:
            then()
            return
        self.busy_s += duration_s
        if self._jobs:
            self._advance()
        else:
            self._updated_s = self._env.now
        self._jobs.append([duration_s, then])
        self._plan()

    def _advance(self) -> None:
        now = self._env.now
        worked = (now - self._updated_s) / len(self._jobs)
        for job in self._jobs:
            job[0] -= worked
        self._updated_s = now

    def _plan(self) -> None:
        """The next end, unless another job comes first."""
        jobs = self._jobs
        self._version = version = self._version + 1
        first = jobs[0][0] if len(jobs) == 1 else min(job[0] for job in jobs)
        timer: Any = self._env.timeout(first * len(jobs) if first > 0.0 else 0.0)
        timer.callbacks.append(lambda _event: self._end(version, first))

    def _end(self, version: int, first: float) -> None:
        if version != self._version:
            return
        jobs = self._jobs
        if len(jobs) == 1:
            self._jobs = []
            jobs[0][1]()
            return
        self._advance()
        # the first one is done even where its rest is too short to move the clock
        rest = max(1e-9 * first, min(job[0] for job in jobs))
        self._jobs = [job for job in jobs if job[0] > rest]
        if self._jobs:
            self._plan()
        for job in jobs:
            if job[0] <= rest:
                job[1]()


class QueuePort:
    """A port that takes one job after another."""

    __slots__ = ("_env", "_server")

    def __init__(self, env: simpy.Environment) -> None:
        self._env, self._server = env, Server()

    def submit(self, duration_s: float) -> Any:
        """Queue a job; the event of its end."""
        done = self._env.event()
        self.start(duration_s, done.succeed)
        return done

    def start(self, duration_s: float, then: Callable[[], Any]) -> None:
        """Queue a job; `then` is called at its end."""
        end = self._server.reserve(self._env.now, duration_s)[1]
        timer: Any = self._env.timeout(end - self._env.now)
        timer.callbacks.append(lambda _event: then())


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
    """One expert exchange of all ranks: by pairs, when each began and the meeting of all senders; or over shared ports."""

    all_sent: Gathering
    starts_s: dict[int, float] = field(default_factory=dict)
    arrived_s: Any = None
    shared: Any = None


class SharedTransfer:
    """An exchange over shared ports: a rank is done `latency_s` after its own bytes are in and the last sender is through.

    Receiving starts for all with the first sender. A rank's event is triggered once, so a rank costs one wake-up per exchange.
    """

    __slots__ = ("_env", "_in_ports", "_in_s", "_latency_s", "_n_sending", "_received", "gates", "received_s", "sent_s")

    def __init__(
        self, env: simpy.Environment, in_ports: Sequence[FairPort | QueuePort], in_s: Sequence[float],
        latency_s: Sequence[float],
    ) -> None:  # fmt: skip
        self._env, self._latency_s, self._n_sending = env, latency_s, len(in_s)
        self._received = [False] * len(in_s)
        self.gates: list[Any] = [env.event() for _ in in_s]
        self.sent_s, self.received_s = [0.0] * len(in_s), [0.0] * len(in_s)
        for rank, (port, seconds) in enumerate(zip(in_ports, in_s, strict=True)):
            port.start(seconds, partial(self._receive, rank))

    def send(self, rank: int, port: FairPort, seconds: float) -> Any:
        """Put a rank's bytes on its port; the event of its being done."""
        port.start(seconds, partial(self._sent, rank))
        return self.gates[rank]

    def _sent(self, rank: int) -> None:
        self.sent_s[rank] = self._env.now
        self._n_sending -= 1
        if self._n_sending == 0:
            for other, there in enumerate(self._received):
                if there:
                    self._open(other)

    def _receive(self, rank: int) -> None:
        self._received[rank] = True
        self.received_s[rank] = self._env.now
        if self._n_sending == 0:
            self._open(rank)

    def _open(self, rank: int) -> None:
        timer: Any = self._env.timeout(self._latency_s[rank])
        timer.callbacks.append(lambda _event: self.gates[rank].succeed())
