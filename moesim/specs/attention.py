"""The kinds of attention and sequence mixers that layers have: shapes, weights and what they cache.

Letters in docstrings: D hidden size, S context, h heads, d head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moesim.specs.base import Count, Frozen

#: Bytes of an element of an index's key: 8 bits, and a 4-byte scale per 128, as DeepGEMM's indexer kernels read it.
INDEX_KEY_BYTES = 1.0 + 4.0 / 128.0

__all__ = ["Attention", "CompressedAttention", "GqaAttention", "LinearAttention", "MlaAttention", "attention_name"]


class GqaAttention(Frozen):
    """Softmax attention with `n_kv_heads` shared key-value heads (MHA where equal to `n_heads`, MQA where 1).

    `extra_params` counts small weights (norms of heads, sinks, per-head gates); `output_gate` means that the query projection
    also yields a gate of the output's width; `is_cross` marks attention over an encoder's output; `reuses_kv` means that keys
    and values are those of an earlier layer (cross-layer attention), so that this one neither projects nor caches them.

    The optional index (`index_*`) picks blocks of keys (MiniMax-M3): `index_n_heads` small heads score every key against one
    index key per token, which is cached too, and each group of heads attends to `index_topk` tokens.
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
    index_n_heads: Count | None = None
    index_head_dim: Count | None = None
    index_topk: Count | None = None

    @property
    def index_params(self) -> int:
        """Weights of the index per unit of hidden size: its queries and its one key head."""
        return ((self.index_n_heads or 0) + 1) * self.index_head_dim if self.index_head_dim else 0

    def n_params(self, hidden_size: int) -> int:
        """Weights of one layer's attention, norms inside it included."""
        q = self.n_heads * self.head_dim
        gate = self.n_heads * self.v_head_dim if self.output_gate else 0
        k = 0 if self.reuses_kv else self.n_kv_heads * self.head_dim
        v = 0 if self.k_is_v or self.reuses_kv else self.n_kv_heads * self.v_head_dim
        o = self.n_heads * self.v_head_dim
        bias = (q + gate + k + v if self.qkv_bias else 0) + (hidden_size if self.o_bias else 0)
        index = hidden_size * self.index_params + 2 * (self.index_head_dim or 0)
        return hidden_size * (q + gate + k + v) + o * hidden_size + bias + index + self.extra_params

    def kv_elements_per_token(self) -> int:
        """Elements cached per token and layer, the key of an index among them."""
        own = 0 if self.reuses_kv else self.n_kv_heads * (self.head_dim + self.v_head_dim)
        return own + (self.index_head_dim or 0)


class MlaAttention(Frozen):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): a compressed key-value latent and a shared rotary key.

    The optional index (`index_*`) is DeepSeek sparse attention (V3.2): a small scorer keeps `index_topk` tokens. `output_gate`
    is a projection of the hidden state that gates the heads' output (Kimi-K3).
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
    output_gate: bool = False
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
        out = h * self.v_head_dim * hidden_size * (2 if self.output_gate else 1)
        return q + kv_a + kv_b + out + self._index_params(hidden_size) + self.extra_params

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


class CompressedAttention(Frozen):
    """DeepSeek-V4's attention: one shared head of keys that are values too, in a window and, pooled to rows, over all before it.

    A row stands for `compress_ratio` tokens; a ratio of None leaves the window alone. With an index (`index_*`; "compressed
    sparse attention") each token attends to `index_topk` rows, without one ("heavily compressed attention") to all. `overlap`
    says that a row is pooled from two neighbouring groups of tokens, which doubles the compressor's width. The output
    projection is of low rank, in `o_groups` groups of heads.

    Source: modeling_deepseek_v4.py of transformers 5.23; DeepSeek-V4 report, section 2.3.
    """

    kind: Literal["compressed"] = "compressed"
    n_heads: Count
    head_dim: Count
    q_lora_rank: Count
    o_groups: Count
    o_lora_rank: Count
    sliding_window: Count
    compress_ratio: Count | None = None
    overlap: bool = False
    index_n_heads: Count | None = None
    index_head_dim: Count | None = None
    index_topk: Count | None = None

    @property
    def compressor_width(self) -> int:
        """Columns that the compressor and that of the index project a token to, keys and gates together."""
        if self.compress_ratio is None:
            return 0
        return 2 * (2 if self.overlap else 1) * (self.head_dim + (self.index_head_dim or 0))

    @property
    def split_params(self) -> int:
        """Weights that tensor parallelism splits: queries from their latent and the grouped output projection's first half."""
        return self.n_heads * self.head_dim * (self.q_lora_rank + self.o_lora_rank)

    def n_params(self, hidden_size: int) -> int:
        """Weights of one layer's attention: projections, sinks, norms of latents, compressors with biases, and the index."""
        base = hidden_size * (self.q_lora_rank + self.head_dim) + self.q_lora_rank + self.head_dim + self.n_heads
        out = self.o_groups * self.o_lora_rank * hidden_size
        return base + self.split_params + out + self._compressor_params(hidden_size)

    def _compressor_params(self, hidden_size: int) -> int:
        if self.compress_ratio is None:
            return 0
        width = self.compressor_width
        pooled = hidden_size * width + self.compress_ratio * width // 2 + self.head_dim
        if self.index_n_heads is None or self.index_head_dim is None:
            return pooled
        queries = self.q_lora_rank * self.index_n_heads * self.index_head_dim
        return pooled + self.index_head_dim + queries + hidden_size * self.index_n_heads

    @property
    def state_elements(self) -> int:
        """What a sequence keeps besides rows: keys and gates of an unfinished group's tokens (of two groups if they overlap)."""
        if self.compress_ratio is None:
            return 0
        return self.compress_ratio * (2 if self.overlap else 1) * self.compressor_width

    def kv_elements_per_token(self) -> float:
        """Elements that each token of a long context adds to the cache of a layer."""
        if self.compress_ratio is None:
            return 0.0
        return (self.head_dim + (self.index_head_dim or 0)) / self.compress_ratio

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes that each token of a long context adds: a row's share in the cache's format, and of its index key in 8 bits."""
        if self.compress_ratio is None:
            return 0.0
        return (self.head_dim * element_bytes + (self.index_head_dim or 0) * INDEX_KEY_BYTES) / self.compress_ratio


class LinearAttention(Frozen):
    """Attention or state-space layer with a state of fixed size instead of a cache that grows with the context.

    Covers gated delta nets (Qwen3-Next), Mamba 1 (Jamba) and 2 (Nemotron-H), Kimi delta attention and Lightning attention;
    `n_weight_params` is counted by the importer, `state_elements` is what one sequence keeps, `flops_per_token` the work
    besides the projections. Head counts and widths of keys and values (`n_heads` are the value heads) are given where kernels of
    that variant were measured.
    """

    kind: Literal["linear"] = "linear"
    variant: Literal["gated_delta_net", "mamba", "mamba2", "lightning", "kda"]
    n_heads: Count
    n_weight_params: Count
    n_proj_params: Count
    state_elements: Count
    flops_per_token: Count
    n_key_heads: Count | None = None
    key_head_dim: Count | None = None
    value_head_dim: Count | None = None

    def n_params(self, hidden_size: int) -> int:
        """Weights of one layer's mixer."""
        return self.n_weight_params

    def kv_elements_per_token(self) -> int:
        """Nothing is cached per token."""
        return 0


Attention = Annotated[GqaAttention | MlaAttention | CompressedAttention | LinearAttention, Field(discriminator="kind")]


def attention_name(attention: Attention) -> str:
    """Its kind with what tells it from others of the kind in one model: window, compression, blocks picked by an index."""
    if isinstance(attention, CompressedAttention) and attention.compress_ratio is not None:
        return f"compressed/{attention.compress_ratio}"
    window = getattr(attention, "sliding_window", None)
    if isinstance(attention, GqaAttention) and attention.index_topk:
        return f"gqa/top{attention.index_topk}"
    return attention.kind + (f"/w{window}" if window else "")
