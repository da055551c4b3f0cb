"""How finely a pass is simulated, and what is wrong with the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moesim.errors import InputError

__all__ = ["FlowOptions", "Granularity"]


class Granularity(StrEnum):
    """What travels as one: a rank's whole traffic, the bytes of a pair of ranks, or chunks of them."""

    RANK = "rank"
    PAIR = "pair"
    CHUNK = "chunk"


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
    n_chunks: int = 8
    is_by_event: bool = False

    def __post_init__(self) -> None:
        for name in ("slow_ranks", "slow_links"):
            for rank, factor in getattr(self, name).items():
                if rank < 0 or not 0.0 < factor < 1e6:
                    raise InputError("must be ranks with positive factors", field=name, value={rank: factor})
        if self.launch_s < 0.0:
            raise InputError("must not be negative", field="launch_s", value=self.launch_s)
        if self.n_chunks < 1:
            raise InputError("must be at least 1", field="n_chunks", value=self.n_chunks)
