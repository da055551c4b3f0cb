"""Costs of many programs at once and the sums that a sweep needs: each distinct operator is priced once, whoever shares it.

Rows are passes; an operator's numbers may be one for all rows of its program or one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import ASSUMED_ERROR_FRAC, barrier_groups
from moesim.cost import CostModel, OpCost
from moesim.cost.energy import DYNAMIC_FRAC
from moesim.cost.estimate import known_costs
from moesim.cost.result import Bound
from moesim.cost.stack import StackParams, n_launches
from moesim.ops import COLLECTIVES, EXCHANGES, Op, OpKind, Phase, Program
from moesim.specs.base import Origin, weakest
from moesim.study.host import hosted_s
from moesim.study.uncertainty import WIDE_WIDTH, Exposure

__all__ = ["Lowered", "PassTimes", "exposure_in", "hosted", "priced"]

Floats = NDArray[np.float64]
#: Programs of more rows are summed one by one, so that intermediate results stay in a cache.
MOST_ROWS = 64
_WEIGHTS = tuple(DYNAMIC_FRAC[bound] for bound in Bound)
_COMM = COLLECTIVES | EXCHANGES
_ORIGINS = tuple(Origin)
_RANKS = {origin: rank for rank, origin in enumerate(_ORIGINS)}


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Of every row: time, exposed communication, time weighted by the power its bound draws, and error times time.

    `measured_s` is the part of the time that a calibration stands behind, `outside_s` what lies outside its domain, `links_s` the
    errors of expert exchanges; `n_launched` counts kernels, `imbalance` is the fullest expert rank over the mean.
    """

    time_s: Floats
    comm_s: Floats
    power_s: Floats
    error_s: Floats
    measured_s: Floats
    outside_s: Floats
    links_s: Floats
    n_launched: Floats
    imbalance: Floats
    origin: Origin

    def take(self, rows: Any) -> PassTimes:
        """Some rows."""
        return _built([x[rows] for x in _columns(self)], self.origin)


def _columns(p: PassTimes) -> tuple[Floats, ...]:
    return (
        p.time_s, p.comm_s, p.power_s, p.error_s, p.measured_s, p.outside_s, p.links_s, p.n_launched, p.imbalance,
    )  # fmt: skip


def _built(columns: Sequence[Floats], origin: Origin) -> PassTimes:
    time, comm, power, error, measured, outside, links, launched, imbalance = columns
    return PassTimes(time, comm, power, error, measured, outside, links, launched, imbalance, origin)


def hosted(times: PassTimes, stack: StackParams | None, phase: Phase, n_new: Any = 0.0) -> PassTimes:
    """Times with what the stack's host adds to each pass; it draws the power of waiting."""
    if stack is None:
        return times
    whole = np.asarray(hosted_s(stack, times.time_s, phase, times.n_launched, n_new))
    power_s = times.power_s + (whole - times.time_s) * DYNAMIC_FRAC[Bound.LATENCY]
    measured_s = times.measured_s + (whole - times.time_s)
    return replace(times, time_s=whole, power_s=power_s, measured_s=measured_s)


def exposure_in(times: PassTimes, *, is_wide: bool) -> Exposure:
    """How each row is exposed to errors; `is_wide` where the instance spans scale-up domains."""
    t = times.time_s
    links = np.hypot(times.links_s / t, WIDE_WIDTH * is_wide)
    return Exposure(times.error_s / t, links, 1.0 - times.measured_s / t, times.outside_s / t)


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """Rows ready to be priced: their program, costs, number, the imbalance of their expert ranks, and pipeline stages."""

    program: Program
    cost: CostModel
    n: int
    imbalance: Any
    pp_size: int

    @property
    def network_key(self) -> tuple[str, int, float, float, bool]:
        """What uncalibrated costs depend on besides the operator."""
        c = self.cost
        is_wide = c.hardware.n_devices > c.network.domain_size
        return (
            c.hardware.name,
            c.hardware.scale_up_domain_size,
            c.network.up_bytes_per_s,
            c.network.nic_bytes_per_s,
            is_wide,
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Rows with equal keys cost the same."""
        return (id(self.program), id(self.cost.calibration), self.pp_size, *self.network_key)


def priced(asked: Sequence[Sequence[Lowered]]) -> list[PassTimes]:
    """Times of the rows of each request; operators of all of them that one calibration knows are priced together."""
    keys = [[lowered.key for lowered in request] for request in asked]
    distinct: dict[Any, _Priced] = {}
    for own, request in zip(keys, asked, strict=True):
        for key, lowered in zip(own, request, strict=True):
            if key not in distinct:
                distinct[key] = _Priced(lowered)
    _find_costs(list(distinct.values()))
    sums: dict[Any, PassTimes] = {}
    few: dict[int, list[tuple[Any, _Priced]]] = {}
    for key, program in distinct.items():
        if program.lowered.program.overlap or program.lowered.n > MOST_ROWS:
            sums[key] = _timed(program)
        else:
            few.setdefault(program.lowered.n, []).append((key, program))
    for members in few.values():
        sums |= _timed_together(members)
    return [_joined([sums[key] for key in own]) for own in keys]


class _Priced:
    """A program's operators in order, those of a send to a next stage last, how often each runs, and where their costs are."""

    __slots__ = ("costs", "lowered", "ops", "repeats")

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self.ops: list[Op] = []
        self.repeats: list[float] = []
        for segment in lowered.program.segments:
            self.ops += segment.ops
            self.repeats += [float(segment.n_repeat)] * len(segment.ops)
        if lowered.pp_size > 1:
            self.ops += lowered.program.stage_sends
            self.repeats += [float(lowered.pp_size - 1)] * len(lowered.program.stage_sends)
        self.costs: dict[int, OpCost] = {}


def _find_costs(programs: Sequence[_Priced]) -> None:
    """Give every program the costs of its operators by their identity; programs on equal links share them."""
    by_calibration: dict[tuple[int, str], list[_Priced]] = {}
    for p in programs:
        model = p.lowered.cost
        by_calibration.setdefault((id(model.calibration), model.hardware.device.name), []).append(p)
    for members in by_calibration.values():
        every = {id(op): op for p in members for op in p.ops}
        calibration, device = members[0].lowered.cost.calibration, members[0].lowered.cost.hardware.device
        answers = (
            known_costs(calibration, list(every.values()), device) if calibration is not None else [None] * len(every)
        )
        known = {key: cost for key, cost in zip(every, answers, strict=True) if cost is not None}
        here: dict[Any, dict[int, OpCost]] = {}
        for p in members:
            model = p.lowered.cost
            costs = p.costs = here.setdefault(p.lowered.network_key, known.copy())
            plain = CostModel(model.hardware, model.network, model.efficiency)
            for op in p.ops:
                if id(op) not in costs:
                    costs[id(op)] = plain.cost(op)
                elif op.kind is OpKind.GROUPED_GEMM and model.calibration is not None and model.is_apart(op):
                    costs[id(op)] = model.apart(op)


def _joined(parts: Sequence[PassTimes]) -> PassTimes:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(_columns(p) for p in parts), strict=True)
    return _built([np.concatenate(c) for c in columns], weakest(*(p.origin for p in parts)))


def _timed_together(members: Sequence[tuple[Any, _Priced]]) -> dict[Any, PassTimes]:
    """Sums of programs of equally many rows, without overlap: one table of distinct operators, one sum over its rows."""
    n = members[0][1].lowered.n
    table: list[Any] = []
    origins: list[int] = []
    places: dict[int, dict[int, int]] = {}
    rows: list[int] = []
    repeats: list[float] = []
    starts: list[int] = []
    for _, p in members:
        starts.append(len(rows))
        place = places.setdefault(id(p.costs), {})
        for op in p.ops:
            if id(op) not in place:
                cost = p.costs[id(op)]
                place[id(op)] = len(table)
                table.append((_scalars if n == 1 else _parts)(cost, op, n))
                origins.append(_RANKS[cost.origin])
        rows += [place[id(op)] for op in p.ops]
        repeats += p.repeats
    parts = _scalar_parts(np.asarray(table)) if n == 1 else np.asarray(table)
    each = parts[rows] * np.asarray(repeats)[:, None, None]
    summed = np.add.reduceat(each, starts, axis=0)
    worst = np.maximum.reduceat(np.asarray(origins)[rows], starts).tolist()
    found = {}
    for i, (key, p) in enumerate(members):
        imbalance = np.array(np.broadcast_to(p.lowered.imbalance, (n,)), dtype=float)
        found[key] = _built([*summed[i], imbalance], _ORIGINS[worst[i]])
    return found


def _scalars(cost: OpCost, op: Op, n: int) -> tuple[float, ...]:
    """What `_scalar_parts` needs of an operator of one row."""
    if not isinstance(cost.time_s, float):
        time, comm, power, error_s, measured, outside, links, launched = (float(x[0]) for x in _parts(cost, op, n))
        error = error_s / time if time else 0.0
        return time, 0.0, 0.0, 0.0, 0.0, error, comm, measured, power, outside, links, launched
    parts: Any = (cost.time_s, cost.compute_s, cost.memory_s, cost.link_s, cost.latency_s)
    is_known = cost.error_frac is not None
    error_frac: Any = cost.error_frac if is_known else ASSUMED_ERROR_FRAC
    return (
        *parts, error_frac, cost.time_s if op.kind in _COMM else 0.0, cost.time_s if is_known else 0.0, -1.0,
        cost.time_s if cost.is_extrapolated else 0.0, cost.time_s * error_frac if op.kind in EXCHANGES else 0.0,
        0.0 if op.kind is OpKind.SEND else n_launches(op),
    )  # fmt: skip


def _scalar_parts(table: Floats) -> Floats:
    """`_parts` of many operators of one row at once, [operators, 8, 1]; a power of -1 is still to be found."""
    time, error, comm, measured, power, outside, links, launched = (table[:, i] for i in (0, 5, 6, 7, 8, 9, 10, 11))
    by_bound = time * np.asarray(_WEIGHTS)[table[:, 1:5].argmax(axis=1)]
    power = np.where(power < 0.0, by_bound, power)
    return np.stack([time, comm, power, time * error, measured, outside, links, launched], axis=1)[:, :, None]


def _parts(cost: OpCost, op: Op, n: int) -> Any:
    """Of one operator run once: time, communication, power, error, measured, outside, exchanges' error, launches, [8, n]."""
    time = rows_of(cost.time_s)
    error = time * (ASSUMED_ERROR_FRAC if cost.error_frac is None else rows_of(cost.error_frac))
    parts = (
        time, time if op.kind in _COMM else 0.0, time * _power(cost), error, 0.0 if cost.error_frac is None else time,
        _outside(cost, time), error if op.kind in EXCHANGES else 0.0, 0.0 if op.kind is OpKind.SEND else n_launches(op),
    )  # fmt: skip
    rows = np.empty((len(parts), n))
    for row, part in zip(rows, parts, strict=True):
        row[:] = part
    return rows


def _outside(cost: OpCost, time: Any) -> Any:
    """Time outside the domain of the calibration."""
    return time * (float(cost.is_extrapolated) if cost.outside is None else rows_of(cost.outside))


def _timed(p: _Priced) -> PassTimes:
    """Sums of one program, with what runs beside communication left out."""
    program, coming = p.lowered.program, iter([p.costs[id(op)] for op in p.ops])
    sums = _Sums(p.lowered.n)
    for segment in program.segments:
        repeat = float(segment.n_repeat)
        if not program.overlap:
            # ranks beside the fullest are not in it, so that barriers change nothing
            for op in segment.ops:
                cost = next(coming)
                sums.add(op, cost, rows_of(cost.time_s) * repeat, repeat)
            continue
        for group in barrier_groups(segment.ops, program.n_ranks):
            own = [next(coming) for _ in group]
            times = [rows_of(cost.time_s) for cost in own]
            for op, cost, time, hidden in zip(group, own, times, _hidden(group, times), strict=True):
                sums.add(op, cost, (time - hidden) * repeat, repeat)
    for op, cost in zip(program.stage_sends, coming, strict=False):
        sums.add(op, cost, rows_of(cost.time_s) * float(p.lowered.pp_size - 1), 0.0)
    return sums.result(p.lowered.imbalance)


class _Sums:
    """Running sums over the operators of a pass."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.time: Any = 0.0
        self.comm: Any = 0.0
        self.power: Any = 0.0
        self.error: Any = 0.0
        self.measured: Any = 0.0
        self.outside: Any = 0.0
        self.links: Any = 0.0
        self.launched = 0.0
        self.origins: set[Origin] = set()

    def add(self, op: Op, cost: OpCost, time: Any, repeat: float) -> None:
        """Count an operator's time over all its layers."""
        self.time = self.time + time
        self.power = self.power + time * _power(cost)
        if op.kind in _COMM:
            self.comm = self.comm + time
        error = time * (ASSUMED_ERROR_FRAC if cost.error_frac is None else rows_of(cost.error_frac))
        self.error = self.error + error
        if cost.error_frac is not None:
            self.measured = self.measured + time
        self.outside = self.outside + _outside(cost, time)
        if op.kind in EXCHANGES:
            self.links = self.links + error
        self.launched += 0.0 if op.kind is OpKind.SEND else n_launches(op) * repeat
        self.origins.add(cost.origin)

    def result(self, imbalance: Any) -> PassTimes:
        """The sums as arrays of all rows."""
        parts = (
            self.time, self.comm, self.power, self.error, self.measured, self.outside, self.links, self.launched, imbalance,
        )  # fmt: skip
        columns = [np.array(np.broadcast_to(x, (self.n,)), dtype=float) for x in parts]
        return _built(columns, weakest(*self.origins))


def rows_of(x: Any) -> Any:
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
