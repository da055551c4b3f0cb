"""One question without a scenario file: what does one pass of one model cost on this hardware?"""

from __future__ import annotations

from typing import Literal

import numpy as np

from moesim.cost import CostModel
from moesim.cost.served import stack_of
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.memory import Outcome
from moesim.ops import Phase
from moesim.specs.base import Frozen, Origin
from moesim.specs.catalog import load_hardware
from moesim.specs.flow import EVEN, FlowSpec
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.scenario import Engine
from moesim.study.calibrated import basis_of, calibration_for
from moesim.study.flow_settings import check_engine
from moesim.study.instance import Instance, PassTime, build_instance
from moesim.study.passes import scatter, time_pass
from moesim.study.uncertainty import Basis, current_bands, exposure_of, spread_of

__all__ = ["EstimateResult", "OperatorCost", "estimate_pass", "hardware_for"]


class OperatorCost(Frozen):
    """An operator of the pass over all its layers; `bytes` cross the memory (or the links) of the rank waited for."""

    name: str
    group: str
    time_s: float
    bound: str
    flops: float
    bytes: float
    origin: Origin


class EstimateResult(Frozen):
    """The answer. `time_s`, `bound` and `operators` are None or empty where the pass does not fit.

    `time_low_s` and `time_high_s` are the 90% interval, None for "assumption only"; `interval_basis` is what stands behind it.
    `reached` says whose time it is: a server's with its host time, or that of the device alone. `exposed_comm_s` and
    `slower_wait_s` are those of docs/results-schema.md.
    """

    model: str
    hardware: str
    parallel: str
    phase: Literal["prefill", "decode"]
    batch: int
    context: int
    engine: str
    outcome: str
    reason: str | None
    remedies: tuple[str, ...]
    time_s: float | None
    time_low_s: float | None
    time_high_s: float | None
    interval_basis: str
    reached: str
    bound: str | None
    tokens_per_s: float | None
    tokens_per_s_low: float | None
    tokens_per_s_high: float | None
    exposed_comm_s: float | None
    slower_wait_s: float | None
    imbalance_s: float | None
    memory_bytes: float
    memory_parts_bytes: dict[str, float]
    capacity_bytes: float
    max_sequences: int
    origin: Origin
    calibration: str
    extrapolated_frac: float
    operators: tuple[OperatorCost, ...]
    model_note: str | None = None


def hardware_for(name: str, n_ranks: int) -> Hardware:
    """The first `n_ranks` devices of a cluster, or that many of a device.

    Raises:
        InputError: the cluster is smaller.
    """
    try:
        return load_hardware(name, n_ranks)
    except InputError as error:
        if error.field == "n_devices":
            error.problem = f"the split needs {n_ranks} devices, {name} does not have them"
        raise


def estimate_pass(
    model: ModelSpec, hardware: str, parallel: ParallelSpec, phase: Phase, *, batch: int, context: int, cached: int = 0,
    routing: RoutingSpec | None = None, engine: Engine = Engine.ANALYTIC, seed: int = 0, calibration: str | None = None,
    overlap: Overlap | bool | str = Overlap.NONE, settings: FlowSpec = EVEN,
) -> EstimateResult:  # fmt: skip
    """Time and memory of one pass.

    Args:
        model: the architecture.
        hardware: cluster or device, by name or file.
        parallel: the split.
        phase: prefill of `context` new tokens over `cached` ones, or one decode step at `context`.
        batch: sequences in the pass.
        context: tokens, see `phase`.
        cached: tokens already in the cache (prefill).
        routing: the router's behaviour; uniform random by default.
        engine: closed form or simulation.
        seed: of the router's draws.
        calibration: name or file; the device's own by default.
        overlap: what runs beside communication.
        settings: stragglers, uneven loads and the like.

    Raises:
        InputError: anything that does not fit together.
    """
    check_engine(settings, engine)
    rng = np.random.default_rng(seed)
    hw = hardware_for(hardware, parallel.n_ranks)
    known = calibration_for(calibration, hw.device.name)
    instance = build_instance(
        model, parallel, hw, routing, cost=CostModel.of(hw, known), overlap=overlap, settings=settings, rng=rng
    )
    if instance.overlap and not instance.has_exchanges:
        raise InputError(
            "has nothing to overlap: no tokens travel between ranks", field="overlap", value=instance.overlap.value,
            hint="leave it out, or spread experts (ep) over attention-DP ranks (dp)",
        )  # fmt: skip
    longest = context + cached
    limit = model.max_position_embeddings
    if limit is not None and longest > limit:
        raise InputError("is more than the model allows", field="context", value=longest, allowed=f"1..{limit}")
    step = (
        instance.decode_pass(batch, context)
        if phase is Phase.DECODE
        else instance.dealt(Pass(phase, instance.padded(batch), float(context), float(cached)))
    )
    n_pass_tokens = float(step.n_tokens) / parallel.dp_size
    memory = instance.memory(batch, longest, n_pass_tokens)
    passing, seeds = None, 0.0
    if memory.outcome is Outcome.OK:
        passing = time_pass(instance, step, engine, rng, is_begun=True)
        seeds = scatter(instance, step, rng) if engine is Engine.FLOW else 0.0
    weights = {
        f"{kind} weights": getattr(memory.memory.weights, kind) for kind in memory.memory.weights.__dataclass_fields__
    }
    parts = {
        **{kind: value for kind, value in weights.items() if value},
        "kv_cache": memory.memory.kv_cache, "activations": memory.memory.activations,
        "comm_buffers": memory.memory.comm_buffers, "runtime_reserve": memory.memory.runtime_reserve,
    }  # fmt: skip
    source = known.name if known else "default efficiencies (assumption)"
    return _result(instance, passing, engine, phase, batch, context, source, seeds=seeds, outcome=memory.outcome.value,
                   reason=None if passing else memory.sentence, remedies=memory.remedies, memory_bytes=memory.memory.total,
                   memory_parts_bytes=parts, capacity_bytes=memory.capacity_bytes,
                   max_sequences=memory.max_sequences)  # fmt: skip


def _result(
    instance: Instance, passing: PassTime | None, engine: Engine, phase: Phase, batch: int, context: int, calibration: str,
    *, seeds: float, outcome: str, reason: str | None, remedies: tuple[str, ...], memory_bytes: float,
    memory_parts_bytes: dict[str, float], capacity_bytes: float, max_sequences: int,
) -> EstimateResult:  # fmt: skip
    e = passing.estimate if passing else None
    time_s = passing.time_s if passing else None
    basis = basis_of(instance.cost.calibration)
    ends = _interval(instance, passing, phase, seeds)
    operators: tuple[OperatorCost, ...] = ()
    if e is not None:
        operators = tuple(
            OperatorCost(
                name=line.name, group=line.group, time_s=line.time_s, bound=line.bound.value, flops=line.flops,
                bytes=line.moved_bytes, origin=line.origin,
            )
            for line in e.lines
        )  # fmt: skip
    busy = e.busy_s() if e else {}
    n_tokens = batch * (context if phase is Phase.PREFILL else 1)
    return EstimateResult(
        model=instance.model.name, model_note=instance.model.note, hardware=instance.hardware.name,
        parallel=instance.parallel.label, phase=phase.value,
        batch=batch, context=context, engine=engine.value, outcome=outcome, reason=reason, remedies=remedies, time_s=time_s,
        time_low_s=ends[0] if ends else None, time_high_s=ends[1] if ends else None,
        interval_basis=(basis if ends else Basis.ASSUMPTION).value, reached=_reached(instance, phase),
        bound=max(busy, key=lambda b: busy[b]).value if busy else None,
        tokens_per_s=n_tokens / time_s if time_s else None, tokens_per_s_low=n_tokens / ends[1] if ends else None,
        tokens_per_s_high=n_tokens / ends[0] if ends else None,
        exposed_comm_s=passing.exposed_comm_s if passing else None, slower_wait_s=passing.slower_wait_s if passing else None,
        imbalance_s=e.imbalance_s if e else None,
        memory_bytes=memory_bytes, memory_parts_bytes=memory_parts_bytes, capacity_bytes=capacity_bytes,
        max_sequences=max_sequences, origin=e.origin if e else Origin.ASSUMPTION, calibration=calibration,
        extrapolated_frac=e.extrapolated_frac if e else 0.0, operators=operators,
    )  # fmt: skip


def _interval(instance: Instance, passing: PassTime | None, phase: Phase, seeds: float) -> tuple[float, float] | None:
    if passing is None:
        return None
    spread = spread_of(
        basis_of(instance.cost.calibration), exposure_of(passing.estimate, seeds, is_wide=instance.is_wide), current_bands(),
        is_moe=instance.model.is_moe, is_ttft=phase is Phase.PREFILL,
    )  # fmt: skip
    return spread.interval(passing.time_s)


def _reached(instance: Instance, phase: Phase) -> str:
    """Whose time the result is."""
    if stack_of(instance.cost.calibration) is None:
        return "operators on the device, no host time"
    if phase is Phase.DECODE:
        return "a server's pass from a captured graph, host time included"
    return "a server's pass with prompts, launches and host time included"
