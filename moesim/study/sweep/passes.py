"""Times of many passes at once: one lowering with arrays for cases that share split and hardware.

Rows are passes; E experts, K top-k, F expert width, S sequences, q new tokens and p cached ones may differ from row to row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import ASSUMED_ERROR_FRAC, barrier_groups
from moesim.cost import CostModel, OpCost
from moesim.cost.energy import DYNAMIC_FRAC
from moesim.cost.estimate import known_costs
from moesim.cost.result import Bound
from moesim.lowering import MoeLoad, Pass, Routed, expert_layout, lower, uniform_load
from moesim.lowering.route import fullest_source, node_limited
from moesim.ops import COLLECTIVES, EXCHANGES, Op, Phase, Program
from moesim.specs.base import Origin, weakest
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.sweep.shapes import Experts, array_model

__all__ = ["PassTimes", "Passes", "is_even", "priced"]

Floats = NDArray[np.float64]
FEW_ROWS = 3
_WEIGHTS = tuple(DYNAMIC_FRAC[bound] for bound in Bound)


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Of every row: time, exposed communication, time weighted by the power its bound draws, and error times time.

    `measured_s` is the part of the time that a calibration stands behind; `imbalance` the fullest expert rank over the mean.
    """

    time_s: Floats
    comm_s: Floats
    power_s: Floats
    error_s: Floats
    measured_s: Floats
    imbalance: Floats
    origin: Origin

    def take(self, rows: Any) -> PassTimes:
        """Some rows."""
        return _built([x[rows] for x in _columns(self)], self.origin)


def _columns(p: PassTimes) -> tuple[Floats, ...]:
    return p.time_s, p.comm_s, p.power_s, p.error_s, p.measured_s, p.imbalance


def _built(columns: Sequence[Floats], origin: Origin) -> PassTimes:
    time, comm, power, error, measured, imbalance = columns
    return PassTimes(time, comm, power, error, measured, imbalance, origin)


@dataclass(frozen=True, slots=True, eq=False)
class _Lowered:
    """Rows ready to be priced: their program, costs, number, and the imbalance of their expert ranks."""

    program: Program
    cost: CostModel
    n: int
    imbalance: Any
    pp_size: int

    @property
    def key(self) -> tuple[int, int, str, int, float, float]:
        """Rows with equal keys cost the same but for the number of stages."""
        c = self.cost
        network = (c.network.up_bytes_per_s, c.network.nic_bytes_per_s)
        return (id(self.program), id(c.calibration), c.hardware.name, c.hardware.scale_up_domain_size, *network)


def is_even(routing: RoutingSpec | None) -> bool:
    """Whether all experts are equally popular, so that loads need no router."""
    if routing is None:
        return True
    if routing.family is RouterFamily.BALANCED:
        return True
    return routing.family is RouterFamily.UNIFORM and routing.capacity_factor is None


@dataclass(frozen=True, slots=True)
class Passes:
    """A model on its split, ready to time rows; `routed` is needed unless routing is even."""

    model: ModelSpec
    parallel: ParallelSpec
    cost: CostModel
    domain_size: int
    overlap: bool
    routing: RoutingSpec | None
    routed: Routed | None = None
    memory: dict[Any, tuple[Program, Any]] = field(default_factory=dict)

    def ask(
        self, phase: Phase, experts: Experts, sequences: Floats, new: Floats, cached: Floats
    ) -> tuple[list[_Lowered], NDArray[np.intp] | None]:
        """Programs that time rows, and for each row which of their rows it is (None: in order); equal rows share one.

        Few rows are lowered one by one with plain numbers, which calibrations price together with those of other groups.
        """
        varying = [x for x in (sequences, new, cached, experts.n_routed, experts.top_k, experts.width) if x is not None]
        inverse = None
        if len(sequences) > 1:
            first, found = _distinct(varying)
            if len(first) < len(sequences):
                inverse, experts = found, experts.take(first)
                sequences, new, cached = sequences[first], new[first], cached[first]
        n = len(sequences)
        pieces = [slice(i, i + 1) for i in range(n)] if n <= FEW_ROWS else [slice(0, n)]
        lowered = []
        for piece in pieces:
            parts = (phase, experts.take(piece), sequences[piece], new[piece], cached[piece])
            program, imbalance = (
                self._remembered(*parts) if n <= FEW_ROWS and self.routed is None else self._program(*parts)
            )
            lowered.append(_Lowered(program, self.cost, len(sequences[piece]), imbalance, self.parallel.pp_size))
        return lowered, inverse

    def _remembered(
        self, phase: Phase, experts: Experts, sequences: Floats, new: Floats, cached: Floats
    ) -> tuple[Program, Any]:
        """One row's program, from the memory where a group of equal stages has asked for it: stages may differ in number."""
        p = self.parallel
        row = tuple(float(x[0]) for x in (sequences, new, cached))
        own = tuple(None if x is None else float(x[0]) for x in (experts.n_routed, experts.top_k, experts.width))
        split = (p.tp_size, p.dp_size, p.cp_size, p.ep_size, p.redundant_experts, p.pp_size > 1)
        key = (id(self.model), split, phase, self.overlap, _is_balanced(self.routing), self.domain_size, row, own)
        found = self.memory.get(key)
        if found is None:
            found = self.memory[key] = self._program(phase, experts, sequences, new, cached)
        return found

    def _program(
        self, phase: Phase, experts: Experts, sequences: Floats, new: Floats, cached: Floats
    ) -> tuple[Program, Any]:
        """One row is lowered with plain numbers, which is ten times quicker and remembered by calibrations."""
        single = len(sequences) == 1
        even = self.routed is None

        def shaped(x: Floats | None) -> Any:
            return None if x is None else float(x[0]) if single else x if even else x[:, None, None]

        step = Pass(phase, shaped(sequences), _common(shaped(new)), shaped(cached))
        inner = Experts(*(shaped(x) for x in (experts.n_routed, experts.top_k, experts.width)))
        layout = expert_layout(self.parallel, phase, self.domain_size)
        seen: list[tuple[int, Any]] = []

        def load_for(ffn: MoeFfn, indices: tuple[int, ...]) -> MoeLoad:
            load = load_of(ffn, indices)
            mean = step.n_tokens * load.top_k / self.parallel.ep_size
            seen.append((len(indices), _rows_of(load.n_assignments / mean)))
            return load

        def load_of(ffn: MoeFfn, indices: tuple[int, ...]) -> MoeLoad:
            if self.routed is not None:
                return self.routed.expected(ffn, indices, step, layout)
            limited = node_limited(layout, ffn)
            n_experts, balanced = _float(ffn.n_routed_experts), _is_balanced(self.routing)
            n_slots = n_experts + float(self.parallel.redundant_experts)
            source = fullest_source(step, limited)
            load = uniform_load(
                step.n_tokens, n_slots, _float(ffn.num_experts_per_tok), limited, source, balanced=balanced
            )
            return replace(load, n_experts=n_experts) if self.parallel.redundant_experts else load

        program = lower(array_model(self.model, inner), self.parallel, step, load_for, overlap=self.overlap)
        return program, sum(n * ratio for n, ratio in seen) / sum(n for n, _ in seen) if seen else 1.0


def _is_balanced(routing: RoutingSpec | None) -> bool:
    return routing is not None and routing.family is RouterFamily.BALANCED


def _float(x: Any) -> Any:
    return float(x) if isinstance(x, int) else x


def _common(x: Any) -> Any:
    """A number where all are equal: decode passes have one new token, which lowering keeps plain."""
    return float(x.flat[0]) if isinstance(x, np.ndarray) and (x == x.flat[0]).all() else x


def _distinct(columns: Sequence[Floats]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first of each set of equal rows, and for each row its set."""
    code = np.zeros(len(columns[0]), dtype=np.intp)
    for column in columns:
        own, inverse = np.unique(column, return_inverse=True)
        if len(own) > 1:
            _, code = np.unique(code * len(own) + inverse, return_inverse=True)
    first = np.full(int(code.max()) + 1, len(code), dtype=np.intp)
    np.minimum.at(first, code, np.arange(len(code)))
    return first, code


def priced(asked: Sequence[Sequence[_Lowered]]) -> list[PassTimes]:
    """Times of the rows of each request; operators of all of them that one calibration knows are priced together."""
    flat = [lowered for request in asked for lowered in request]
    distinct = {lowered.key: lowered for lowered in flat}
    by_calibration: dict[tuple[int, str], list[_Lowered]] = {}
    for lowered in distinct.values():
        model = lowered.cost
        by_calibration.setdefault((id(model.calibration), model.hardware.device.name), []).append(lowered)
    costs: dict[Any, list[OpCost]] = {}
    for members in by_calibration.values():
        ops = [[op for _, op in m.program.ops()] + list(m.program.stage_sends) for m in members]
        calibration, device = members[0].cost.calibration, members[0].cost.hardware.device
        every = [op for own in ops for op in own]
        known = iter([None] * len(every) if calibration is None else known_costs(calibration, every, device))
        for lowered, own in zip(members, ops, strict=True):
            plain = replace(lowered.cost, calibration=None)
            costs[lowered.key] = [plain.cost(op) if cost is None else cost for op, cost in zip(own, known)]  # noqa: B905
    sums: dict[Any, PassTimes] = {}
    for lowered in flat:
        if (lowered.key, lowered.pp_size) not in sums:
            sums[lowered.key, lowered.pp_size] = _timed(lowered, costs[lowered.key])
    times = iter([sums[lowered.key, lowered.pp_size] for lowered in flat])
    return [_joined([next(times) for _ in request]) for request in asked]


def _joined(parts: Sequence[PassTimes]) -> PassTimes:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(_columns(p) for p in parts), strict=True)
    return _built([np.concatenate(c) for c in columns], weakest(*(p.origin for p in parts)))


def _timed(lowered: _Lowered, costs: Sequence[OpCost]) -> PassTimes:
    program, coming = lowered.program, iter(costs)
    sums = _Sums(lowered.n)
    for segment in program.segments:
        repeat = float(segment.n_repeat)
        if not program.overlap:
            # ranks beside the fullest are not in it, so that barriers change nothing
            for op in segment.ops:
                cost = next(coming)
                sums.add(op, cost, _rows_of(cost.time_s) * repeat)
            continue
        for group in barrier_groups(segment.ops, program.n_ranks):
            own = [next(coming) for _ in group]
            times = [_rows_of(cost.time_s) for cost in own]
            for op, cost, time, hidden in zip(group, own, times, _hidden(group, times), strict=True):
                sums.add(op, cost, (time - hidden) * repeat)
    for op in program.stage_sends:
        cost = next(coming)
        sums.add(op, cost, _rows_of(cost.time_s) * float(lowered.pp_size - 1))
    return sums.result(lowered.imbalance)


class _Sums:
    """Running sums over the operators of a pass."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.time: Any = 0.0
        self.comm: Any = 0.0
        self.power: Any = 0.0
        self.error: Any = 0.0
        self.measured: Any = 0.0
        self.origins: set[Origin] = set()

    def add(self, op: Op, cost: OpCost, time: Any) -> None:
        """Count an operator's time over all its layers."""
        self.time = self.time + time
        self.power = self.power + time * _power(cost)
        if op.kind in COLLECTIVES or op.kind in EXCHANGES:
            self.comm = self.comm + time
        self.error = self.error + time * (ASSUMED_ERROR_FRAC if cost.error_frac is None else _rows_of(cost.error_frac))
        if cost.error_frac is not None:
            self.measured = self.measured + time
        self.origins.add(cost.origin)

    def result(self, imbalance: Any) -> PassTimes:
        """The sums as arrays of all rows."""
        parts = (self.time, self.comm, self.power, self.error, self.measured, imbalance)
        columns = [np.array(np.broadcast_to(x, (self.n,)), dtype=float) for x in parts]
        return _built(columns, weakest(*self.origins))


def _rows_of(x: Any) -> Any:
    """One number per row: the mean over the layers of a segment; ranks beside the fullest are not in it."""
    return x.max(axis=-1).mean(axis=-1) if isinstance(x, np.ndarray) and x.ndim >= 2 else x


def _power(cost: OpCost) -> Any:
    """Share of the dynamic power that the bound of each row draws."""
    if isinstance(cost.time_s, float):
        return DYNAMIC_FRAC[cost.bound]
    parts = np.stack(np.broadcast_arrays(cost.compute_s, cost.memory_s, cost.link_s, cost.latency_s, cost.time_s))
    if parts.ndim >= 3:
        # of a segment's layers the slowest says what it is bound by
        slowest = np.expand_dims(parts[4].max(axis=-1).argmax(axis=-1), (0, -1, -2))
        slowest = np.broadcast_to(slowest, (5, *parts.shape[1:-2], 1, parts.shape[-1]))
        parts = np.take_along_axis(parts, slowest, axis=-2)[..., 0, 0]
    return np.asarray(_WEIGHTS)[parts[:4].argmax(axis=0)]


def _hidden(group: Sequence[Op], times: Sequence[Any]) -> list[Any]:
    """Per operator, how much of it runs beside the operator that it may hide under."""
    left: dict[str, Any] = {op.name: time for op, time in zip(group, times, strict=True)}
    hidden: list[Any] = []
    for op, time in zip(group, times, strict=True):
        room = left.get(op.hidden_under) if op.hidden_under is not None else None
        covered: Any = 0.0 if room is None else np.minimum(room, time)
        if op.hidden_under is not None and room is not None:
            left[op.hidden_under] = room - covered
        hidden.append(covered)
    return hidden
