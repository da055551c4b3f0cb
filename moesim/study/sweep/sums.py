"""Sums over the operators of a pass for all its rows, alone or side by side with programs of as many rows.

Rows are passes; an operator's numbers may be one for all rows of its program or one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import ASSUMED_ERROR_FRAC, barrier_groups
from moesim.cost import CostModel, OpCost
from moesim.cost.energy import DYNAMIC_FRAC
from moesim.cost.result import Bound
from moesim.cost.stack import n_launches
from moesim.ops import COLLECTIVES, EXCHANGES, Op, OpKind, Program
from moesim.specs.base import Origin, weakest
from moesim.study.sweep.pass_times import PassTimes, built

__all__ = ["Lowered", "Priced", "rows_of", "timed", "timed_together"]

Floats = NDArray[np.float64]
_WEIGHTS = tuple(DYNAMIC_FRAC[bound] for bound in Bound)
_COMM = COLLECTIVES | EXCHANGES
_ORIGINS = tuple(Origin)
_RANKS = {origin: rank for rank, origin in enumerate(_ORIGINS)}


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


class Priced:
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


def timed_together(members: Sequence[tuple[Any, Priced]]) -> dict[Any, PassTimes]:
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
        found[key] = built([*summed[i], imbalance], _ORIGINS[worst[i]])
    return found


def _scalars(cost: OpCost, op: Op, n: int) -> tuple[float, ...]:
    """What `_scalar_parts` needs of an operator of one row."""
    if not isinstance(cost.time_s, float):
        time, comm, power, error_s, measured, outside, links, attention, launched = (
            float(x[0]) for x in _parts(cost, op, n)
        )
        error = error_s / time if time else 0.0
        return time, 0.0, 0.0, 0.0, 0.0, error, comm, measured, power, outside, links, attention, launched
    parts: Any = (cost.time_s, cost.compute_s, cost.memory_s, cost.link_s, cost.latency_s)
    is_known = cost.error_frac is not None
    error_frac: Any = cost.error_frac if is_known else ASSUMED_ERROR_FRAC
    return (
        *parts, error_frac, cost.time_s if op.kind in _COMM else 0.0, cost.time_s if is_known else 0.0, -1.0,
        cost.time_s if cost.is_extrapolated else 0.0, cost.time_s * error_frac if op.kind in EXCHANGES else 0.0,
        cost.time_s if op.kind is OpKind.ATTENTION_DECODE else 0.0, 0.0 if op.kind is OpKind.SEND else n_launches(op),
    )  # fmt: skip


def _scalar_parts(table: Floats) -> Floats:
    """`_parts` of many operators of one row at once, [operators, 9, 1]; a power of -1 is still to be found."""
    time, error, comm, measured, power, *others = (table[:, i] for i in (0, *range(5, table.shape[1])))
    by_bound = time * np.asarray(_WEIGHTS)[table[:, 1:5].argmax(axis=1)]
    power = np.where(power < 0.0, by_bound, power)
    return np.stack([time, comm, power, time * error, measured, *others], axis=1)[:, :, None]


def _parts(cost: OpCost, op: Op, n: int) -> Any:
    """Of one operator run once: time, communication, power, error, measured, outside, exchanges' error, attention, launches."""
    time = rows_of(cost.time_s)
    error = time * (ASSUMED_ERROR_FRAC if cost.error_frac is None else rows_of(cost.error_frac))
    parts = (
        time, time if op.kind in _COMM else 0.0, time * _power(cost), error, 0.0 if cost.error_frac is None else time,
        _outside(cost, time), error if op.kind in EXCHANGES else 0.0,
        time if op.kind is OpKind.ATTENTION_DECODE else 0.0, 0.0 if op.kind is OpKind.SEND else n_launches(op),
    )  # fmt: skip
    rows = np.empty((len(parts), n))
    for row, part in zip(rows, parts, strict=True):
        row[:] = part
    return rows


def _outside(cost: OpCost, time: Any) -> Any:
    """Time outside the domain of the calibration."""
    return time * (float(cost.is_extrapolated) if cost.outside is None else rows_of(cost.outside))


def timed(p: Priced) -> PassTimes:
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
                sums.comm = sums.comm - hidden * repeat  # nothing hides but beside communication
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
        self.attention: Any = 0.0
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
        if op.kind is OpKind.ATTENTION_DECODE:
            self.attention = self.attention + time
        self.launched += 0.0 if op.kind is OpKind.SEND else n_launches(op) * repeat
        self.origins.add(cost.origin)

    def result(self, imbalance: Any) -> PassTimes:
        """The sums as arrays of all rows."""
        parts = (
            self.time, self.comm, self.power, self.error, self.measured, self.outside, self.links, self.attention,
            self.launched, imbalance,
        )  # fmt: skip
        columns = [np.array(np.broadcast_to(x, (self.n,)), dtype=float) for x in parts]
        return built(columns, weakest(*self.origins))


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
