"""How long a pass takes and when it may begin: operators, host time around them, pipeline stages shared with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.sim.serving.cost import RankWork, StepCost

__all__ = ["Overheads", "PassClock", "SharedStages"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Overheads:
    """Host time that operator times leave out.

    `pass_s` is the gap between two passes on the device; `host_s` what the host needs to schedule and launch a pass, hidden
    behind the pass before where scheduling is asynchronous; `prefill_s` is added to passes with prefill; `sequence_s` per
    sequence in a pass; `request_s` from submission until the engine knows a request; `first_pass_s` is added to the very
    first pass of an engine (lazy initialisation).
    """

    pass_s: float = 0.0
    host_s: float = 0.0
    prefill_s: float = 0.0
    sequence_s: float = 0.0
    request_s: float = 0.0
    first_pass_s: float = 0.0


class SharedStages(Protocol):
    """Pipeline stages that passes of several engines go through."""

    def run(self, ready_s: float, seconds: float, tokens: int) -> tuple[float, float]:
        """Start and end of a pass of `seconds` with `tokens` on its fullest rank."""
        ...


@dataclass(frozen=True, slots=True)
class PassClock:
    """Times of passes, `depth` of them scheduled ahead.

    A decode runs `tokens_per_decode` tokens per sequence, of which `growth` on average stay (speculative decoding).
    """

    cost: StepCost
    overheads: Overheads
    depth: int
    growth: float
    tokens_per_decode: int = 1
    stages: SharedStages | None = None

    def pass_s(self, works: list[RankWork], index: int) -> float:
        """Seconds of pass number `index`, alone."""
        if any(work.chunks for work in works):
            seconds = self.cost.pass_s(works, index) + self.overheads.prefill_s
        else:
            seconds = float(self.cost.decode_s(works, 1, self.growth, index)[0])
        padded = self._padded_s(seconds, works)
        return float(padded + self.overheads.first_pass_s if index == 0 else padded)

    def run_ends_s(self, works: list[RankWork], n_steps: int, index: int, start_s: float) -> Floats:
        """When each of `n_steps` decodes ends that begin at `start_s`; shape [n_steps]."""
        seconds = self._padded_s(self.cost.decode_s(works, n_steps, self.growth, index), works)
        if index == 0:
            seconds[0] += self.overheads.first_pass_s
        seconds[0] += start_s
        return np.cumsum(seconds)

    def start_s(self, now: float, last_end_s: float) -> float:
        """When the device can begin: after the pass before it, and not before the host has launched it."""
        if self.depth == 1:
            return now
        return max(last_end_s, now + self.overheads.host_s)

    def span(self, works: list[RankWork], index: int, now: float, last_end_s: float) -> tuple[float, float]:
        """Start and end of pass number `index`, scheduled at `now`."""
        seconds = self.pass_s(works, index)
        if self.stages is None:
            start_s = self.start_s(now, last_end_s)
            return start_s, start_s + seconds
        fullest = max(w.n_decode * self.tokens_per_decode + w.n_prefill_tokens for w in works)
        return self.stages.run(now, seconds, fullest)

    def _padded_s(self, seconds: Any, works: list[RankWork]) -> Any:
        """Add what the host and the gap between passes cost."""
        o = self.overheads
        n = sum(work.n_decode + len(work.chunks) for work in works)
        if self.stages is not None:
            return seconds + (o.pass_s + o.sequence_s * n)
        if self.depth == 1:
            return seconds + (o.host_s + o.sequence_s * n + o.pass_s)
        return np.maximum(seconds, o.host_s) + (o.pass_s + o.sequence_s * n)
