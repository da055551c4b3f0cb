"""A transformer as the cost model sees it: per layer one attention and one FFN, with their shapes and storage.

`specs.hf` builds these from the fields of a Hugging Face ``config.json``; nobody writes them by hand except in tests.
Letters in docstrings: D hidden size, F expert width, E routed experts, K experts per token, L layers, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from moesim.specs.attention import (
    Attention,
    CompressedAttention,
    GqaAttention,
    LinearAttention,
    MlaAttention,
    attention_name,
)
from moesim.specs.base import Count, Frozen
from moesim.specs.dtypes import Dtype, Storage

__all__ = [
    "Attention",
    "CompressedAttention",
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


class DenseFfn(Frozen):
    """A feed-forward block that every token goes through: D -> F -> D, with a gate projection if `gated`."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Count
    gated: bool = True
    bias: bool = False

    def n_params(self, hidden_size: int) -> int:
        """Weights of the block: (3 if gated else 2) D F, and biases."""
        return _ffn_params(hidden_size, self.intermediate_size, self.gated, self.bias)


def _ffn_params(row_width: int, width: int, gated: bool, bias: bool) -> int:
    n_in = 2 if gated else 1
    return (n_in + 1) * row_width * width + (n_in * width + row_width if bias else 0)


class MoeFfn(Frozen):
    """A router and E experts of width F of which each token visits K, and shared experts that every token visits.

    `shared_intermediate_size` is the width of all shared experts together. `dense_residual` is a dense block beside the
    experts (Snowflake Arctic, Gemma 4). `latent_size` is the width that tokens are projected to before they visit routed
    experts, and back from (LatentMoE: Nemotron 3 Super, Kimi-K3); None where experts work on the hidden state.
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
    latent_size: Count | None = None
    extra_params: int = Field(default=0, ge=0)

    def expert_params(self, hidden_size: int) -> int:
        """Weights of one routed expert."""
        return _ffn_params(self.row_width(hidden_size), self.moe_intermediate_size, self.gated, self.bias)

    def row_width(self, hidden_size: int) -> int:
        """Width of the rows that travel to routed experts."""
        return self.latent_size or hidden_size

    def latent_params(self, hidden_size: int) -> int:
        """Weights of the projections into and out of the experts' latent."""
        return 2 * hidden_size * self.latent_size if self.latent_size else 0

    def router_params(self, hidden_size: int) -> int:
        """Weights of the router, its bias or score correction included."""
        return self.n_routed_experts * (hidden_size + int(self.router_bias))

    def shared_params(self, hidden_size: int) -> int:
        """Weights of the shared experts with their gate, of a dense block beside them and of their latent's projections."""
        shared = 0
        if self.shared_intermediate_size:
            shared = DenseFfn(intermediate_size=self.shared_intermediate_size, gated=self.gated).n_params(hidden_size)
        gate = hidden_size if self.shared_expert_gate else 0
        residual = self.dense_residual.n_params(hidden_size) if self.dense_residual else 0
        return shared + gate + residual + self.latent_params(hidden_size)

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
    """One layer: attention (and cross-attention in a decoder over an encoder) or none, one FFN or none, and its norms.

    `residual_streams` are copies of the residual that each block mixes from and to (hyper-connections, arXiv 2512.24880);
    `depth_sources` earlier states are attended over before each block (attention residuals of Kimi-K3, arXiv 2607.24653).
    """

    attention: Attention | None
    ffn: Ffn | None
    cross_attention: GqaAttention | None = None
    norm_params: int = Field(default=0, ge=0)
    residual_streams: Count = 1
    depth_sources: float = Field(default=0.0, ge=0)
    stack: Literal["decoder", "encoder"] = "decoder"

    @property
    def kind(self) -> str:
        """A short name shared by layers of equal shape, such as ``mla+moe`` or ``gqa/w128+dense``."""
        parts = []
        if self.attention is not None:
            parts.append(attention_name(self.attention))
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

    @cached_property
    def residual_width(self) -> float:
        """Elements that a token carries between layers: D for each residual stream and each earlier state read later."""
        layer = self.layers[0]
        return self.hidden_size * (layer.residual_streams + max(0.0, layer.depth_sources - 1.0))

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
