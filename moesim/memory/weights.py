"""Bytes of weights that one rank holds, by kind.

Letters: D hidden size, F width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.memory.layers import layers_among
from moesim.specs.model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GqaAttention,
    LayerSpec,
    MlaAttention,
    ModelSpec,
    MoeFfn,
)
from moesim.specs.parallel import ParallelSpec

__all__ = ["WeightBytes", "rank_weights"]


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
