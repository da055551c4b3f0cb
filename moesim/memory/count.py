"""Bytes that one rank must hold. One record, one pure sum of named parts.

Letters: D hidden size, F width, t tokens in flight on the rank, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np

from moesim.ops import Num, maximum, minimum
from moesim.specs.model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GqaAttention,
    LayerSpec,
    LinearAttention,
    MlaAttention,
    ModelSpec,
    MoeFfn,
)
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
class WeightBytes:
    """Weights of one rank by kind, scales included."""

    attention: float = 0.0
    dense_ffn: float = 0.0
    routed_experts: float = 0.0
    shared_experts: float = 0.0
    router: float = 0.0
    norm: float = 0.0
    embedding: float = 0.0
    lm_head: float = 0.0

    @property
    def total(self) -> float:
        """All kinds together."""
        return sum(self._each)

    @property
    def _each(self) -> tuple[float, ...]:
        return (
            self.attention, self.dense_ffn, self.routed_experts, self.shared_experts, self.router, self.norm, self.embedding,
            self.lm_head,
        )  # fmt: skip

    def __mul__(self, n: float) -> WeightBytes:
        return WeightBytes(*(x * n for x in self._each))

    def __add__(self, other: WeightBytes) -> WeightBytes:
        return WeightBytes(*(a + b for a, b in zip(self._each, other._each, strict=True)))


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


def stage_layers(n_layers: int, pp_size: int) -> list[range]:
    """Layer indices of each pipeline stage; earlier stages take the remainder.

    >>> stage_layers(5, 2)
    [range(0, 3), range(3, 5)]
    """
    base, rest = divmod(n_layers, pp_size)
    starts = [i * base + min(i, rest) for i in range(pp_size + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def rank_weights(
    model: ModelSpec, parallel: ParallelSpec, layers: Sequence[int], *, first: bool, last: bool
) -> WeightBytes:
    """Weights of a rank of the stage that holds `layers`; the first stage adds the embedding, the last the head."""
    storage, tp = model.storage, parallel.tp_size
    total = WeightBytes()
    for layer, n in layers_among(model, layers):
        total = total + _layer_weights(model, parallel, layer) * n
    outside = model.other_params * storage.norm.bytes_per_element
    total = total + WeightBytes(norm=outside)
    if first:
        total = total + WeightBytes(embedding=model.embedding_params / tp * storage.embedding.bytes_per_element)
    if last:
        head = model.lm_head_params
        if model.tie_word_embeddings and not first:
            head = model.embedding_params
        total = total + WeightBytes(lm_head=head / tp * storage.lm_head.bytes_per_element)
    return total


def layers_among(model: ModelSpec, layers: Sequence[int]) -> list[tuple[LayerSpec, int]]:
    """Distinct layers among those of the given indices, with how often each is."""
    counted = [(layer, _n_among(indices, layers)) for layer, indices in model.layer_groups]
    return [(layer, n) for layer, n in counted if n]


def _n_among(indices: Sequence[int], layers: Sequence[int]) -> int:
    """How many of the ascending `indices` are in `layers`."""
    if isinstance(layers, range) and layers.step == 1:
        return bisect_left(indices, layers.stop) - bisect_left(indices, layers.start)
    inside = frozenset(layers)
    return sum(i in inside for i in indices)


def _layer_weights(model: ModelSpec, parallel: ParallelSpec, layer: LayerSpec) -> WeightBytes:
    s, d = model.storage, model.hidden_size
    attention = sum(
        _attention_params(a, d, parallel.tp_size) for a in (layer.attention, layer.cross_attention) if a is not None
    )
    result = WeightBytes(
        attention=attention * s.attention.bytes_per_element, norm=layer.norm_params * s.norm.bytes_per_element
    )
    ffn = layer.ffn
    if isinstance(ffn, DenseFfn):
        return result + WeightBytes(dense_ffn=ffn.n_params(d) / parallel.tp_size * s.dense_ffn.bytes_per_element)
    if isinstance(ffn, MoeFfn):
        n_slots = (ffn.n_routed_experts + parallel.redundant_experts) / parallel.ep_size
        experts = n_slots * ffn.expert_params(d) / parallel.etp_size
        return result + WeightBytes(
            routed_experts=experts * s.routed_experts.bytes_per_element,
            shared_experts=(ffn.shared_params(d) / _shared_slices(parallel) + ffn.extra_params / parallel.tp_size)
            * s.shared_experts.bytes_per_element,
            router=ffn.router_params(d) * s.router.bytes_per_element,
        )
    return result


def _shared_slices(parallel: ParallelSpec) -> int:
    """Slices of the shared experts: one where tokens travel, since each rank then has tokens of its own (as in vLLM, SGLang)."""
    return 1 if parallel.ep_size > 1 and parallel.dp_size * parallel.cp_size > 1 else parallel.tp_size


def _attention_params(attention: Attention, hidden_size: int, tp: int) -> float:
    """Weights of one rank: heads are split, key-value heads at least one each; what all heads share is copied."""
    whole = attention.n_params(hidden_size)
    if isinstance(attention, GqaAttention):
        kv_width = attention.head_dim + (0 if attention.k_is_v else attention.v_head_dim)
        kv_width = 0 if attention.reuses_kv else kv_width
        kv = hidden_size * attention.n_kv_heads * kv_width
        kv_rank = hidden_size * max(1.0, attention.n_kv_heads / tp) * kv_width
        copied = attention.extra_params + hidden_size * attention.index_params
        return (whole - kv - copied) / tp + kv_rank + copied
    if isinstance(attention, MlaAttention):
        heads = attention.n_heads
        q_in = attention.q_lora_rank if attention.q_lora_rank is not None else hidden_size
        split = heads * (
            q_in * attention.qk_head_dim
            + attention.kv_lora_rank * (attention.qk_nope_head_dim + attention.v_head_dim)
            + attention.v_head_dim * hidden_size * (2 if attention.output_gate else 1)
        )
        return whole - split + split / tp
    if isinstance(attention, CompressedAttention):
        split = attention.split_params + attention.o_groups * attention.o_lora_rank * hidden_size
        return whole - split + split / tp
    return whole / tp


def kv_bytes_per_sequence(
    model: ModelSpec, parallel: ParallelSpec, context: Num, layers: Sequence[int] | None = None, block_tokens: int = 1
) -> float:
    """Cache of one sequence on one rank, over `layers` (all by default); windows cap what a layer keeps.

    GQA heads are split over TP down to one, MLA latents are copied; context parallelism splits the tokens.
    """
    element = model.storage.kv_cache.bytes_per_element
    total: Num = 0.0
    for layer, n in layers_among(model, range(len(model.layers)) if layers is None else layers):
        for attention in (layer.attention, layer.cross_attention):
            total = total + n * _kept_bytes(attention, parallel, context, block_tokens, element)
    return total  # type: ignore[return-value]  # arrays for arrays


def _kept_bytes(
    attention: Attention | None, parallel: ParallelSpec, context: Num, block_tokens: int, element: float
) -> Num:
    """What one attention block keeps of a sequence on one rank."""
    if isinstance(attention, LinearAttention):
        return attention.state_elements / parallel.tp_size * 4.0
    if isinstance(attention, GqaAttention) and not attention.reuses_kv:
        kept = context if attention.sliding_window is None else minimum(context, float(attention.sliding_window))
        heads = max(1.0, attention.n_kv_heads / parallel.tp_size)
        width = heads * (attention.head_dim + attention.v_head_dim) + (attention.index_head_dim or 0)
        return _paged(kept / parallel.cp_size, block_tokens) * (width * element)
    if isinstance(attention, MlaAttention):
        return _paged(context / parallel.cp_size, block_tokens) * (attention.kv_elements_per_token() * element)
    if isinstance(attention, CompressedAttention):
        in_window = minimum(context, float(attention.sliding_window))
        window = _paged(in_window, block_tokens) * (attention.head_dim * element)
        tokens = _paged(context / parallel.cp_size, block_tokens)
        return window + tokens * attention.kv_bytes_per_token(element) + attention.state_elements * 4.0
    return 0.0


def _paged(tokens: Num, block_tokens: int) -> Num:
    return _ceil(tokens / block_tokens) * float(block_tokens) if block_tokens > 1 else tokens


def _ceil(x: Num) -> Num:
    return np.ceil(x) if isinstance(x, np.ndarray) else float(ceil(x))


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
        kind = (i == 0, i == last, *(_n_among(indices, stage) for _, indices in model.layer_groups))
        if kind not in seen:
            seen.add(kind)
            found.append(_stage_memory(model, parallel, serving, capacity_bytes, stage, first=i == 0, last=i == last))
    return found


def _stage_memory(
    model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity_bytes: float, layers: range, *, first: bool, last: bool
) -> MemoryBytes:  # fmt: skip
    sequences: float = _ceil(serving.batch / parallel.dp_size)  # type: ignore[assignment]  # arrays for arrays
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
