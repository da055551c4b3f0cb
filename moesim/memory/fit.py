"""Does it fit? If not: what is needed, what there is, the gap, and the smallest change that would do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from moesim.errors import ParallelError
from moesim.memory.count import MemoryBytes, Serving, kv_bytes_per_sequence, rank_memory, stage_layers
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec

__all__ = ["MemoryReport", "Outcome", "check_memory", "with_weight_dtype"]


class Outcome(StrEnum):
    """How a question ended; the values are what users read."""

    OK = "ok"
    OUT_OF_MEMORY = "out of memory"
    INVALID_SPLIT = "invalid split"
    CONTEXT_TOO_LONG = "context longer than the model allows"


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Projected memory of the fullest rank against its capacity, and what is left for more.

    `kv_capacity_tokens` is what the cache of the whole instance holds at the scenario's context, `max_sequences` how many
    sequences of that context. `remedies` are the smallest changes that would fit, when it does not.
    """

    outcome: Outcome
    memory: MemoryBytes
    capacity_bytes: float
    kv_bytes_per_token: float
    kv_capacity_tokens: float
    max_sequences: int
    remedies: tuple[str, ...] = ()
    n_models: int = 1

    @property
    def gap_bytes(self) -> float:
        """Bytes missing; 0 where it fits."""
        return max(0.0, self.memory.total - self.capacity_bytes)

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        need, have = self.memory.total / 1e9, self.capacity_bytes / 1e9
        several = f"{self.n_models} whole models per slot: " if self.n_models > 1 else ""
        if self.outcome is Outcome.OK:
            return f"{several}fits: {need:.1f} GB of {have:.1f} GB per rank"
        remedy = f"; smallest change that fits: {self.remedies[0]}" if self.remedies else ""
        return (
            f"{several}needs {need:.1f} GB per rank, {have:.1f} GB there, {self.gap_bytes / 1e9:.1f} GB short{remedy}"
        )


def check_memory(
    model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float, *, explain: bool = True
) -> MemoryReport:
    """Count memory and compare with the capacity of a rank.

    Args:
        model: the architecture.
        parallel: the split.
        serving: sequences, context and pass size.
        capacity_bytes: memory of one device.
        explain: search for remedies if it does not fit.
    """
    memory = rank_memory(model, parallel, serving, capacity_bytes)
    fits = memory.total <= capacity_bytes
    per_sequence = _fullest_kv(model, parallel, serving)
    free = max(0.0, capacity_bytes - memory.without_kv)
    n_sequences = int(free // per_sequence) * parallel.dp_size if per_sequence > 0 else 0
    per_token = kv_bytes_per_sequence(model, parallel, serving.context) / max(1.0, serving.context)
    report = MemoryReport(
        outcome=Outcome.OK if fits else Outcome.OUT_OF_MEMORY,
        memory=memory,
        capacity_bytes=capacity_bytes,
        kv_bytes_per_token=per_token,
        kv_capacity_tokens=n_sequences * serving.context,
        max_sequences=n_sequences,
        n_models=serving.n_models,
    )
    return (
        report
        if fits or not explain
        else replace(report, remedies=_remedies(model, parallel, serving, capacity_bytes, report))
    )


def _fullest_kv(model: ModelSpec, parallel: ParallelSpec, serving: Serving) -> float:
    stages = stage_layers(len(model.layers), parallel.pp_size)
    return max(kv_bytes_per_sequence(model, parallel, serving.context, s, serving.kv_block_tokens) for s in stages)


def with_weight_dtype(model: ModelSpec, dtype: Dtype) -> ModelSpec:
    """The same model with its linear weights stored in another format (embedding, head, router and norms stay)."""
    linear = Storage(dtype=dtype)
    storage = model.storage.model_copy(
        update={"attention": linear, "dense_ffn": linear, "routed_experts": linear, "shared_experts": linear}
    )
    return model.model_copy(update={"storage": storage})


def _remedies(
    model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float, report: MemoryReport
) -> tuple[str, ...]:
    found = []
    if report.max_sequences >= 1:
        found.append(f"batch {report.max_sequences} instead of {serving.batch:g}")
    context = _longest_context(model, parallel, serving, capacity_bytes)
    if context:
        found.append(f"context {context} instead of {serving.context:g}")
    split = _larger_split(model, parallel, serving, capacity_bytes)
    if split is not None:
        found.append(f"{split.n_ranks} devices ({split.label}) instead of {parallel.n_ranks}")
    for dtype in (Dtype.FP8, Dtype.INT4):
        narrow = with_weight_dtype(model, dtype)
        smaller = narrow.storage.routed_experts.bytes_per_element < model.storage.routed_experts.bytes_per_element
        if smaller and check_memory(narrow, parallel, serving, capacity_bytes, explain=False).outcome is Outcome.OK:
            found.append(f"weights in {dtype.value}")
            break
    return tuple(found)


def _longest_context(model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float) -> int | None:
    def fits(context: int) -> bool:
        return rank_memory(model, parallel, replace(serving, context=context), capacity_bytes).total <= capacity_bytes

    low, high = 0, int(serving.context)
    if not fits(1):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low - low % 16 if low >= 16 else None


def _larger_split(
    model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float
) -> ParallelSpec | None:
    """The first doubling of the split that fits: more tensor (and expert) ranks, then more pipeline stages."""
    for factor in (2, 4, 8, 16, 32, 64):
        for update in _growths(parallel, factor):
            split = parallel.model_copy(update=update)
            try:
                split.check(model)
            except ParallelError:
                continue
            if rank_memory(model, split, serving, capacity_bytes).total <= capacity_bytes:
                return split
    return None


def _growths(parallel: ParallelSpec, factor: int) -> list[dict[str, int]]:
    grown_ep = {"ep_size": parallel.ep_size * factor} if parallel.ep_size > 1 else {}
    options = [{"tp_size": parallel.tp_size * factor, **grown_ep}]
    if parallel.dp_size > 1:
        options.insert(0, {"dp_size": parallel.dp_size * factor, **grown_ep})
    options.append({"pp_size": parallel.pp_size * factor})
    return options
