"""A program as the list of holds that every rank goes through, in layer order, with each duration taken from the cost model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CostModel
from moesim.cost.collectives import port_times
from moesim.ops import EXCHANGES, Lane, Num, Op, Program, Segment

__all__ = ["Compute", "Exchange", "Meeting", "Step", "schedule"]

Row = list[float]


@dataclass(frozen=True, slots=True)
class Compute:
    """Consecutive operators on the compute engine, [R] seconds each and summed; `parts` names them with their shares."""

    layer: int
    seconds: Row
    parts: tuple[tuple[str, Row], ...]


@dataclass(frozen=True, slots=True)
class Meeting:
    """A collective that starts when the last rank arrives and takes the same time for all."""

    layer: int
    name: str
    seconds: Row


@dataclass(frozen=True, slots=True)
class Exchange:
    """A dispatch or combine: each rank's ports are busy for `out_s` and `in_s`; the last byte lands `latency_s` later.

    `hidden` are compute operators that run beside it; `out_bytes` and `in_bytes` are for the books.
    """

    layer: int
    name: str
    out_s: Row
    in_s: Row
    latency_s: Row
    hidden: tuple[tuple[str, Row], ...]
    out_bytes: float
    in_bytes: float


Step = Compute | Meeting | Exchange


def schedule(program: Program, model: CostModel) -> list[Step]:
    """Every step of the pass in order: embedding, layers by index, head."""
    before = [s for s in program.segments if not s.layers and s.name == "embedding"]
    after = [s for s in program.segments if not s.layers and s.name != "embedding"]
    layered = sorted((index, row, s) for s in program.segments for row, index in enumerate(s.layers))
    tables = {id(s): _Table(s, program, model) for s in program.segments}
    steps: list[Step] = []
    for segment in before:
        steps += tables[id(segment)].steps(-1, 0)
    for index, row, segment in layered:
        steps += tables[id(segment)].steps(index, row)
    for segment in after:
        steps += tables[id(segment)].steps(-1, 0)
    return steps


class _Table:
    """Durations of one segment's operators for each of its layers and ranks."""

    def __init__(self, segment: Segment, program: Program, model: CostModel) -> None:
        self.ops = segment.ops
        self.n_ranks = program.n_ranks
        self.shape = (segment.n_repeat, program.n_ranks)
        self.overlap = program.overlap
        self.seconds = [self._full(model.cost(op).time_s) for op in segment.ops]
        self.ports = {i: self._ports(op, model) for i, op in enumerate(segment.ops) if op.kind in EXCHANGES}

    def _full(self, x: Num) -> NDArray[np.float64]:
        return np.broadcast_to(np.asarray(x, dtype=float), self.shape)

    def _ports(self, op: Op, model: CostModel) -> tuple[NDArray[np.float64], ...]:
        times = port_times(op, model.network)
        scale = self._full(model.cost(op).time_s) / np.maximum(self._full(times.total_s), 1e-30)
        out_s, in_s, latency_s = (self._full(x) * scale for x in (times.out_s, times.in_s, times.latency_s))
        return out_s, in_s, latency_s, self._full(op.work.read_bytes), self._full(op.work.write_bytes)

    def steps(self, layer: int, row: int) -> list[Step]:
        hidden_under = {op.hidden_under for op in self.ops if op.hidden_under} if self.overlap else set()
        steps: list[Step] = []
        pending: list[tuple[str, Row]] = []
        for i, op in enumerate(self.ops):
            if self.overlap and op.hidden_under is not None:
                continue
            seconds = self.seconds[i][row].tolist()
            if op.lane is Lane.COMPUTE:
                pending.append((op.name, seconds))
                continue
            if pending:
                steps.append(_compute(layer, pending))
                pending = []
            if op.kind in EXCHANGES:
                hidden = self._hidden(op.name, row) if op.name in hidden_under else ()
                out_s, in_s, latency_s, sent, received = (x[row] for x in self.ports[i])
                steps.append(
                    Exchange(layer, op.name, out_s.tolist(), in_s.tolist(), latency_s.tolist(), hidden,
                             float(sent.sum()), float(received.sum()))
                )  # fmt: skip
            else:
                steps.append(Meeting(layer, op.name, seconds))
        if pending:
            steps.append(_compute(layer, pending))
        return steps

    def _hidden(self, under: str, row: int) -> tuple[tuple[str, Row], ...]:
        return tuple(
            (op.name, self.seconds[i][row].tolist()) for i, op in enumerate(self.ops) if op.hidden_under == under
        )


def _compute(layer: int, parts: list[tuple[str, Row]]) -> Compute:
    return Compute(layer, [sum(values) for values in zip(*(row for _, row in parts), strict=True)], tuple(parts))
