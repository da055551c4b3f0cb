"""Closed-form time of a pass: operators in sequence, ranks in parallel, a barrier wherever ranks exchange data.

Between two barriers the slowest rank counts. What the closed form leaves out, and the `sim.flow` engine has, is contention
for ports; both take every duration from the same `CostModel`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost import Bound, CostModel, OpCost
from moesim.cost.exchange import lent_ratio
from moesim.cost.exchange_kernels import kernels_s
from moesim.ops import COLLECTIVES, EXCHANGES, Num, Op, OpKind, Program, Segment
from moesim.specs.base import Origin, weakest
from moesim.specs.dtypes import Dtype

__all__ = ["OpLine", "StepEstimate", "barrier_groups", "estimate", "step_time"]

#: Half-width of the interval of an operator that only assumed efficiencies stand behind, beside measured ones. Assumption.
ASSUMED_ERROR_FRAC = 0.5


@dataclass(frozen=True, slots=True)
class OpLine:
    """One row of the breakdown: an operator of a segment, over all its layers, on the rank that everyone waits for."""

    name: str
    group: str
    segment: str
    kind: OpKind
    n_repeat: int
    time_s: float
    hidden_s: float
    bound: Bound
    flops: float
    moved_bytes: float
    origin: Origin
    error_frac: float | None
    is_extrapolated: bool
    dtype: Dtype = Dtype.BF16


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Time of one pass and where it goes.

    `time_s` is the latency of the pass through all pipeline stages. `imbalance_s` is what it would gain if every rank had the
    mean load; `exposed_comm_s` is communication with no compute over it. `error_frac` is the half-width of the 90% interval
    over the time, with the operators' errors taken as fully correlated; None where most of the time was never measured.
    """

    time_s: float
    lines: tuple[OpLine, ...]
    imbalance_s: float
    exposed_comm_s: float
    hidden_comm_s: float
    origin: Origin
    error_frac: float | None
    extrapolated_frac: float

    def busy_s(self) -> dict[Bound, float]:
        """Time by bound, for the energy estimate."""
        busy: dict[Bound, float] = {}
        for line in self.lines:
            busy[line.bound] = busy.get(line.bound, 0.0) + line.time_s
        return busy

    def by_group(self) -> dict[str, float]:
        """Time by group of operators, in order of the pass."""
        groups: dict[str, float] = {}
        for line in self.lines:
            groups[line.group] = groups.get(line.group, 0.0) + line.time_s
        return groups


def barrier_groups(ops: Iterable[Op], n_ranks: int) -> list[list[Op]]:
    """Operators split after each one at which ranks meet: exchanges and collectives of more than one rank."""
    groups: list[list[Op]] = [[]]
    for op in ops:
        groups[-1].append(op)
        if n_ranks > 1 and (op.kind in EXCHANGES or op.kind in COLLECTIVES):
            groups.append([])
    return [group for group in groups if group]


def step_time(program: Program, model: CostModel) -> Num:
    """Only the time of the pass; for grids of points, an array over their leading axes."""
    if program.micro_batches:
        return estimate(program, model).time_s
    total: Num = 0.0
    priced = iter(model.costs([op for _, op in program.ops()]))
    for segment in program.segments:
        for group in barrier_groups(segment.ops, program.n_ranks):
            costs = [(op, next(priced).time_s) for op in group]
            times = [time - hidden for (_, time), hidden in zip(costs, _hidden(costs, program), strict=True)]
            total = total + _over_layers(_add(times), segment.n_repeat)
    sends = sum(_scalar(model.cost(op).time_s) for op in program.stage_sends)
    return total + sends * (program.pp_size - 1)


def estimate(program: Program, model: CostModel) -> StepEstimate:
    """Time of the pass with its breakdown."""
    if program.micro_batches:
        return _interleaved(program, model)
    lines: list[OpLine] = []
    imbalance_s = 0.0
    priced = iter(model.costs([op for _, op in program.ops()]))
    for segment in program.segments:
        for group in barrier_groups(segment.ops, program.n_ranks):
            group_lines, lost = _group_lines(segment, group, program, [next(priced) for _ in group])
            lines += group_lines
            imbalance_s += lost
    for op in program.stage_sends:
        cost = model.cost(op)
        lines.append(_line(op, Segment("pipeline", (op,)), cost, _scalar(cost.time_s) * (program.pp_size - 1), 0.0))
    comm_s = sum(line.time_s for line in lines if _is_comm(line))
    hidden_s = sum(line.hidden_s for line in lines)
    return _closed(lines, imbalance_s, comm_s - hidden_s, hidden_s)


def _is_comm(line: OpLine) -> bool:
    return line.kind in COLLECTIVES or line.kind in EXCHANGES


def _closed(lines: Sequence[OpLine], imbalance_s: float, exposed_s: float, hidden_s: float) -> StepEstimate:
    time_s = sum(line.time_s for line in lines)
    return StepEstimate(
        time_s=time_s,
        lines=tuple(lines),
        imbalance_s=imbalance_s,
        exposed_comm_s=exposed_s,
        hidden_comm_s=hidden_s,
        origin=weakest(*(line.origin for line in lines)) if lines else Origin.ASSUMPTION,
        error_frac=_error(lines, time_s),
        extrapolated_frac=sum(line.time_s for line in lines if line.is_extrapolated) / time_s if time_s > 0 else 0.0,
    )


def _interleaved(program: Program, model: CostModel) -> StepEstimate:
    """Micro-batches side by side: in each kind of layer max(sum of computes C, sum of communications M, rhythm of two batches).

    The rhythm is the time per layer once both batches run in turn on one engine, each waiting for its own communication
    (`_rhythm_s`). Where kernels of an exchange take compute units, compute slows by what they take (`lent_ratio`); where they
    take the engine at both ends of an exchange, that is compute, and the exchange is shorter by it (`kernels_s`). Assumes:
    between two exchanges the slowest rank counts; ports are shared without loss; filling and draining left out.
    """
    outside = tuple(s for s in program.segments if not s.layers)
    plain = estimate(replace(program, segments=outside, micro_batches=()), model)
    lines, imbalance_s, exposed_s, hidden_s = list(plain.lines), plain.imbalance_s, plain.exposed_comm_s, 0.0
    names = dict.fromkeys(s.name for part in program.micro_batches for s in part.segments if s.layers)
    for name in names:
        compute: list[OpLine] = []
        comm: list[OpLine] = []
        ways: list[list[_Leg]] = []
        for part in program.micro_batches:
            segments = tuple(s for s in part.segments if s.name == name and s.layers)
            inner = estimate(replace(part, segments=segments, overlap=False, stage_sends=()), model)
            ratio = max(lent_ratio(s.ops, model.network, model.hardware.device) for s in segments) if segments else 1.0
            own = [line if _is_comm(line) else replace(line, time_s=line.time_s * ratio) for line in inner.lines]
            own = _with_kernels(own, segments, model)
            compute += [line for line in own if not _is_comm(line)]
            comm += [line for line in own if _is_comm(line)]
            beside = {op.name for s in segments for op in s.ops if op.hidden_under is not None and part.overlap}
            ways.append(_legs(own, beside, max((s.n_repeat for s in segments), default=1)))
            imbalance_s += inner.imbalance_s
        compute_s, comm_s = sum(line.time_s for line in compute), sum(line.time_s for line in comm)
        n_layers = max((line.n_repeat for line in (*compute, *comm)), default=1)
        shown = max(compute_s, comm_s, _rhythm_s(ways) * n_layers) - compute_s
        share = shown / comm_s if comm_s > 0 else 0.0
        lines += compute
        lines += [replace(x, time_s=x.time_s * share, hidden_s=x.time_s * (1.0 - share)) for x in comm]
        exposed_s, hidden_s = exposed_s + shown, hidden_s + comm_s - shown
    return _closed(lines, imbalance_s, exposed_s, hidden_s)


def _with_kernels(lines: Sequence[OpLine], segments: Sequence[Segment], model: CostModel) -> list[OpLine]:
    """Lines with a compute before each exchange whose kernels hold the engine: the longest of all ranks, mean over layers."""
    held: dict[str, float] = {}
    for segment in segments:
        for op in (op for op in segment.ops if op.kind in EXCHANGES):
            by_layer = np.atleast_2d(np.asarray(kernels_s(op, model.network), dtype=float)).max(axis=-1)
            held[op.name] = held.get(op.name, 0.0) + float(by_layer.mean()) * segment.n_repeat
    found: list[OpLine] = []
    for line in lines:
        taken_s = min(held.get(line.name, 0.0), line.time_s)
        if taken_s > 0.0:
            found.append(replace(line, name=f"{line.name}_kernels", kind=OpKind.ELEMENTWISE, time_s=taken_s))
        found.append(replace(line, time_s=line.time_s - taken_s) if taken_s > 0.0 else line)
    return found


@dataclass(slots=True)
class _Leg:
    """Of one layer: compute, then communication with compute beside it."""

    compute_s: float = 0.0
    beside_s: float = 0.0
    comm_s: float = 0.0


def _legs(lines: Sequence[OpLine], beside: set[str], n_layers: int) -> list[_Leg]:
    """A layer cut behind each exchange or collective; its last leg has no communication unless it ends with one."""
    legs = [_Leg()]
    waiting_s = 0.0
    for line in lines:
        time_s = line.time_s / n_layers
        if _is_comm(line):
            legs[-1].comm_s, legs[-1].beside_s, waiting_s = time_s, waiting_s, 0.0
            legs.append(_Leg())
        elif line.name in beside:
            waiting_s += time_s
        else:
            legs[-1].compute_s += time_s
    legs[-1].compute_s += waiting_s
    return legs


def _rhythm_s(ways: Sequence[Sequence[_Leg]], n_first: int = 6, n_more: int = 12) -> float:
    """Time per layer of batches that take turns on an engine, first come first served, after the first `n_first` layers.

    Consecutive computes are one job; work beside communication comes to the engine when that begins.
    """
    rests = [[*legs] * (n_first + n_more) for legs in ways]
    at_end = [{(len(legs)) * n_first: 0, len(legs) * (n_first + n_more): 1} for legs in ways]
    times = [[0.0, 0.0] for _ in ways]
    # (arrival, batch, next leg, work beside a communication or 0)
    queue: list[tuple[float, int, int, float]] = [(0.0, i, 0, 0.0) for i in range(len(ways))]
    free_s = 0.0
    while queue:
        at, i, k, beside_s = heapq.heappop(queue)
        if beside_s > 0.0:
            free_s = max(at, free_s) + beside_s
            continue
        work_s = 0.0
        while k < len(rests[i]):
            leg, k = rests[i][k], k + 1
            work_s += leg.compute_s
            if leg.comm_s > 0.0 or k in at_end[i]:
                break
        if work_s > 0.0:
            at = free_s = max(at, free_s) + work_s
        if leg.beside_s > 0.0:
            heapq.heappush(queue, (at, i, k, leg.beside_s))
        at += leg.comm_s
        if k in at_end[i]:
            times[i][at_end[i][k]] = at
        if k < len(rests[i]):
            heapq.heappush(queue, (at, i, k, 0.0))
    return max((last - first) / n_more for first, last in times)


def _group_lines(
    segment: Segment, group: Sequence[Op], program: Program, costs: Sequence[OpCost]
) -> tuple[list[OpLine], float]:
    pairs = [(op, cost.time_s) for op, cost in zip(group, costs, strict=True)]
    hidden = _hidden(pairs, program)
    if all(isinstance(time, float) for _, time in pairs):
        n = segment.n_repeat
        if not program.overlap:
            return [_line(op, segment, cost, cost.time_s * n, 0.0) for op, cost in zip(group, costs, strict=True)], 0.0  # type: ignore[arg-type]
        lines = [
            _line(op, segment, cost, (_scalar(cost.time_s) - _scalar(h)) * n, _scalar(h) * n)
            for op, cost, h in zip(group, costs, hidden, strict=True)
        ]
        return lines, 0.0
    total = np.atleast_2d(_add([time - h for (_, time), h in zip(pairs, hidden, strict=True)]))
    slowest = total.argmax(axis=-1)
    scale = segment.n_repeat / total.shape[0]
    lines = []
    for op, cost, h in zip(group, costs, hidden, strict=True):
        time = _at(cost.time_s, slowest, total.shape) * scale
        hid = _at(h, slowest, total.shape) * scale
        lines.append(_line(op, segment, cost, time - hid, hid, slowest, total.shape))
    lost = float((total.max(axis=-1) - total.mean(axis=-1)).sum()) * scale
    return lines, lost


def _line(
    op: Op, segment: Segment, cost: OpCost, time_s: float, hidden_s: float,
    slowest: NDArray[np.intp] | None = None, shape: tuple[int, ...] = (),
) -> OpLine:  # fmt: skip
    n = segment.n_repeat
    if slowest is None:
        flops, moved = _scalar(op.work.flops) * n, _scalar(op.work.moved_bytes) * n
    else:
        flops, moved = (_at(x, slowest, shape) * n / shape[0] for x in (op.work.flops, op.work.moved_bytes))
    # by position: a report asks for hundreds of these, and keywords cost a third of the time
    return OpLine(
        op.name, op.group, segment.name, op.kind, n, time_s, hidden_s, cost.bound, flops, moved, cost.origin,
        _mean(cost.error_frac), cost.is_extrapolated, op.dtype,
    )  # fmt: skip


def _hidden(costs: Sequence[tuple[Op, Num]], program: Program) -> list[Num]:
    """Per operator, how much of it runs beside the operator it may hide under."""
    left: dict[str, Num] = {op.name: time for op, time in costs} if program.overlap else {}
    hidden: list[Num] = []
    for op, time in costs:
        room = left.get(op.hidden_under) if op.hidden_under is not None else None
        if room is None:
            hidden.append(0.0)
            continue
        covered = np.minimum(room, time)
        left[str(op.hidden_under)] = room - covered
        hidden.append(covered)
    return hidden


def _add(times: Sequence[Num]) -> Num:
    total: Num = 0.0
    for time in times:
        total = total + time
    return total


def _over_layers(time: Num, n_repeat: int) -> Num:
    """Slowest rank of each layer, summed over the layers; scalars stand for every layer and rank."""
    if isinstance(time, float | int):
        return float(time) * n_repeat
    if time.ndim < 2:
        return time * n_repeat
    slowest = time.max(axis=-1)
    return np.asarray(slowest.sum(axis=-1) * (n_repeat / time.shape[-2]))


def _at(x: Num, slowest: NDArray[np.intp], shape: tuple[int, ...]) -> float:
    full = np.broadcast_to(x, shape)
    return float(np.take_along_axis(full, slowest[..., None], axis=-1).sum())


def _mean(x: Num | None) -> float | None:
    return x if x is None or isinstance(x, float) else float(np.mean(x))


def _scalar(x: Num) -> float:
    return float(x) if isinstance(x, float | int) else float(np.max(x))


def _error(lines: Sequence[OpLine], time_s: float) -> float | None:
    """Errors of the operators, weighted by time; operators that nothing measured count with `ASSUMED_ERROR_FRAC`.

    None ("assumption only") where measurements stand behind less than half of the time.
    """
    measured_s = sum(line.time_s for line in lines if line.error_frac is not None)
    if time_s <= 0 or measured_s < 0.5 * time_s:
        return None
    each = (line.time_s * (ASSUMED_ERROR_FRAC if line.error_frac is None else line.error_frac) for line in lines)
    return sum(each) / time_s
