"""The books of a simulated pass: who was busy how long, and that everything balances at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConservationError
from moesim.sim.awaited import Circumstances
from moesim.sim.ledger import Ledger
from moesim.sim.schedule import Exchange, Meeting, Step
from moesim.sim.trail import Trail
from moesim.sim.visits import Group, Visits, groups_of
from moesim.timeline import Awaited, Cause, Timeline

__all__ = ["Books", "FlowResult", "Group", "Visits", "groups_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FlowResult:
    """What a simulated pass took and where ranks worked and waited; `n_holds` is how many timed activities it had.

    Stages of a pipeline hand on for `sends_s` in all. [R] each: `engine_busy_s`, `out_busy_s` and `in_busy_s` of engines and
    ports. `ledger` knows who waited for whom, `trail` what the pass waited for; `is_recorded` is whether spans were asked for.
    """

    time_s: float
    bytes_sent: float
    n_holds: int
    sends_s: float = 0.0
    engine_busy_s: Floats = field(default_factory=lambda: np.zeros(0))
    out_busy_s: Floats = field(default_factory=lambda: np.zeros(0))
    in_busy_s: Floats = field(default_factory=lambda: np.zeros(0))
    ledger: Ledger = field(default_factory=lambda: Ledger(0, (), np.zeros(0)), repr=False, compare=False)
    trail: Trail = field(default_factory=Trail, repr=False, compare=False)
    is_recorded: bool = False

    @property
    def n_ranks(self) -> int:
        """Ranks of the pass."""
        return self.ledger.n_ranks

    @property
    def exposed_comm_s(self) -> float:
        """Time in which the rank that the pass waits for computes nothing because of communication (`sim.trail`)."""
        return self.trail.exposed_s + self.sends_s

    @property
    def hidden_comm_s(self) -> float:
        """The rest of the communication of a rank: with compute over it, mean per rank."""
        return max(0.0, self.ledger.own_comm_s - self.trail.exposed_s)

    @property
    def slower_wait_s(self) -> float:
        """Time in which the mean rank computes nothing beyond that: it waits for slower ones."""
        return max(0.0, self.time_s - self.exposed_comm_s - float(self.engine_busy_s.mean()))

    @property
    def port_utilisation(self) -> Floats:
        """Part of the pass in which the busier direction of each rank's ports is in use, [R]."""
        return np.maximum(self.out_busy_s, self.in_busy_s) / max(self.time_s, 1e-30)

    @property
    def idle_s(self) -> dict[Cause, Floats]:
        """Idle time of engines by cause, [R] each; with `engine_busy_s` it adds up to the pass.

        Under `Cause.ENGINE_BUSY`, beside that sum: what micro-batches waited while the engine worked.
        """
        return self.ledger.idle.by_cause_s

    @property
    def waits_s(self) -> dict[Cause, float]:
        """The same as means over ranks."""
        return {cause: float(seconds.mean()) for cause, seconds in self.idle_s.items()}

    @property
    def awaited(self) -> tuple[Awaited, ...]:
        """Ranks that others waited for, the most waited for first."""
        return self.ledger.awaited

    @property
    def timeline(self) -> Timeline:
        """Spans of all ranks; none if they were not recorded. `ledger.timeline` has those of some ranks."""
        return self.ledger.timeline() if self.is_recorded else Timeline(self.n_ranks)

    def wait_map_s(self, layers: Sequence[int]) -> Floats:
        """Waiting of engines by rank and layer, [R, L]."""
        return self.ledger.wait_map_s(layers)


class Books:
    """Sums over a pass; its result has spans if `record`."""

    def __init__(self, n_ranks: int, record: bool) -> None:
        self.n_ranks, self.record = n_ranks, record
        self.engine_busy_s, self.out_busy_s, self.in_busy_s, self.ends_s = (np.zeros(n_ranks) for _ in range(4))
        self.trail = Trail()
        self.visits: list[tuple[int, Visits]] = []
        self.bytes_sent = 0.0
        self.n_holds = 0

    def enter(self, visits: Visits, batch: int = 0) -> None:
        """Put groups that all ranks have been through in one micro-batch into the books."""
        groups = visits.groups
        seconds = [step.seconds for group in groups for step in group.computes]
        meetings = [group.join for group in groups if isinstance(group.join, Meeting)]
        exchanges = [group.join for group in groups if isinstance(group.join, Exchange)]
        self.n_holds += self.n_ranks * (len(seconds) + len(meetings) + 2 * len(exchanges))
        self.engine_busy_s += self._sum([*seconds, *(row for join in exchanges for _, row in join.hidden)])
        both_s = self._sum([join.seconds for join in meetings])
        self.out_busy_s += both_s + self._sum([join.out_s for join in exchanges])
        self.in_busy_s += both_s + self._sum([join.in_s for join in exchanges])
        self.visits.append((batch, visits))
        self.trail.follow(visits)

    def _sum(self, rows: Sequence[Floats]) -> Floats:
        return np.array(rows).sum(axis=0) if rows else np.zeros(self.n_ranks)

    def balance(self, steps: Iterable[Step]) -> None:
        """Bytes out are bytes in.

        Raises:
            ConservationError: where they are not.
        """
        for step in steps:
            if not isinstance(step, Exchange):
                continue
            if abs(step.out_bytes - step.in_bytes) > 1e-3 * max(step.out_bytes, 1.0):
                raise ConservationError(
                    f"{step.name} of layer {step.layer}: {step.out_bytes:.0f} bytes out, {step.in_bytes:.0f} in"
                )
            self.bytes_sent += step.out_bytes

    def result(self, sends_s: float, known: Circumstances | None = None) -> FlowResult:
        """Close the books; stages of a pipeline hand on for `sends_s` in all."""
        end, self.trail.ends_s = float(self.ends_s.max()), self.ends_s
        return FlowResult(
            time_s=end + sends_s, bytes_sent=self.bytes_sent, n_holds=self.n_holds, sends_s=sends_s,
            engine_busy_s=self.engine_busy_s, out_busy_s=self.out_busy_s, in_busy_s=self.in_busy_s,
            ledger=Ledger(self.n_ranks, self.visits, self.ends_s, sends_s, known), trail=self.trail, is_recorded=self.record,
        )  # fmt: skip
