"""A pass in detail: operators, what imbalance, contention and overlap cost, expert loads, and the paths of a few tokens."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import StepEstimate, estimate
from moesim.lowering import Pass
from moesim.sim import FlowResult
from moesim.specs.dtypes import Dtype
from moesim.specs.scenario import Engine
from moesim.specs.workload import WorkloadSpec
from moesim.study.host import with_host
from moesim.study.instance import Instance, PassTime
from moesim.study.ranks import home_ranks, rank_detail
from moesim.study.results import ExpertLoad, GapSplit, OperatorRow, PathSample, PhaseDetail
from moesim.timeline import Timeline

__all__ = ["expert_load", "path_sample", "phase_detail"]


def phase_detail(
    instance: Instance, workload: WorkloadSpec, concurrency: int, step: Pass, engine: Engine, rng: np.random.Generator,
    *, by_rank: bool = False,
) -> tuple[PhaseDetail, Timeline | None]:  # fmt: skip
    """One pass of an instance, explained; with the timeline where it was simulated, and rank by rank if asked for."""
    timeline, gap, ranks = None, None, None
    if engine is Engine.FLOW:
        gap, result, flow = _gap(instance, step, rng)
        device, timeline = PassTime(gap.simulated_s, result, flow), flow.timeline
        if by_rank and timeline.n_ranks > 1:
            ranks = rank_detail(flow, len(instance.model.layers))
    else:
        device = instance.analytic(step)
    passing = with_host(instance, step, device)
    result, time_s = passing.estimate, passing.time_s
    mfu, mbu = _utilisation(instance, result, time_s)
    detail = PhaseDetail(
        phase=step.phase.value, concurrency=concurrency, n_tokens=float(step.n_tokens), context=float(step.kv_len),
        time_s=time_s, imbalance_s=result.imbalance_s, exposed_comm_s=passing.exposed_comm_s,
        hidden_comm_s=passing.hidden_comm_s, slower_wait_s=passing.slower_wait_s, mfu=mfu, mbu=mbu, operators=_rows(result),
        gap=gap, ranks=ranks,
    )  # fmt: skip
    return detail, timeline


def _gap(instance: Instance, step: Pass, rng: np.random.Generator) -> tuple[GapSplit, StepEstimate, FlowResult]:
    """From the balanced closed form to the simulation: each step changes one thing, so the parts add up."""
    balanced = instance.balanced()
    balanced_s = estimate(balanced.program(step, overlap=False), balanced.cost).time_s
    counts = instance.draw(step, rng)
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
    return gap, estimate(program, instance.cost), final


def _rows(result: StepEstimate) -> tuple[OperatorRow, ...]:
    return tuple(
        OperatorRow(
            name=line.name, group=line.group, segment=line.segment, n_repeat=line.n_repeat, time_s=line.time_s,
            hidden_s=line.hidden_s, bound=line.bound.value, flops=line.flops, moved_bytes=line.moved_bytes,
            origin=line.origin, error_frac=line.error_frac, is_extrapolated=line.is_extrapolated,
        )
        for line in result.lines
    )  # fmt: skip


def _utilisation(instance: Instance, result: StepEstimate, time_s: float) -> tuple[float, float]:
    """Flops and bytes of the slowest rank over what its device could do in the time, at bf16 (or the experts') peak."""
    device = instance.hardware.device
    rate = max(device.peak_flop_per_s.rate(d) for d in (Dtype.BF16, instance.model.storage.expert_activation))
    compute = [line for line in result.lines if line.group != "communication"]
    n_stages = instance.parallel.pp_size
    mfu = sum(line.flops for line in compute) / (rate * time_s * n_stages)
    mbu = sum(line.moved_bytes for line in compute) / (device.memory_bytes_per_s * time_s * n_stages)
    return mfu, mbu


def expert_load(instance: Instance, step: Pass, rng: np.random.Generator) -> ExpertLoad | None:
    """Tokens per expert and expert rank in each MoE layer of one pass."""
    counts = instance.draw(step, rng)
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


def path_sample(instance: Instance, rng: np.random.Generator, n_tokens: int = 4) -> PathSample | None:
    """The experts, and their ranks, of a few tokens in every MoE layer (of the model's first kind of MoE block)."""
    if instance.routed is None:
        return None
    key, router = next(iter(instance.routed.routers.items()))
    chosen = router.sample_tokens(n_tokens, rng)
    placement = instance.routed.placements[key]
    home = _home_ranks(placement.slots, placement.slots_per_rank, placement.n_experts)
    layers = instance.routed.layers[key]
    ranks = home[np.minimum(np.arange(len(layers)), len(home) - 1)[None, :, None], chosen]
    n_paths = len(layers) * math.log10(math.comb(key[0], key[1]))
    return PathSample(
        layers=layers,
        experts=tuple(tuple(tuple(int(e) for e in layer) for layer in token) for token in chosen),
        ranks=tuple(tuple(tuple(int(r) for r in layer) for layer in token) for token in ranks),
        n_possible_paths_log10=n_paths,
        home_ranks=home_ranks(instance, n_tokens),
        n_devices_per_expert=instance.parallel.etp_size,
    )


def _home_ranks(slots: NDArray[np.int64], slots_per_rank: int, n_experts: int) -> NDArray[np.int64]:
    """The rank of each expert's first slot, [L or 1, E]."""
    home = np.zeros((len(slots), n_experts), dtype=np.int64)
    for row, layer in enumerate(slots):
        for slot in range(len(layer) - 1, -1, -1):
            home[row, layer[slot]] = slot // slots_per_rank
    return home


def _max_over_mean(values: NDArray[np.int64] | NDArray[np.float64]) -> float:
    mean = float(values.mean())
    return float(values.max()) / mean if mean > 0 else 1.0
