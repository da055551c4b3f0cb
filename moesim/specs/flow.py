"""How a system's passes are simulated, and what is uneven or wrong in its machine: the `flow:` block of a system."""

from __future__ import annotations

from enum import StrEnum
from itertools import cycle, islice
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from moesim.specs.base import Count, Flag, Frozen, Number, Seconds

__all__ = ["EVEN", "N_CHUNKS", "Exchange", "FlowSpec", "Granularity"]

#: Factors beyond this are taken for a slip of the pen.
MOST = 1000.0
#: Chunks of a pair's bytes where nothing else is said.
N_CHUNKS = 8


class Granularity(StrEnum):
    """What travels as one: a rank's whole traffic, the bytes of a pair of ranks, or chunks of them."""

    RANK = "rank"
    PAIR = "pair"
    CHUNK = "chunk"


class Exchange(StrEnum):
    """Kernels of expert exchanges: as the phase has it (prefill high throughput, decode low latency), or one of them always."""

    AUTO = "auto"
    HIGH_THROUGHPUT = "high_throughput"
    LOW_LATENCY = "low_latency"


def _rank(value: Any) -> Any:
    """Keys of a JSON file are text."""
    if isinstance(value, str) and value.isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no rank: whole numbers from 0 on")
    return value


Factors = dict[Annotated[int, BeforeValidator(_rank)], Annotated[float, Field(strict=True)]]


class FlowSpec(Frozen):
    """Settings of the simulated passes of one system; the defaults are a healthy, evenly loaded machine.

    `granularity` and `n_chunks` are of transfers. `slow_ranks` and `slow_links` give ranks of a stage (from 0) a factor by which
    their compute, or their ports, take longer. `launch_s` is the host's time per kernel where no graph is replayed: no kernel
    follows the last one sooner; with `cuda_graphs` true decode passes are replayed and only prefill pays it. `comm_sms` compute
    units are lent to high-throughput exchanges in place of the fabric file's. `dp_load` gives attention-DP groups relative loads
    in sequences and `dp_context` in context; a list shorter than the groups is repeated.
    """

    granularity: Granularity = Granularity.RANK
    n_chunks: Count | None = None
    slow_ranks: Factors = Field(default_factory=dict)
    slow_links: Factors = Field(default_factory=dict)
    launch_s: Seconds | None = None
    cuda_graphs: Flag | None = None
    comm_sms: Count | None = None
    exchange: Exchange = Exchange.AUTO
    dp_load: tuple[Number, ...] | None = Field(default=None, min_length=1)
    dp_context: tuple[Number, ...] | None = Field(default=None, min_length=1)

    @field_validator("slow_ranks", "slow_links")
    @classmethod
    def _slower(cls, factors: dict[int, float]) -> dict[int, float]:
        for rank, factor in factors.items():
            if not 1.0 <= factor <= MOST:
                raise ValueError(
                    f"rank {rank} has factor {factor:g}: must be from 1 to {MOST:g}; 2 takes twice as long"
                )
        return dict(sorted(factors.items()))

    @field_validator("dp_load", "dp_context")
    @classmethod
    def _relative(cls, loads: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for load in loads or ():
            if not 0.0 <= load <= MOST:
                raise ValueError(f"{load:g} is no relative load: must be from 0 to {MOST:g}")
        if loads is not None and max(loads) == 0.0:
            raise ValueError("all loads are 0: at least one must be above")
        return loads

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.n_chunks is not None and self.granularity is not Granularity.CHUNK:
            raise ValueError("n_chunks: needs granularity chunk")
        if self.launch_s is not None and not 0.0 < self.launch_s <= 1.0:
            raise ValueError("launch_s: must be above 0 and at most a second per kernel, such as 8 us")
        if self.cuda_graphs is not None and self.launch_s is None:
            raise ValueError("cuda_graphs: needs launch_s, the host's time per kernel that graphs save")
        if self.comm_sms is not None and self.exchange is Exchange.LOW_LATENCY:
            raise ValueError(
                "comm_sms: low-latency exchanges take no compute units; use exchange high_throughput or auto"
            )
        return self

    @property
    def is_even(self) -> bool:
        """Whether attention-DP groups are alike."""
        return all(loads is None or len(set(loads)) == 1 for loads in (self.dp_load, self.dp_context))

    @property
    def simulated(self) -> tuple[str, ...]:
        """Fields in use that only the simulation knows."""
        used = {
            "granularity": self.granularity is not Granularity.RANK, "slow_ranks": self.slow_ranks, "slow_links": self.slow_links,
            "launch_s": self.launch_s,
        }  # fmt: skip
        return tuple(name for name, is_used in used.items() if is_used)

    @property
    def of_machine(self) -> FlowSpec:
        """What is slow in the machine, for another model on the same devices."""
        kept = ("slow_ranks", "slow_links", "launch_s", "cuda_graphs")
        return FlowSpec(**{name: getattr(self, name) for name in kept})

    def sequences(self, n: int, n_groups: int) -> tuple[int, ...] | None:
        """Whole sequences of each attention-DP group by relative load, `n` in all; None where groups are alike.

        What rounding leaves over goes to the groups that lost most by it.
        """
        if self.dp_load is None or len(set(self.dp_load)) == 1:
            return None if self.is_even else _dealt([1.0] * n_groups, n)
        return _dealt(_repeated(self.dp_load, n_groups), n)

    def contexts(self, mean: float, sequences: tuple[int, ...]) -> tuple[float, ...] | None:
        """Context of each group, of which `mean` is the mean over sequences; None where all are alike."""
        if self.dp_context is None or len(set(self.dp_context)) == 1:
            return None
        shares = _repeated(self.dp_context, len(sequences))
        weight = sum(share * n for share, n in zip(shares, sequences, strict=True))
        return tuple(share * mean * sum(sequences) / weight for share in shares) if weight > 0.0 else None


def _repeated(values: tuple[float, ...], n: int) -> list[float]:
    return list(islice(cycle(values), n))


def _dealt(weights: list[float], n: int) -> tuple[int, ...]:
    """Largest remainders; of equal ones the first."""
    total = sum(weights)
    exact = [n * weight / total for weight in weights]
    whole = [int(x + 1e-9) for x in exact]
    order = sorted(range(len(weights)), key=lambda i: (whole[i] - exact[i], i))
    for i in order[: n - sum(whole)]:
        whole[i] += 1
    return tuple(whole)


EVEN = FlowSpec()
