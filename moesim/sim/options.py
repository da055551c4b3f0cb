"""How finely a pass is simulated, and what is wrong with the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from moesim.errors import InputError
from moesim.specs.flow import N_CHUNKS, Granularity

__all__ = ["FlowOptions", "Granularity"]


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """Settings of a simulation.

    `slow_ranks` and `slow_links` multiply a rank's compute times, or the times of its ports. `launch_s` is what the host takes
    per kernel where no graph is replayed: no kernel follows the last one sooner. `n_chunks` cuts each pair's bytes in chunk
    granularity. `is_by_event` runs every rank as a process of its own, with the same times, much slower.
    """

    granularity: Granularity = Granularity.RANK
    slow_ranks: Mapping[int, float] = field(default_factory=dict)
    slow_links: Mapping[int, float] = field(default_factory=dict)
    launch_s: float = 0.0
    n_chunks: int = N_CHUNKS
    is_by_event: bool = False

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "granularity", Granularity(self.granularity))
        except ValueError:
            allowed = ", ".join(Granularity)
            raise InputError("not known", field="granularity", value=self.granularity, allowed=allowed) from None
        for name in ("slow_ranks", "slow_links"):
            factors: Any = getattr(self, name)
            if not isinstance(factors, Mapping):
                raise InputError("must be ranks with factors", field=name, value=factors, allowed="{rank: factor}")
            for rank, factor in factors.items():
                if not (_is_number(rank, Integral) and rank >= 0 and _is_number(factor, Real) and 0.0 < factor < 1e6):
                    raise InputError("must be ranks with positive factors", field=name, value={rank: factor})
        if not (_is_number(self.launch_s, Real) and 0.0 <= self.launch_s < math.inf):
            raise InputError("must be seconds, 0 or more", field="launch_s", value=self.launch_s)
        if not (_is_number(self.n_chunks, Integral) and self.n_chunks >= 1):
            raise InputError("must be a whole number, 1 or more", field="n_chunks", value=self.n_chunks)


def _is_number(value: Any, kind: type[Any]) -> bool:
    """True and false are none."""
    return isinstance(value, kind) and not isinstance(value, bool)
