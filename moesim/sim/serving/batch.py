"""Passes under way: one, or a run of equal decodes that an arrival may cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.sim.serving.requests import Sequence

__all__ = ["NO_ENDS", "Batch"]

Floats = NDArray[np.float64]
NO_ENDS: Floats = np.empty(0)


@dataclass(slots=True, eq=False)
class Batch:
    """One pass, or a run of equal decodes whose end is still open (`ends`). `end_s` is when the last of them ends."""

    ends: Floats
    end_s: float
    start_s: float
    previous_s: float
    n_decode: int
    first_pass: int
    firsts: list[tuple[int, Sequence]] = field(default_factory=list)
    finishers: list[tuple[int, Sequence]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    @property
    def matters(self) -> bool:
        """Whether its end changes what can be scheduled."""
        return bool(self.firsts or self.finishers)

    def decision_s(self, n: int, depth: int) -> float:
        """When the pass after `n` of a run is scheduled, `depth` passes ahead."""
        back = n - depth
        return float(self.ends[back]) if back >= 0 else self.previous_s

    def first_decision(self, ready_s: float, depth: int) -> int:
        """How many passes of a run are scheduled before a request that is ready at `ready_s` is seen."""
        if depth > 1 and self.previous_s >= ready_s:
            return 1
        return min(int(self.ends.searchsorted(ready_s)) + depth, len(self.ends))
