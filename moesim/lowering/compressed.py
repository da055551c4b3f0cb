"""Attention over pooled rows (DeepSeek-V4), and over blocks of keys that an index picks (MiniMax-M3).

Letters: t tokens on the rank, S context, r tokens to a row, h heads, d head width.
"""

from __future__ import annotations

from math import ceil

from moesim.lowering.common import Context, causal_pairs, collective, elementwise, gemm
from moesim.ops import AttentionShape, Num, Op, OpKind, Phase, Work, minimum
from moesim.specs.dtypes import Dtype
from moesim.specs.model import CompressedAttention, GqaAttention

__all__ = ["lower_block_index", "lower_compressed"]

GROUP = "attention"
#: Sparse kernels run whole blocks of this many heads: a rank with fewer costs as much (FlashMLA; vLLM pads to 64 or 128).
_PADDED_HEADS = 64.0
#: How often the choice of the best rows reads a 2-byte element's worth of its 4-byte scores: four passes. Measured top-k kernels
#: reach a quarter of the memory's rate on a B200 (sglang 0.5.14, in the tables of aiconfigurator-core 0.12).
_TOP_K_READS = 8.0


def lower_compressed(ctx: Context, a: CompressedAttention) -> list[Op]:
    """Projections, compressor, index, scores over window and rows, and the grouped output projection.

    Tensor parallelism splits queries and the output projection by heads; the one shared key head, the compressors and the index
    are on every rank (vLLM's layout).
    """
    tp, t, storage = ctx.parallel.tp_size, ctx.tokens, ctx.model.storage.attention
    heads, groups = a.n_heads / tp, max(1.0, a.o_groups / tp)
    ops = [
        gemm(ctx, "q_kv_a_proj", t, float(a.q_lora_rank + a.head_dim), ctx.hidden, storage, GROUP),
        gemm(ctx, "q_b_proj", t, heads * a.head_dim, float(a.q_lora_rank), storage, GROUP),
        elementwise(ctx, "rope_and_cache", t, (heads + 1.0) * a.head_dim, GROUP),
    ]
    if a.compress_ratio is not None:
        ops += _compressor(ctx, a)
        ops += _row_index(ctx, a)
    ops += _scores(ctx, a, heads)
    wide = heads * a.head_dim / groups
    ops += [
        elementwise(ctx, "output_rope", t, heads * a.head_dim, GROUP),
        gemm(ctx, "o_a_proj", t, float(a.o_lora_rank), wide, storage, GROUP, n_batch=groups),
        gemm(ctx, "o_b_proj", t, ctx.hidden, groups * a.o_lora_rank, storage, GROUP),
    ]
    return ops


def _compressor(ctx: Context, a: CompressedAttention) -> list[Op]:
    """Keys and gates of every token, and the gated mean of each group of them that becomes a row."""
    width, t = float(a.compressor_width), ctx.tokens
    return [
        gemm(ctx, "compressor_proj", t, width, ctx.hidden, ctx.model.storage.attention, GROUP),
        elementwise(ctx, "compressor_pool", t, width, GROUP, writes=0.5 / (a.compress_ratio or 1), n_kernels=2),
    ]


def _rows(ctx: Context, ratio: int, top: int | None) -> Num:
    """Query-row pairs of one sequence: of the pairs with tokens, one in r; an index caps what a query keeps."""
    step = ctx.step
    return causal_pairs(step.new_tokens, step.cached_tokens, None if top is None else top * ratio) / float(ratio)


def _row_index(ctx: Context, a: CompressedAttention) -> list[Op]:
    """Every index head scores all rows, and a radix selection over these scores keeps `index_topk`."""
    if a.index_n_heads is None or a.index_head_dim is None or a.compress_ratio is None:
        return []
    t, storage, heads, dim = ctx.tokens, ctx.model.storage.attention, float(a.index_n_heads), float(a.index_head_dim)
    pairs, rows = _rows(ctx, a.compress_ratio, None), ctx.step.kv_len / float(a.compress_ratio)
    return [
        gemm(ctx, "index_q_proj", t, heads * dim, float(a.q_lora_rank), storage, GROUP),
        gemm(ctx, "index_weights_proj", t, heads, ctx.hidden, storage, GROUP),
        _index_scores(ctx, pairs, rows, heads, dim, 1.0, 4.0),
        elementwise(
            ctx, "index_top_k", t, pairs / ctx.step.new_tokens, GROUP, reads=_TOP_K_READS, writes=0.0
        ),
    ]  # fmt: skip


def _index_scores(
    ctx: Context, pairs: Num, keys: Num, heads: float, dim: float, key_bytes: float, written_bytes: float
) -> Op:
    """Products of small heads with one key each: `pairs` and `keys` of one sequence, bytes of a key element and of a score.

    Context-parallel ranks share the queries of a prefill and the keys of a decode step.
    """
    n, cp = ctx.sequences, ctx.parallel.cp_size
    pairs, keys = pairs / cp, (keys / cp if ctx.step.phase is Phase.DECODE else keys)
    read = n * keys * (dim * key_bytes) + ctx.tokens * (heads * dim)
    work = Work(n * pairs * (2.0 * heads * dim), read, n * pairs * written_bytes)
    shape = AttentionShape(n, ctx.step.new_tokens, keys, heads, 1.0, dim, 0.0, None, True)
    return Op("index_scores", _kind(ctx), work, shape, ctx.model.storage.kv_cache.dtype, GROUP)


def _scores(ctx: Context, a: CompressedAttention, heads: float) -> list[Op]:
    """Scores and values: one key head that is the value too, so that each key is read once.

    Every key that some query of a sequence sees crosses memory once: an index's picks of neighbouring queries are taken to
    overlap (assumption), as for DeepSeek-V3.2.
    """
    step, cp, d = ctx.step, ctx.parallel.cp_size, float(a.head_dim)
    pairs = causal_pairs(step.new_tokens, step.cached_tokens, a.sliding_window)
    keys: Num = minimum(step.kv_len, float(a.sliding_window) + step.new_tokens - 1.0)
    if a.compress_ratio is not None:
        pairs = pairs + _rows(ctx, a.compress_ratio, a.index_topk)
        rows: Num = step.kv_len / float(a.compress_ratio)
        if a.index_topk is not None:
            rows = minimum(rows, float(a.index_topk) * step.new_tokens)
        keys = keys + rows
    is_decode = step.phase is Phase.DECODE
    read = ctx.sequences * keys * (d * ctx.model.storage.kv_cache.bytes_per_element)
    act = ctx.tokens * (heads * d * ctx.activation_bytes)
    work = Work(ctx.sequences * pairs / cp * (4.0 * heads * d), (read / cp if is_decode else read) + act, act)
    # a causal pass over `seen` keys has as many pairs as this one
    seen = pairs / step.new_tokens + (step.new_tokens - 1.0) * 0.5
    run = _PADDED_HEADS * ceil(heads / _PADDED_HEADS)
    shape = AttentionShape(
        ctx.sequences, step.new_tokens, seen / (cp if is_decode else 1), run, 1.0, d, d, None, is_decode
    )
    ops = [Op("attention_scores", _kind(ctx), work, shape, _arithmetic(ctx), GROUP)]
    if cp > 1:
        ops.append(_merge(ctx, a, keys, act))
    return ops


def _merge(ctx: Context, a: CompressedAttention, keys: Num, output_bytes: Num) -> Op:
    """Context parallelism: prefill gathers the other ranks' rows, decode adds partial outputs up."""
    cp, tp = ctx.parallel.cp_size, ctx.parallel.tp_size
    if ctx.step.phase is Phase.DECODE:
        return collective(ctx, "context_parallel_reduce", OpKind.ALL_REDUCE, cp, output_bytes, tp)
    rows = ctx.sequences * keys * (float(a.head_dim) * ctx.model.storage.kv_cache.bytes_per_element)
    return collective(ctx, "context_parallel_gather", OpKind.ALL_GATHER, cp, rows, tp)


def lower_block_index(ctx: Context, a: GqaAttention) -> list[Op]:
    """An index over every key that keeps blocks of them: queries, one key, scores, and the best of each block written.

    Its heads follow the key-value heads, so tensor parallelism splits them down to one.
    """
    if a.index_n_heads is None or a.index_head_dim is None:
        return []
    heads, dim = max(1.0, a.index_n_heads / ctx.parallel.tp_size), float(a.index_head_dim)
    pairs = causal_pairs(ctx.step.new_tokens, ctx.step.cached_tokens, None)
    element = ctx.model.storage.kv_cache.bytes_per_element
    return [
        gemm(ctx, "index_proj", ctx.tokens, (heads + 1.0) * dim, ctx.hidden, ctx.model.storage.attention, GROUP),
        elementwise(ctx, "index_norm_and_rope", ctx.tokens, (heads + 1.0) * dim, GROUP),
        # for each head the best score of each block of 128 keys is written
        _index_scores(ctx, pairs, ctx.step.kv_len, heads, dim, element, heads * 4.0 / 128.0),
    ]


def _arithmetic(ctx: Context) -> Dtype:
    """Rows are unpacked to 16 bits before products (FlashMLA's sparse kernels), whatever the cache holds."""
    cache = ctx.model.storage.kv_cache.dtype
    return Dtype.FP32 if cache is Dtype.FP32 else Dtype.BF16


def _kind(ctx: Context) -> OpKind:
    return OpKind.ATTENTION_DECODE if ctx.step.phase is Phase.DECODE else OpKind.ATTENTION_PREFILL
