"""One system at one concurrency: latency, throughput, energy and dollars, from prefill and decode passes.

A closed form of continuous batching without queueing for admission (`moesim.study.stepping.mean_round`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.analytic import StepEstimate
from moesim.cost import Energy, pass_energy, usd_per_million_tokens
from moesim.cost.served import stack_of
from moesim.lowering import Pass
from moesim.memory import MemoryReport, Outcome
from moesim.ops import OpKind
from moesim.specs.hardware import DeviceSpec, Hardware
from moesim.specs.model import MoeFfn
from moesim.specs.parallel import DpPrefill, Overlap
from moesim.specs.scenario import Engine
from moesim.specs.workload import WorkloadSpec
from moesim.study.calibrated import basis_of
from moesim.study.chunks import time_of_chunks
from moesim.study.halves import split_pass
from moesim.study.host import wait_s
from moesim.study.instance import Instance, PassTime
from moesim.study.passes import scatter, time_pass
from moesim.study.results import Point
from moesim.study.steady import PromptTimes
from moesim.study.stepping import Stepping, mean_round, waits_of
from moesim.study.uncertainty import Basis, Spread, exposure_of, spreads_of

__all__ = ["System", "attention_in", "measure_point", "memory_report", "with_intervals"]


@dataclass(frozen=True, slots=True)
class System:
    """Instances of one model that fill the hardware; in an ensemble `n_members` models share them, `per_slot` on each."""

    name: str
    instance: Instance
    n_instances: int
    n_members: int = 1
    member_popularity: tuple[float, ...] = (1.0,)
    dp_prefill: DpPrefill | None = None

    @property
    def stepping(self) -> Stepping | None:
        """How attention-DP ranks and pipeline lanes take prompts; None where none wait for each other."""
        parallel = self.instance.parallel
        if self.n_members > 1:
            return None
        n_waiting = parallel.dp_size if self.instance.routed is not None else 1
        return waits_of(self.dp_prefill, self.instance.cost.calibration, n_waiting=n_waiting, parallel=parallel)

    @property
    def members_per_slot(self) -> int:
        """Whole models that each instance slot holds in memory."""
        return math.ceil(self.n_members / self.n_instances)

    def hosted(self) -> list[list[float]]:
        """Request shares of the members on each slot; where slots outnumber members, copies split a member's requests."""
        if self.n_members == 1:
            return [[1.0 / self.n_instances]] * self.n_instances
        slots: list[list[float]] = [[] for _ in range(self.n_instances)]
        n_placed = max(self.n_members, self.n_instances)
        n_copies = [len(range(m, n_placed, self.n_members)) for m in range(self.n_members)]
        for i in range(n_placed):
            member = i % self.n_members
            slots[i % self.n_instances].append(self.member_popularity[member] / n_copies[member])
        return slots


@dataclass(frozen=True, slots=True)
class _Decode:
    """A round of decoding on the most loaded slot: its time, the requests in it, and one pass to explain it."""

    time_s: float
    requests: float
    n_active: float
    passing: PassTime
    seeds: float = 0.0


def measure_point(
    system: System,
    hardware: Hardware,
    workload: WorkloadSpec,
    concurrency: int,
    engine: Engine,
    rng: np.random.Generator,
    *,
    explain: bool = True,
) -> Point:
    """Everything `Point` holds, or the outcome that says why there is none."""
    per_slot = concurrency / system.n_instances
    batch = max(1, math.ceil(per_slot))
    memory = slot_memory(system, workload, batch, explain=explain)
    if memory is not None:
        return Point(concurrency=concurrency, outcome=memory[0], reason=memory[1])
    calibration = system.instance.cost.calibration
    decode = _decode_round(system, workload, concurrency, engine, rng)
    prompts, prefill, alone = _prompt_times(system.instance, workload, engine, rng)
    attention_s = attention_in(decode.passing.estimate)
    pp = system.instance.parallel.pp_size
    found = mean_round(
        decode.time_s, attention_s, decode.requests, float(workload.output_tokens), prompts, pp, system.stepping
    )
    client_s = wait_s(stack_of(calibration), found.waited_s, float(workload.input_tokens))
    ttft_s, tpot_s = float(prompts.one_s + client_s + found.queue_s), float(found.tpot_s)
    rate = concurrency / float(found.cycle_s)
    energy = _energy_per_token(system, hardware, decode, prefill, float(found.prefill_s), workload, rate)
    passing, basis = decode.passing.estimate, basis_of(calibration)
    is_wide = system.instance.is_wide
    spreads = spreads_of(
        basis, exposure_of(passing, decode.seeds, is_wide=is_wide), exposure_of(alone.estimate, is_wide=is_wide),
        is_moe=system.instance.model.is_moe,
    )  # fmt: skip
    point = Point(
        concurrency=concurrency, outcome="ok", ttft_s=ttft_s, tpot_s=tpot_s, decode_step_s=decode.time_s,
        output_tokens_per_s=rate, output_tokens_per_s_per_device=rate / hardware.n_devices,
        output_tokens_per_s_per_user=1.0 / tpot_s, energy_j_per_output_token=energy,
        usd_per_million_output_tokens=usd_per_million_tokens(hardware, hardware.n_devices, rate),
        weight_bytes_read_per_step=weight_bytes_read(system, decode.requests, decode.n_active),
        exposed_comm_frac=decode.passing.exposed_comm_s / decode.passing.time_s,
        origin=passing.origin,
    )  # fmt: skip
    return with_intervals(point, spreads, basis)


def with_intervals(point: Point, spreads: Mapping[str, Spread], basis: Basis) -> Point:
    """The point with the 90% intervals of its results."""
    found = {name: spread.interval(getattr(point, name)) for name, spread in spreads.items()}
    known = {name: ends for name, ends in found.items() if ends is not None}
    half = float(spreads["tpot_s"].half_frac)
    update = {
        "intervals": known, "interval_basis": (basis if known else Basis.ASSUMPTION).value,
        "error_frac": None if math.isnan(half) else half,
    }  # fmt: skip
    return point.model_copy(update=update)


def slot_memory(system: System, workload: WorkloadSpec, batch: int, *, explain: bool) -> tuple[str, str] | None:
    """None where the fullest slot fits, else outcome and reason (with the smallest remedy if it is to `explain`)."""
    limit = system.instance.model.max_position_embeddings
    if limit is not None and workload.longest_context > limit:
        return Outcome.CONTEXT_TOO_LONG.value, f"{workload.longest_context} tokens; the model allows {limit}"
    report = memory_report(system, workload, batch, explain=explain)
    return None if report.outcome is Outcome.OK else (report.outcome.value, report.sentence)


def memory_report(system: System, workload: WorkloadSpec, batch: int, *, explain: bool = True) -> MemoryReport:
    """Memory of the fullest slot with `batch` requests, all models that it holds counted."""
    return system.instance.memory(
        batch, workload.longest_context, workload.max_pass_tokens, n_models=system.members_per_slot, explain=explain
    )


def weight_bytes_read(system: System, requests_per_slot: float, n_active: float) -> float:
    """Weight bytes that one decode step of one slot reads from memory, over all its ranks: experts only if hit.

    Each of two micro-batches reads the weights of its own requests.
    """
    instance = system.instance
    parallel = instance.parallel.model_copy(update={"redundant_experts": 0})
    weights = instance.memory(1, 1, 1).memory.weights
    looked_up = 0.0 if instance.model.tie_word_embeddings else weights.embedding
    shared = weights.total - weights.routed_experts - looked_up
    batches = _micro_batches(instance, max(1.0, requests_per_slot))
    total = shared * parallel.n_ranks * len(batches)
    if instance.routed is not None:
        s = instance.model.storage.routed_experts.bytes_per_element
        for (n_experts, top_k), router in instance.routed.routers.items():
            ffn = instance.model.layers[instance.routed.layers[n_experts, top_k][0]].ffn
            if isinstance(ffn, MoeFfn):
                hit = sum(float(router.expected_distinct(batch).sum()) for batch in batches)
                total += hit * ffn.expert_params(instance.model.hidden_size) * s
    return total * max(1.0, n_active)


def _micro_batches(instance: Instance, requests: float) -> tuple[float, ...]:
    """Requests of each part of a decode step that runs as one."""
    if instance.overlap is not Overlap.TWO_BATCH or not instance.has_exchanges:
        return (requests,)
    halves = split_pass(instance.decode_pass(requests, 1.0), instance.parallel.dp_size)
    if halves is None:
        return (requests,)
    whole = sum(float(half.batch) for half in halves)
    return tuple(requests * float(half.batch) / whole for half in halves)


def _decode_round(
    system: System, workload: WorkloadSpec, concurrency: int, engine: Engine, rng: np.random.Generator
) -> _Decode:
    """The slot with the longest round: its members' passes one after another, each with its expected share of requests."""
    worst: _Decode | None = None
    seen: dict[tuple[float, ...], _Decode] = {}
    for shares in system.hosted():
        key = tuple(shares)
        if key not in seen:
            seen[key] = _slot_round(system, workload, concurrency, shares, engine, rng)
        if worst is None or seen[key].time_s > worst.time_s:
            worst = seen[key]
    if worst is None:
        raise ValueError("a system needs an instance")
    return worst


def _slot_round(
    system: System,
    workload: WorkloadSpec,
    concurrency: int,
    shares: list[float],
    engine: Engine,
    rng: np.random.Generator,
) -> _Decode:
    instance, total_s, n_active = system.instance, 0.0, 0.0
    passing: PassTime | None = None
    step: Pass | None = None
    for share in shares:
        active = 1.0 if len(shares) == 1 else 1.0 - (1.0 - share) ** concurrency
        batch = max(1.0, concurrency * share / active)
        step = instance.decode_pass(batch, workload.mean_context)
        passing = time_pass(instance, step, engine, rng)
        total_s += active * passing.time_s
        n_active += active
    if passing is None or step is None:
        raise ValueError("a slot needs a member")
    scale = 1.0 / n_active if n_active < 1.0 else 1.0
    seeds = scatter(instance, step, rng.spawn(1)[0]) if engine is Engine.FLOW else 0.0
    return _Decode(total_s * scale, max(1.0, concurrency * sum(shares)), n_active, passing, seeds)


def _prompt_times(
    instance: Instance, workload: WorkloadSpec, engine: Engine, rng: np.random.Generator
) -> tuple[PromptTimes, PassTime, PassTime]:
    """Seconds of prompts, with the last pass of those that fill passes, and of one with nothing else in its passes."""
    cached, most = workload.cached_prefix_tokens, workload.max_pass_tokens
    new, dp = workload.input_tokens - cached, instance.parallel.dp_size
    per_rank = max(1, most // new)

    def timed(passes: Sequence[Pass]) -> tuple[float, PassTime]:
        return time_of_chunks(passes, lambda step, first: time_pass(instance, step, engine, rng, is_begun=first))

    full_s, full = timed(instance.prefill_passes(new, cached, most, per_rank * dp))
    passes = instance.prefill_passes(new, cached, most)
    one_s, alone = timed(passes)
    return PromptTimes(one_s, full_s, len(passes), per_rank, min(new, most), dp), full, alone


def attention_in(step: StepEstimate) -> float:
    """Seconds of a pass in the kernels of decode attention."""
    return sum(line.time_s for line in step.lines if line.kind is OpKind.ATTENTION_DECODE)


def _energy_per_token(
    system: System,
    hardware: Hardware,
    decode: _Decode,
    prefill: PassTime,
    prefill_s: float,
    workload: WorkloadSpec,
    rate: float,
) -> float | None:
    """Energy of a decode round and its share of prefills on one slot, and idling of the others, per output token."""
    device, n = hardware.device, system.instance.parallel.n_ranks
    step = _scaled_energy(device, n, decode.passing, decode.time_s)
    fill = _scaled_energy(device, n, prefill, prefill_s)
    if step is None or fill is None:
        return None
    out = workload.output_tokens
    per_round = step.dynamic_j + fill.dynamic_j * decode.requests / out
    idle_w = step.idle_j / decode.time_s * hardware.n_devices / n
    return per_round / decode.requests + idle_w / rate


def _scaled_energy(device: DeviceSpec, n: int, passing: PassTime, time_s: float) -> Energy | None:
    scale = time_s / passing.time_s
    busy = {bound: seconds * scale for bound, seconds in passing.estimate.busy_s().items()}
    return pass_energy(device, n, time_s, busy)
