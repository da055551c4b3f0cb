"""A pass in detail: operators, what imbalance, contention and overlap cost, expert loads, and the paths of a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import OpLine, StepEstimate, estimate
from moesim.lowering import Pass
from moesim.lowering.route import Counts
from moesim.ops import Program
from moesim.sim import FlowResult
from moesim.specs.hardware import PeakFlops
from moesim.specs.scenario import Engine
from moesim.specs.workload import WorkloadSpec
from moesim.study.host import with_host
from moesim.study.instance import Instance, PassTime
from moesim.study.ports import port_use
from moesim.study.ranks import rank_detail, shown_ranks
from moesim.study.results import ExpertLoad, GapSplit, OperatorRow, PathSample, PhaseDetail, RankDetail
from moesim.study.tokens import path_sample, token_flows
from moesim.timeline import Timeline

__all__ = ["Explained", "expert_load", "phase_detail"]


@dataclass(frozen=True, slots=True)
class Explained:
    """A pass in detail; where it was simulated, its draw, and if asked for rank by rank a few tokens and a timeline."""

    detail: PhaseDetail
    timeline: Timeline | None = None
    counts: Counts | None = None
    paths: PathSample | None = None


def phase_detail(
    instance: Instance, workload: WorkloadSpec, concurrency: int, step: Pass, engine: Engine, rng: np.random.Generator,
    *, by_rank: bool = False,
) -> Explained:  # fmt: skip
    """One pass of an instance, explained; rank by rank, with the ways of a few of its tokens, if asked for."""
    gap, counts, seen = None, None, _Seen()
    if engine is Engine.FLOW:
        counts = instance.draw(step, rng)
        gap, result, program, flow = _gap(instance, step, counts)
        device = PassTime(gap.simulated_s, result, flow)
        if by_rank:
            seen = _by_rank(instance, flow, program, counts, rng)
    else:
        device = instance.analytic(step)
    passing = with_host(instance, step, device)
    result, time_s = passing.estimate, passing.time_s
    mfu, mbu = _utilisation(instance, result, time_s)
    detail = PhaseDetail(
        phase=step.phase.value, concurrency=concurrency, n_tokens=float(step.n_tokens), context=float(step.kv_len),
        time_s=time_s, imbalance_s=result.imbalance_s, exposed_comm_s=passing.exposed_comm_s,
        hidden_comm_s=passing.hidden_comm_s, slower_wait_s=passing.slower_wait_s, mfu=mfu, mbu=mbu,
        operators=_rows(result, instance.hardware.device.peak_flop_per_s), gap=gap, ranks=seen.ranks,
    )  # fmt: skip
    return Explained(detail, seen.timeline, counts, seen.paths)


@dataclass(frozen=True, slots=True)
class _Seen:
    ranks: RankDetail | None = None
    timeline: Timeline | None = None
    paths: PathSample | None = None


def _by_rank(
    instance: Instance, flow: FlowResult, program: Program, counts: Counts | None, rng: np.random.Generator
) -> _Seen:
    """Waits and ports of all ranks, spans of some, and tokens of this very pass."""
    paths = path_sample(instance, rng, counts=counts)
    shown = shown_ranks(flow, paths)
    timeline = flow.ledger.timeline(shown)
    if paths is not None:
        spread = paths.n_devices_per_expert
        ranks = [[[rank * spread for rank in layer] for layer in token] for token in paths.ranks]
        timeline.hops = token_flows(timeline, paths.home_ranks, paths.layers, ranks, paths.batches)
    if flow.n_ranks == 1:
        return _Seen(None, timeline, paths)
    ports = port_use(program, instance.hardware, flow.time_s)
    some = shown if len(shown) < flow.n_ranks else ()
    return _Seen(rank_detail(flow, len(instance.model.layers), ports, some), timeline, paths)


def _gap(instance: Instance, step: Pass, counts: Counts | None) -> tuple[GapSplit, StepEstimate, Program, FlowResult]:
    """From the balanced closed form to the simulation: each step changes one thing, so the parts add up."""
    balanced = instance.balanced()
    balanced_s = estimate(balanced.program(step, overlap=False), balanced.cost).time_s
    program, final = instance.simulated(step, counts)
    plain, alone = program, final
    if instance.overlap:
        plain, alone = instance.simulated(step, counts, overlap=False, record=False)
    drawn_s, plain_s = estimate(plain, instance.cost).time_s, alone.time_s
    gap = GapSplit(
        balanced_s=balanced_s, imbalance_s=drawn_s - balanced_s, contention_s=plain_s - drawn_s,
        overlap_s=final.time_s - plain_s, simulated_s=final.time_s,
        waits_s={cause.value: seconds for cause, seconds in final.waits_s.items()}, n_holds=final.n_holds,
    )  # fmt: skip
    return gap, estimate(program, instance.cost), program, final


def _rows(result: StepEstimate, peaks: PeakFlops) -> tuple[OperatorRow, ...]:
    """Operators of the breakdown; those of two micro-batches together."""
    lines: dict[tuple[str, str], list[OpLine]] = {}
    for line in result.lines:
        lines.setdefault((line.segment, line.name), []).append(line)
    return tuple(_operator(same, peaks) for same in lines.values())


def _operator(lines: Sequence[OpLine], peaks: PeakFlops) -> OperatorRow:
    first = max(lines, key=lambda line: line.time_s)
    return OperatorRow(
        name=first.name, group=first.group, segment=first.segment, n_repeat=max(line.n_repeat for line in lines),
        time_s=sum(line.time_s for line in lines), hidden_s=sum(line.hidden_s for line in lines), bound=first.bound.value,
        flops=sum(line.flops for line in lines), moved_bytes=sum(line.moved_bytes for line in lines), origin=first.origin,
        error_frac=first.error_frac, is_extrapolated=any(line.is_extrapolated for line in lines),
        arithmetic=peaks.arithmetic_for(first.dtype),
    )  # fmt: skip


def _utilisation(instance: Instance, result: StepEstimate, time_s: float) -> tuple[float, float]:
    """Share of the time that the slowest rank needs at its device's peaks: each operator's arithmetic, and the bandwidth."""
    device = instance.hardware.device
    compute = [line for line in result.lines if line.group != "communication"]
    n_stages = instance.parallel.pp_size
    mfu = sum(line.flops / device.peak_flop_per_s.rate(line.dtype) for line in compute) / (time_s * n_stages)
    mbu = sum(line.moved_bytes for line in compute) / (device.memory_bytes_per_s * time_s * n_stages)
    return mfu, mbu


def expert_load(
    instance: Instance, step: Pass, rng: np.random.Generator, counts: Counts | None = None
) -> ExpertLoad | None:
    """Tokens per expert and expert rank in each MoE layer of one pass: of `counts`, else of a draw of its own."""
    counts = instance.draw(step, rng) if counts is None else counts
    if counts is None or instance.routed is None:
        return None
    rows: list[tuple[int, NDArray[np.int64], NDArray[np.float64]]] = []
    source = ""
    for key, drawn in counts.items():
        per_expert = drawn.sum(axis=1)
        per_rank = instance.routed.placements[key].rank_loads(per_expert)
        rows += [(layer, per_expert[i], per_rank[i]) for i, layer in enumerate(instance.routed.layers[key])]
        source = instance.routed.routers[key].source
    rows.sort(key=lambda row: row[0])
    return ExpertLoad(
        layers=tuple(layer for layer, _, _ in rows),
        counts=tuple(tuple(int(n) for n in experts) for _, experts, _ in rows),
        rank_counts=tuple(tuple(float(n) for n in ranks) for _, _, ranks in rows),
        expert_imbalance_ratio=tuple(_max_over_mean(experts) for _, experts, _ in rows),
        rank_imbalance_ratio=tuple(_max_over_mean(ranks) for _, _, ranks in rows),
        experts_hit=tuple(float((experts > 0).sum()) for _, experts, _ in rows),
        source=source,
    )


def _max_over_mean(values: NDArray[np.int64] | NDArray[np.float64]) -> float:
    mean = float(values.mean())
    return float(values.max()) / mean if mean > 0 else 1.0
