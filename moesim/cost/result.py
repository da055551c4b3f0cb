"""What an operator costs, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from moesim.ops import Num
from moesim.specs.base import Origin

__all__ = ["Bound", "OpCost"]


class Bound(StrEnum):
    """What an operator's time is spent on, mostly."""

    COMPUTE = "compute"
    MEMORY = "memory"
    LINK = "link"
    LATENCY = "latency"


_NAMES = tuple(Bound)


@dataclass(frozen=True, slots=True)
class OpCost:
    """Time of one operator on one rank and its parts, before any waiting.

    `time_s` is what the simulator holds an engine for. `compute_s`, `memory_s` and `link_s` are the times that each bound alone
    would take at the efficiency in force, `latency_s` what does not depend on size. `error_frac` is the half-width of the 90%
    interval, as a fraction of the time (an array where times are one); None where nothing was measured. `is_extrapolated` tells
    a shape outside the domain of the calibration, `outside` which points of an array (1 or 0; None: as `is_extrapolated` says).
    """

    time_s: Num
    compute_s: Num = 0.0
    memory_s: Num = 0.0
    link_s: Num = 0.0
    latency_s: Num = 0.0
    origin: Origin = Origin.ASSUMPTION
    error_frac: Num | None = None
    is_extrapolated: bool = False
    outside: Num | None = None

    @property
    def bound(self) -> Bound:
        """The largest part, where the operator takes longest."""
        parts = (self.compute_s, self.memory_s, self.link_s, self.latency_s)
        if not isinstance(self.time_s, float):
            at = np.unravel_index(int(np.argmax(self.time_s)), np.shape(self.time_s))
            parts = tuple(float(np.broadcast_to(part, np.shape(self.time_s))[at]) for part in parts)  # type: ignore[assignment]
        return _NAMES[parts.index(max(parts))]
