"""A program as the list of holds that every rank goes through, in layer order, with each duration taken from the cost model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CostModel
from moesim.cost.collectives import port_times
from moesim.cost.exchange import lent_ratio
from moesim.cost.exchange_kernels import kernels_s
from moesim.errors import InputError
from moesim.ops import EXCHANGES, ElementwiseShape, ExchangeShape, Lane, Num, Op, Program, Segment
from moesim.sim.options import FlowOptions, Granularity
from moesim.sim.pairs import PairTimes

__all__ = ["Compute", "Exchange", "Meeting", "Parts", "Step", "schedule", "split_schedule"]

Floats = NDArray[np.float64]
Row = Floats


class Compute(NamedTuple):
    """Consecutive operators on the compute engine, [R] seconds summed; `parts` names them with their shares, [R] each."""

    layer: int
    seconds: Row
    parts: tuple[tuple[str, Row], ...]


class Meeting(NamedTuple):
    """A collective that starts when the last rank arrives and takes the same time for all."""

    layer: int
    name: str
    seconds: Row


class Exchange(NamedTuple):
    """A dispatch or combine: each rank's ports are busy for `out_s` and `in_s`; the last byte lands `latency_s` later.

    `hidden` are compute operators that run beside it; `out_bytes` and `in_bytes` are for the books; `pairs` gives port times by
    pair of ranks where the granularity asks for them.
    """

    layer: int
    name: str
    out_s: Row
    in_s: Row
    latency_s: Row
    hidden: tuple[tuple[str, Row], ...]
    out_bytes: float
    in_bytes: float
    pairs: PairTimes | None = None


Step = Compute | Meeting | Exchange


@dataclass(frozen=True, slots=True)
class Parts:
    """Steps before, inside and after the layers; of each micro-batch inside."""

    before: list[Step]
    batches: tuple[list[Step], ...]
    after: list[Step]


def schedule(program: Program, model: CostModel, options: FlowOptions | None = None) -> list[Step]:
    """Every step of the pass in order: embedding, layers by index, head."""
    parts = split_schedule(replace(program, micro_batches=()), model, options)
    return [*parts.before, *parts.batches[0], *parts.after]


def split_schedule(program: Program, model: CostModel, options: FlowOptions | None = None) -> Parts:
    """The steps of the pass; those of its micro-batches inside the layers where it has any."""
    used = options or FlowOptions()
    _check(used, program)
    before, inside, after = _steps(program, model, used, whole=not program.micro_batches)
    batches = tuple(_steps(part, model, used, lends=True)[1] for part in program.micro_batches)
    return Parts(before, batches or (inside,), after)


def _steps(
    program: Program, model: CostModel, options: FlowOptions, *, whole: bool = True, lends: bool = False
) -> tuple[list[Step], list[Step], list[Step]]:
    first = [s for s in program.segments if not s.layers and s.name == "embedding"]
    last = [s for s in program.segments if not s.layers and s.name != "embedding"]
    inside = [s for s in program.segments if whole and s.layers]
    made = {id(s): _Table(s, program, model, options, lends).steps() for s in [*first, *last, *inside]}
    layered = sorted((index, row, s) for s in inside for row, index in enumerate(s.layers))
    return (
        [step for s in first for step in made[id(s)][0]],
        [step for _, row, s in layered for step in made[id(s)][row]],
        [step for s in last for step in made[id(s)][0]],
    )


def _check(options: FlowOptions, program: Program) -> None:
    for name in ("slow_ranks", "slow_links"):
        for rank in getattr(options, name):
            if rank >= program.n_ranks:
                allowed = f"0..{program.n_ranks - 1}"
                raise InputError("no such rank in the pass", field=name, value=rank, allowed=allowed)


class _Table:
    """Durations of one segment's operators for each of its layers and ranks: [L, R], or [1, R] where all layers are alike."""

    def __init__(self, segment: Segment, program: Program, model: CostModel, options: FlowOptions, lends: bool) -> None:
        self.ops, self.layers = segment.ops, segment.layers or (-1,)
        self.n_ranks = program.n_ranks
        self.shape = (segment.n_repeat, program.n_ranks)
        self.overlap = program.overlap
        self.options = options
        self.slow = _factors(options.slow_ranks, program.n_ranks)
        self.slow_port = _factors(options.slow_links, program.n_ranks)
        self.ratio = lent_ratio(segment.ops, model.network, model.hardware.device) if lends else 1.0
        self.seconds = [self._seconds(op, model) for op in segment.ops]
        self.names = [op.name for op in segment.ops]
        self.kernels: dict[int, int] = {}
        self.ports = {i: self._ports(op, model) for i, op in enumerate(segment.ops) if op.kind in EXCHANGES}
        if lends:
            for i in self.ports:
                self._give_kernels(i, self._full(kernels_s(segment.ops[i], model.network)))
        self.pairs: dict[int, list[PairTimes]] = {}
        if options.granularity is not Granularity.RANK:
            self.pairs = {i: self._pairs(i, op, model) for i, op in enumerate(segment.ops) if op.kind in EXCHANGES}

    def _full(self, x: Num) -> Floats:
        known = np.asarray(x, dtype=float)
        if known.ndim == 0:
            return np.full((1, self.n_ranks), known)
        return known if known.shape == self.shape else np.broadcast_to(known, self.shape)

    def _rows(self, x: Floats) -> Sequence[Row]:
        """One row for each layer."""
        return [x[0]] * self.shape[0] if len(x) == 1 else list(x)

    def _seconds(self, op: Op, model: CostModel) -> Floats:
        seconds = self._full(model.cost(op).time_s)
        if op.lane is not Lane.COMPUTE:
            return seconds * self.slow_port if self.options.slow_links else seconds
        if self.ratio != 1.0:
            seconds = seconds * self.ratio
        if self.options.launch_s:
            n_kernels = op.shape.n_kernels if isinstance(op.shape, ElementwiseShape) else 1
            seconds = np.maximum(seconds, self.options.launch_s * (n_kernels + op.n_side_kernels))
        return seconds * self.slow if self.options.slow_ranks else seconds

    def _ports(self, op: Op, model: CostModel) -> tuple[Floats, ...]:
        times = port_times(op, model.network)
        scale = self._full(model.cost(op).time_s) / np.maximum(self._full(times.total_s), 1e-30)
        out_s, in_s, latency_s = (self._full(x) * scale for x in (times.out_s, times.in_s, times.latency_s))
        if self.options.slow_links:
            out_s, in_s = out_s * self.slow_port, in_s * self.slow_port
        return out_s, in_s, latency_s, self._full(op.work.read_bytes), self._full(op.work.write_bytes)

    def _give_kernels(self, i: int, held_s: Floats) -> None:
        """Take what an exchange's kernels hold the engine off its own time, latency first, and keep it as a compute before it."""
        if not held_s.any():
            return
        out_s, in_s, latency_s, *n_bytes = self.ports[i]
        held_s = np.minimum(held_s, latency_s + np.minimum(out_s, in_s))
        rest_s = np.maximum(held_s - latency_s, 0.0)
        self.ports[i] = (out_s - rest_s, in_s - rest_s, latency_s - (held_s - rest_s), *n_bytes)
        self.kernels[i] = len(self.seconds)
        self.names.append(f"{self.names[i]}_kernels")
        self.seconds.append(held_s * self.slow)

    def _pairs(self, i: int, op: Op, model: CostModel) -> list[PairTimes]:
        shape = op.shape
        if not isinstance(shape, ExchangeShape) or shape.pairs is None:
            raise InputError(
                "needs the bytes of every pair of ranks", field="granularity", value=self.options.granularity.value,
                hint="lower the pass from drawn counts with pairs=True",
            )  # fmt: skip
        out_s, in_s = (self._rows(x) for x in self.ports[i][:2])
        up, nic = shape.pairs
        n_chunks = self.options.n_chunks if self.options.granularity is Granularity.CHUNK else 1
        network = model.network
        return [
            PairTimes.of(
                up[row], nic[row], out_s[row], in_s[row], network.up_bytes_per_s, network.nic_bytes_per_s, n_chunks
            )
            for row in range(self.shape[0])
        ]

    def steps(self) -> list[list[Step]]:
        """The steps of each layer: column by column, as all layers have the same."""
        columns: list[Sequence[Step]] = []
        pending: list[int] = []
        for i, op in enumerate(self.ops):
            if self.overlap and op.hidden_under is not None:
                continue
            if op.lane is Lane.COMPUTE:
                pending.append(i)
                continue
            if i in self.kernels:
                pending.append(self.kernels[i])
            if pending:
                columns.append(self._computes(pending))
                pending = []
            columns.append(self._exchanges(i) if op.kind in EXCHANGES else self._meetings(i))
        if pending:
            columns.append(self._computes(pending))
        return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in self.layers]

    def _computes(self, which: Sequence[int]) -> list[Step]:
        total = self.seconds[which[0]]
        for i in which[1:]:
            total = total + self.seconds[i]
        return [Compute(*row) for row in zip(self.layers, self._rows(total), self._named(which), strict=True)]

    def _meetings(self, i: int) -> list[Step]:
        name = self.ops[i].name
        return [Meeting(layer, name, row) for layer, row in zip(self.layers, self._rows(self.seconds[i]), strict=True)]

    def _exchanges(self, i: int) -> list[Step]:
        name, n_layers = self.ops[i].name, self.shape[0]
        hidden = [j for j, op in enumerate(self.ops) if self.overlap and op.hidden_under == name]
        beside = self._named(hidden) if hidden else [()] * n_layers
        times, loads = self.ports[i][:3], [x.sum(axis=1).tolist() for x in self.ports[i][3:]]
        n_bytes = (sums * (n_layers // len(sums)) for sums in loads)
        pairs = self.pairs[i] if self.pairs else [None] * n_layers
        rows = zip(*(self._rows(x) for x in times), beside, *n_bytes, pairs, strict=True)
        return [Exchange(layer, name, *row) for layer, row in zip(self.layers, rows, strict=True)]

    def _named(self, which: Sequence[int]) -> list[tuple[tuple[str, Row], ...]]:
        """Names and times of some operators, for each layer."""
        names = [self.names[i] for i in which]
        if all(len(self.seconds[i]) == 1 for i in which):
            return [tuple(zip(names, (self.seconds[i][0] for i in which), strict=True))] * self.shape[0]
        columns = [self._rows(self.seconds[i]) for i in which]
        return [tuple(zip(names, rows, strict=True)) for rows in zip(*columns, strict=True)]


def _factors(slow: Mapping[int, float], n_ranks: int) -> Floats:
    factors = np.ones(n_ranks)
    for rank, factor in slow.items():
        factors[rank] = factor
    return factors
