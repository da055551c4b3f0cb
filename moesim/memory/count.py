"""Bytes that one rank must hold. One record, one pure sum of named parts: weights, cache, activations, buffers, reserve.

Letters: D hidden size, F width, t tokens in flight on the rank, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.memory.cache import kv_bytes_per_sequence, whole
from moesim.memory.layers import n_among, stage_layers
from moesim.memory.weights import WeightBytes, rank_weights
from moesim.ops import Num, maximum, minimum
from moesim.specs.model import DenseFfn, ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec

__all__ = [
    "MemoryBytes",
    "Serving",
    "WeightBytes",
    "fullest_bytes",
    "kv_bytes_per_sequence",
    "rank_memory",
    "rank_weights",
    "stage_layers",
]


@dataclass(frozen=True, slots=True)
class MemoryBytes:
    """Projected memory of the fullest rank by purpose."""

    weights: WeightBytes
    kv_cache: float
    activations: float
    comm_buffers: float
    runtime_reserve: float

    @property
    def total(self) -> float:
        """All purposes together."""
        return self.weights.total + self.kv_cache + self.activations + self.comm_buffers + self.runtime_reserve

    @property
    def without_kv(self) -> float:
        """What is taken before the first token is cached."""
        return self.total - self.kv_cache


@dataclass(frozen=True, slots=True)
class Serving:
    """What an instance serves at once: sequences of `context` tokens, and the largest pass in tokens.

    `n_models` whole models share a rank's memory (an ensemble; the cache is of the requests of all). `kv_block_tokens` is the
    page of the cache (vLLM's default is 16). `reserve_bytes` and `reserve_frac` stand for the driver context, CUDA graphs,
    communicator buffers and fragmentation: assumption, near what vLLM leaves at its default 0.9 memory use.
    """

    batch: float
    context: float
    max_pass_tokens: float = 8192.0
    n_models: int = 1
    kv_block_tokens: int = 16
    reserve_bytes: float = 1.5e9
    reserve_frac: float = 0.03


def rank_memory(model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float) -> MemoryBytes:
    """Memory of the fullest rank of the fullest stage."""
    return max(_stages(model, parallel, serving, capacity_bytes), key=lambda m: m.total)


def fullest_bytes(model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float) -> Num:
    """The total of `rank_memory`, where sizes of the model's experts and the numbers of `serving` may be arrays."""
    total: Num = 0.0
    for memory in _stages(model, parallel, serving, capacity_bytes):
        total = maximum(total, memory.total)
    return total


def _stages(model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float) -> list[MemoryBytes]:
    """Memory of a rank of each stage; stages of as many layers of each kind are told once."""
    stages = stage_layers(len(model.layers), parallel.pp_size)
    last, seen, found = len(stages) - 1, set(), []
    for i, stage in enumerate(stages):
        kind = (i == 0, i == last, *(n_among(indices, stage) for _, indices in model.layer_groups))
        if kind not in seen:
            seen.add(kind)
            found.append(_stage_memory(model, parallel, serving, capacity_bytes, stage, first=i == 0, last=i == last))
    return found


def _stage_memory(
    model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float, layers: range, *, first: bool, last: bool
) -> MemoryBytes:  # fmt: skip
    sequences: float = whole(serving.batch / parallel.dp_size)  # type: ignore[assignment]  # arrays for arrays
    per_sequence = kv_bytes_per_sequence(model, parallel, serving.context, layers, serving.kv_block_tokens)
    return MemoryBytes(
        weights=rank_weights(model, parallel, layers, first=first, last=last) * serving.n_models,
        kv_cache=sequences * per_sequence,
        activations=_activations(model, parallel, serving, sequences, last=last),
        comm_buffers=_comm_buffers(model, parallel, serving),
        runtime_reserve=serving.reserve_bytes + serving.reserve_frac * capacity_bytes,
    )


def _activations(model: ModelSpec, parallel: ParallelSpec, serving: Serving, sequences: float, *, last: bool) -> float:
    """Peak of one layer: residual, norm output and the widest intermediate, 16-bit; and fp32 logits on the last stage.

    Assumption: nothing is kept between layers but the residual (inference).
    """
    t = serving.max_pass_tokens / parallel.cp_size
    widest: float = 0.0
    for layer, _ in model.layer_groups:
        if isinstance(layer.ffn, DenseFfn):
            widest = maximum(widest, 3.0 * layer.ffn.intermediate_size / parallel.tp_size)
        elif isinstance(layer.ffn, MoeFfn):
            per_pair = (
                layer.ffn.row_width(model.hidden_size) + 3.0 * layer.ffn.moe_intermediate_size / parallel.etp_size
            )
            pairs = layer.ffn.num_experts_per_tok * parallel.dp_size / parallel.ep_size
            widest = maximum(widest, pairs * per_pair + 3.0 * layer.ffn.shared_intermediate_size / parallel.tp_size)
    logits = sequences * model.vocab_size * 4.0 if last else 0.0
    return t * (2.0 * model.hidden_size + model.residual_width + widest) * 2.0 + logits


def _comm_buffers(model: ModelSpec, parallel: ParallelSpec, serving: Serving) -> float:
    """Collective buffers, and those of expert exchange: receive room for every token of every rank an expert may get.

    Assumption: 64 MiB per collective group; exchange buffers hold 128 decode tokens per rank for each expert, in and out, 16-bit
    (the sizing of DeepEP's low-latency mode).
    """
    ffn = model.moe_ffn
    n_groups = sum(size > 1 for size in (parallel.tp_size, parallel.dp_size, parallel.pp_size, parallel.cp_size))
    buffers = n_groups * 64.0 * 2**20
    if ffn is not None and parallel.ep_size > 1 and parallel.dp_size * parallel.cp_size > 1:
        per_rank = minimum(128.0, maximum(1.0, serving.batch / parallel.dp_size))
        buffers += 2.0 * per_rank * ffn.n_routed_experts * ffn.row_width(model.hidden_size) * 2.0
    return buffers
