"""Bytes of keys, values and states that one rank keeps of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from moesim.memory.layers import layers_among
from moesim.ops import Num, minimum
from moesim.specs.model import Attention, CompressedAttention, GqaAttention, LinearAttention, MlaAttention, ModelSpec
from moesim.specs.parallel import ParallelSpec

__all__ = ["kv_bytes_per_sequence", "whole"]


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
    return whole(tokens / block_tokens) * float(block_tokens) if block_tokens > 1 else tokens


def whole(x: Num) -> Num:
    """The next whole number; arrays for arrays."""
    return np.ceil(x) if isinstance(x, np.ndarray) else float(ceil(x))
