"""Which splits exist, which of them fit into memory, and how many sequences each has room for."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.errors import InputError, ParallelError
from moesim.memory import MemoryReport, Outcome, Serving, check_memory
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.study.plan.spec import PlanSpec

__all__ = ["Split", "TooLarge", "fitting_splits", "memory_of", "stage_splits"]


@dataclass(frozen=True, slots=True)
class Split:
    """A split that fits, with room for `max_per_rank` sequences on each attention-DP rank of each pipeline turn."""

    parallel: ParallelSpec
    max_per_rank: int

    @property
    def stage(self) -> ParallelSpec:
        """The same split of one pipeline stage that would hold all layers."""
        return self.parallel.model_copy(update={"pp_size": 1})


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A split that does not fit even one sequence per rank, and the least bytes a rank would lack."""

    parallel: ParallelSpec
    least_gap_bytes: float


def stage_splits(model: ModelSpec, hardware: Hardware) -> list[ParallelSpec]:
    """All (TP, DP, EP) of one pipeline stage on up to `hardware.n_devices` that the model divides by.

    Ranks of a stage fill whole scale-up domains or an equal part of one. Without experts attention data parallelism is
    nothing but replicas, which are counted elsewhere.
    """
    domain = hardware.scale_up_domain_size
    found = []
    for n_ranks in range(1, hardware.n_devices + 1):
        if domain % n_ranks and n_ranks % domain:
            continue
        for tp in _divisors(n_ranks):
            dp = n_ranks // tp
            if dp > 1 and not model.is_moe:
                continue
            for ep in _divisors(n_ranks) if model.is_moe else [1]:
                split = ParallelSpec(tp_size=tp, dp_size=dp, ep_size=ep)
                if _divides(split, model):
                    found.append(split)
    return found


def fitting_splits(model: ModelSpec, hardware: Hardware, spec: PlanSpec) -> tuple[list[Split], list[TooLarge]]:
    """Every stage split with every pipeline depth that fits into memory, and those that do not.

    Raises:
        InputError: the context is longer than the model allows, or no split divides the model.
    """
    longest, limit = spec.workload.longest_context, model.max_position_embeddings
    if limit is not None and longest > limit:
        raise InputError(
            f"is more than {model.name} allows",
            field="input_tokens + output_tokens",
            value=longest,
            allowed=f"1..{limit}",
        )
    stages = stage_splits(model, hardware)
    if not stages:
        raise InputError(
            f"no split of {model.name} on up to {hardware.n_devices} devices",
            field="n_devices",
            value=hardware.n_devices,
        )
    capacity, expert_bytes = hardware.device.memory_bytes, _expert_bytes(model)
    fits, misses = [], []
    for stage in stages:
        for pp in range(1, min(hardware.n_devices // stage.n_ranks, len(model.layers)) + 1):
            parallel = stage.model_copy(update={"pp_size": pp})
            gap = expert_bytes / parallel.n_ranks - capacity
            if gap > 0:
                misses.append(TooLarge(parallel, gap))
                continue
            room = _room(model, parallel, hardware, spec)
            if isinstance(room, TooLarge):
                misses.append(room)
            else:
                fits.append(Split(parallel, room))
    return fits, misses


def memory_of(
    model: ModelSpec, parallel: ParallelSpec, hardware: Hardware, spec: PlanSpec, batch: float
) -> MemoryReport:
    """Memory of the fullest rank with `batch` requests at their longest."""
    serving = Serving(float(batch), float(spec.workload.longest_context), float(spec.max_pass_tokens))
    return check_memory(model, parallel, serving, hardware.device.memory_bytes, explain=False)


def _room(model: ModelSpec, parallel: ParallelSpec, hardware: Hardware, spec: PlanSpec) -> int | TooLarge:
    """Sequences per attention-DP rank and pipeline turn; buffers that grow with the batch are counted at the batch found."""
    slots = parallel.dp_size * parallel.pp_size
    report = memory_of(model, parallel, hardware, spec, slots)
    if report.outcome is not Outcome.OK:
        return TooLarge(parallel, report.gap_bytes)
    room = max(1, min(spec.max_batch, report.max_sequences // slots if report.max_sequences else spec.max_batch))
    while room > 1:
        report = memory_of(model, parallel, hardware, spec, room * slots)
        if report.outcome is Outcome.OK:
            break
        room = max(1, min(room - 1, report.max_sequences // slots))
    return room


def _expert_bytes(model: ModelSpec) -> float:
    """All routed experts: spread over every rank, and nothing else, they are less than the fullest rank holds."""
    blocks = (model.layers[i].ffn for i in model.moe_layers)
    n_params = sum(f.n_routed_experts * f.expert_params(model.hidden_size) for f in blocks if isinstance(f, MoeFfn))
    return n_params * model.storage.routed_experts.bytes_per_element


def _divides(split: ParallelSpec, model: ModelSpec) -> bool:
    try:
        split.check(model)
    except ParallelError:
        return False
    return True


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
