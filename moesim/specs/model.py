"""A transformer as the cost model sees it: per layer one attention and one FFN, with their shapes and storage.

`specs.hf` builds these from the fields of a Hugging Face ``config.json``; nobody writes them by hand except in tests.
Letters in docstrings: D hidden size, F expert width, E routed experts, K experts per token, L layers, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from moesim.specs.base import Count, Frozen
from moesim.specs.dtypes import Dtype, Storage

__all__ = [
    "Attention",
    "DenseFfn",
    "Ffn",
    "GqaAttention",
    "LayerSpec",
    "LinearAttention",
    "MlaAttention",
    "ModelSpec",
    "MoeFfn",
    "WeightStorage",
]


class GqaAttention(Frozen):
    """Softmax attention with `n_kv_heads` shared key-value heads (MHA where equal to `n_heads`, MQA where 1).

    `extra_params` counts small weights (norms of heads, sinks, per-head gates); `output_gate` means that the query projection
    also yields a gate of the output's width; `is_cross` marks attention over an encoder's output; `reuses_kv` means that keys
    and values are those of an earlier layer (cross-layer attention), so that this one neither projects nor caches them.
    """

    kind: Literal["gqa"] = "gqa"
    n_heads: Count
    n_kv_heads: Count
    head_dim: Count
    v_head_dim: Count
    sliding_window: Count | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    output_gate: bool = False
    extra_params: int = Field(default=0, ge=0)
    k_is_v: bool = False
    is_cross: bool = False
    reuses_kv: bool = False

    def n_params(self, hidden_size: int) -> int:
        """Weights of one layer's attention, norms inside it included."""
        q = self.n_heads * self.head_dim
        gate = self.n_heads * self.v_head_dim if self.output_gate else 0
        k = 0 if self.reuses_kv else self.n_kv_heads * self.head_dim
        v = 0 if self.k_is_v or self.reuses_kv else self.n_kv_heads * self.v_head_dim
        o = self.n_heads * self.v_head_dim
        bias = (q + gate + k + v if self.qkv_bias else 0) + (hidden_size if self.o_bias else 0)
        return hidden_size * (q + gate + k + v) + o * hidden_size + bias + self.extra_params

    def kv_elements_per_token(self) -> int:
        """Elements cached per token and layer."""
        return 0 if self.reuses_kv else self.n_kv_heads * (self.head_dim + self.v_head_dim)


class MlaAttention(Frozen):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): a compressed key-value latent and a shared rotary key.

    The optional index (`index_*`) is DeepSeek sparse attention (V3.2): a small scorer keeps `index_topk` tokens.
    """

    kind: Literal["mla"] = "mla"
    n_heads: Count
    q_lora_rank: Count | None
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: int = Field(ge=0)
    v_head_dim: Count
    index_n_heads: Count | None = None
    index_head_dim: Count | None = None
    index_topk: Count | None = None
    extra_params: int = Field(default=0, ge=0)

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head, rotary part included."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def n_params(self, hidden_size: int) -> int:
        """Weights of one layer's attention with the norms of the two latents and the index, if any."""
        h, qk = self.n_heads, self.qk_head_dim
        if self.q_lora_rank is None:
            q = hidden_size * h * qk
        else:
            q = hidden_size * self.q_lora_rank + self.q_lora_rank + self.q_lora_rank * h * qk
        kv_a = hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim) + self.kv_lora_rank
        kv_b = self.kv_lora_rank * h * (self.qk_nope_head_dim + self.v_head_dim)
        return q + kv_a + kv_b + h * self.v_head_dim * hidden_size + self._index_params(hidden_size) + self.extra_params

    def _index_params(self, hidden_size: int) -> int:
        if self.index_n_heads is None or self.index_head_dim is None:
            return 0
        q_in = self.q_lora_rank if self.q_lora_rank is not None else hidden_size
        k_norm = 2 * self.index_head_dim
        return (
            self.index_n_heads * self.index_head_dim * q_in
            + hidden_size * (self.index_head_dim + self.index_n_heads)
            + k_norm
        )

    def kv_elements_per_token(self) -> int:
        """Elements cached per token and layer: latent, rotary key and, with an index, its key."""
        return self.kv_lora_rank + self.qk_rope_head_dim + (self.index_head_dim or 0)


class LinearAttention(Frozen):
    """Attention or state-space layer with a state of fixed size instead of a cache that grows with the context.

    Covers gated delta nets (Qwen3-Next), Mamba (Jamba) and Lightning attention; `n_weight_params` is counted by the importer,
    `state_elements` is what one sequence keeps, `flops_per_token` the work besides the projections.
    """

    kind: Literal["linear"] = "linear"
    variant: Literal["gated_delta_net", "mamba", "lightning", "kda"]
    n_heads: Count
    n_weight_params: Count
    n_proj_params: Count
    state_elements: Count
    flops_per_token: Count

    def n_params(self, hidden_size: int) -> int:
        """Weights of one layer's mixer."""
        return self.n_weight_params

    def kv_elements_per_token(self) -> int:
        """Nothing is cached per token."""
        return 0


Attention = Annotated[GqaAttention | MlaAttention | LinearAttention, Field(discriminator="kind")]


class DenseFfn(Frozen):
    """A feed-forward block that every token goes through: D -> F -> D, with a gate projection if `gated`."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Count
    gated: bool = True
    bias: bool = False

    def n_params(self, hidden_size: int) -> int:
        """Weights of the block: (3 if gated else 2) D F, and biases."""
        n_in = 2 if self.gated else 1
        bias = n_in * self.intermediate_size + hidden_size if self.bias else 0
        return (n_in + 1) * hidden_size * self.intermediate_size + bias


class MoeFfn(Frozen):
    """A router and E experts of width F of which each token visits K, and shared experts that every token visits.

    `shared_intermediate_size` is the width of all shared experts together. `dense_residual` is a dense block beside the
    experts (Snowflake Arctic, Gemma 4). `n_identity_experts` are extra choices that do nothing (LongCat).
    """

    kind: Literal["moe"] = "moe"
    n_routed_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    n_shared_experts: int = Field(default=0, ge=0)
    shared_intermediate_size: int = Field(default=0, ge=0)
    shared_expert_gate: bool = False
    dense_residual: DenseFfn | None = None
    n_group: Count = 1
    topk_group: Count = 1
    extra_params: int = Field(default=0, ge=0)

    def expert_params(self, hidden_size: int) -> int:
        """Weights of one routed expert."""
        return DenseFfn(intermediate_size=self.moe_intermediate_size, gated=self.gated, bias=self.bias).n_params(
            hidden_size
        )

    def router_params(self, hidden_size: int) -> int:
        """Weights of the router, its bias or score correction included."""
        return self.n_routed_experts * (hidden_size + int(self.router_bias))

    def shared_params(self, hidden_size: int) -> int:
        """Weights of the shared experts with their gate, and of a dense block beside the experts."""
        shared = 0
        if self.shared_intermediate_size:
            shared = DenseFfn(intermediate_size=self.shared_intermediate_size, gated=self.gated).n_params(hidden_size)
        gate = hidden_size if self.shared_expert_gate else 0
        residual = self.dense_residual.n_params(hidden_size) if self.dense_residual else 0
        return shared + gate + residual

    def n_params(self, hidden_size: int) -> int:
        """All weights of the block."""
        return (
            self.n_routed_experts * self.expert_params(hidden_size)
            + self.router_params(hidden_size)
            + self.shared_params(hidden_size)
            + self.extra_params
        )

    def n_active_params(self, hidden_size: int) -> int:
        """Weights that one token goes through."""
        idle = (self.n_routed_experts - self.num_experts_per_tok) * self.expert_params(hidden_size)
        return self.n_params(hidden_size) - idle


Ffn = Annotated[DenseFfn | MoeFfn, Field(discriminator="kind")]


class LayerSpec(Frozen):
    """One layer: attention (and cross-attention in a decoder over an encoder), one FFN or none, and its norms."""

    attention: Attention | None
    ffn: Ffn | None
    cross_attention: GqaAttention | None = None
    norm_params: int = Field(default=0, ge=0)
    stack: Literal["decoder", "encoder"] = "decoder"

    @property
    def kind(self) -> str:
        """A short name shared by layers of equal shape, such as ``mla+moe`` or ``gqa/w128+dense``."""
        parts = []
        if self.attention is not None:
            window = getattr(self.attention, "sliding_window", None)
            parts.append(self.attention.kind + (f"/w{window}" if window else ""))
        if self.cross_attention is not None:
            parts.append("cross")
        if self.ffn is not None:
            parts.append(self.ffn.kind)
        return ("enc:" if self.stack == "encoder" else "") + "+".join(parts)

    def n_params(self, hidden_size: int) -> int:
        """Weights of the layer."""
        parts = [p.n_params(hidden_size) for p in (self.attention, self.cross_attention, self.ffn) if p is not None]
        return sum(parts) + self.norm_params

    def n_active_params(self, hidden_size: int) -> int:
        """Weights of the layer that one token goes through."""
        if not isinstance(self.ffn, MoeFfn):
            return self.n_params(hidden_size)
        return self.n_params(hidden_size) - self.ffn.n_params(hidden_size) + self.ffn.n_active_params(hidden_size)


class WeightStorage(Frozen):
    """How each kind of weight is stored, and the key-value cache."""

    attention: Storage = Storage(dtype=Dtype.BF16)
    dense_ffn: Storage = Storage(dtype=Dtype.BF16)
    routed_experts: Storage = Storage(dtype=Dtype.BF16)
    shared_experts: Storage = Storage(dtype=Dtype.BF16)
    router: Storage = Storage(dtype=Dtype.BF16)
    embedding: Storage = Storage(dtype=Dtype.BF16)
    lm_head: Storage = Storage(dtype=Dtype.BF16)
    norm: Storage = Storage(dtype=Dtype.BF16)
    kv_cache: Storage = Storage(dtype=Dtype.BF16)
    activation: Dtype = Dtype.BF16
    expert_activation: Dtype = Dtype.BF16

    @classmethod
    def uniform(cls, dtype: Dtype) -> WeightStorage:
        """Every weight in one format; cache and activations stay 16-bit (32-bit where the weights are)."""
        wide = Dtype.FP32 if dtype is Dtype.FP32 else Dtype.BF16
        linear, rest = Storage(dtype=dtype), Storage(dtype=wide)
        return cls(
            attention=linear, dense_ffn=linear, routed_experts=linear, shared_experts=linear,
            router=rest, embedding=rest, lm_head=rest, norm=rest, kv_cache=rest,
            activation=wide, expert_activation=wide,
        )  # fmt: skip


class ModelSpec(Frozen):
    """A whole model. `mtp_layers` are multi-token-prediction layers, counted apart from `layers` everywhere."""

    name: str
    hf_id: str | None = None
    hidden_size: Count
    vocab_size: Count
    tie_word_embeddings: bool = False
    max_position_embeddings: Count | None = None
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    mtp_layers: tuple[LayerSpec, ...] = ()
    mtp_extra_params: int = Field(default=0, ge=0)
    other_params: int = Field(default=0, ge=0)
    storage: WeightStorage = WeightStorage()
    note: str | None = None

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that hold experts."""
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer.ffn, MoeFfn))

    @property
    def is_moe(self) -> bool:
        """True if any layer holds experts."""
        return bool(self.moe_layers)

    @cached_property
    def moe_ffn(self) -> MoeFfn | None:
        """The MoE block of the first MoE layer, or None for a dense model."""
        for layer in self.layers:
            if isinstance(layer.ffn, MoeFfn):
                return layer.ffn
        return None

    @cached_property
    def layer_kinds(self) -> tuple[tuple[LayerSpec, int], ...]:
        """Distinct layers with how often each occurs, in order of first appearance."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def layer_groups(self) -> tuple[tuple[LayerSpec, tuple[int, ...]], ...]:
        """Distinct layers with the indices at which each occurs, in order of first appearance."""
        indices: dict[LayerSpec, list[int]] = {}
        for i, layer in enumerate(self.layers):
            indices.setdefault(layer, []).append(i)
        return tuple((layer, tuple(found)) for layer, found in indices.items())

    @property
    def embedding_params(self) -> int:
        """Weights of the token embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def lm_head_params(self) -> int:
        """Weights of the output head; 0 where it is tied to the embedding."""
        return 0 if self.tie_word_embeddings else self.embedding_params

    @cached_property
    def n_params(self) -> int:
        """All weights, MTP layers left out."""
        return self._outside_params() + sum(n * layer.n_params(self.hidden_size) for layer, n in self.layer_kinds)

    @cached_property
    def n_active_params(self) -> int:
        """Weights that one token goes through, embedding and head included, MTP layers left out."""
        return self._outside_params() + sum(
            n * layer.n_active_params(self.hidden_size) for layer, n in self.layer_kinds
        )

    @cached_property
    def n_mtp_params(self) -> int:
        """Weights of the multi-token-prediction layers, without the embedding and head they share."""
        return self.mtp_extra_params + sum(layer.n_params(self.hidden_size) for layer in self.mtp_layers)

    def _outside_params(self) -> int:
        return self.embedding_params + self.lm_head_params + self.other_params
