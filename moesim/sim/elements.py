"""Engines, ports and meeting points that the processes of a simulation share.

Engines and ports serve in order of arrival, one at a time, for a duration known on arrival; ties go to the lower rank because
processes are started in rank order and simpy keeps that order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import simpy

__all__ = ["Gathering", "Server", "Transfer"]


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


class Gathering:
    """A barrier for `n` processes: the last to arrive releases all."""

    def __init__(self, env: simpy.Environment, n: int) -> None:
        self._n_missing = n
        self.released: Any = env.event()

    def arrive(self) -> Any:
        """Count one in; the event to wait for."""
        self._n_missing -= 1
        if self._n_missing == 0:
            self.released.succeed()
        return self.released

    @property
    def n_missing(self) -> int:
        """Processes that have not arrived."""
        return self._n_missing


@dataclass(slots=True)
class Transfer:
    """One expert exchange of all ranks: when its first byte moved, and the meeting of all senders."""

    all_sent: Gathering
    first_start_s: float | None = None
    bytes_sent: float = 0.0
    bytes_received: float = 0.0
    ranks: set[int] = field(default_factory=set)
