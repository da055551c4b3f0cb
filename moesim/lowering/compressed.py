"""Attention over what an index picks: pooled rows (DeepSeek-V4), latents (DeepSeek-V3.2, GLM-5), blocks of keys (MiniMax-M3).

Letters: t tokens on the rank, S context, r tokens to a row, h heads, d head width.
"""

from __future__ import annotations

from math import ceil

from moesim.lowering.common import Context, causal_pairs, collective, elementwise, gemm
from moesim.ops import AttentionShape, Num, Op, OpKind, Phase, Work, minimum
from moesim.specs.dtypes import Dtype
from moesim.specs.model import CompressedAttention, GqaAttention, MlaAttention

__all__ = ["lower_block_index", "lower_compressed", "lower_token_index", "sparse_mla_scores"]

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
        _top_k(ctx, pairs),
    ]


def lower_token_index(ctx: Context, a: MlaAttention) -> list[Op]:
    """DeepSeek sparse attention's index: every index head scores all keys, and `index_topk` of them are kept; not split by TP.

    Its keys are a cache of their own of 8 bits with a scale per key, whatever the format of the other, and products are in 8
    bits (DeepSeek-V3.2-Exp's release and its kernels in DeepGEMM). Norm of the key, rotation, and quantising both are small
    kernels (vLLM's indexer).
    """
    if a.index_n_heads is None or a.index_head_dim is None:
        return []
    t, storage, heads, dim = ctx.tokens, ctx.model.storage.attention, float(a.index_n_heads), float(a.index_head_dim)
    pairs = causal_pairs(ctx.step.new_tokens, ctx.step.cached_tokens, None)
    q_in = float(a.q_lora_rank or ctx.model.hidden_size)
    return [
        gemm(ctx, "index_q_proj", t, heads * dim, q_in, storage, GROUP),
        gemm(ctx, "index_k_proj", t, dim + heads, ctx.hidden, storage, GROUP),
        elementwise(ctx, "index_norm_and_rope", t, (heads + 1.0) * dim, GROUP, n_kernels=4),
        _index_scores(ctx, pairs, ctx.step.kv_len, heads, dim, 1.0 + 4.0 / dim, 4.0, Dtype.FP8),
        _top_k(ctx, pairs),
    ]


def _top_k(ctx: Context, pairs: Num) -> Op:
    """The choice of the best of each token's scores; `pairs` of one sequence. CP ranks share keys of a decode step."""
    width = pairs / ctx.step.new_tokens
    if ctx.step.phase is Phase.DECODE:
        width = width / ctx.parallel.cp_size
    return elementwise(ctx, "index_top_k", ctx.tokens, width, GROUP, reads=_TOP_K_READS, writes=0.0)


def _index_scores(
    ctx: Context, pairs: Num, keys: Num, heads: float, dim: float, key_bytes: float, written_bytes: float,
    dtype: Dtype | None = None,
) -> Op:  # fmt: skip
    """Products of small heads with one key each: `pairs` and `keys` of one sequence, bytes of a key element and of a score.

    Context-parallel ranks share the queries of a prefill and the keys of a decode step.
    """
    n, cp = ctx.sequences, ctx.parallel.cp_size
    pairs, keys = pairs / cp, (keys / cp if ctx.step.phase is Phase.DECODE else keys)
    read = n * keys * (dim * key_bytes) + ctx.tokens * (heads * dim)
    work = Work(n * pairs * (2.0 * heads * dim), read, n * pairs * written_bytes)
    shape = AttentionShape(n, ctx.step.new_tokens, keys, heads, 1.0, dim, 0.0, None, True)
    return Op("index_scores", _kind(ctx), work, shape, dtype or ctx.model.storage.kv_cache.dtype, GROUP)


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
    ops = [_sparse_scores(ctx, heads, (pairs, pairs), keys, d, d)]
    if cp > 1:
        ops.append(_merge(ctx, heads * d, keys * (d * ctx.model.storage.kv_cache.bytes_per_element)))
    return ops


def sparse_mla_scores(ctx: Context, a: MlaAttention, heads: float, latent: float, top: int) -> list[Op]:
    """Scores and values over the `top` latents that an index picked, absorbed in prefill as in decode: one key head.

    Kernels run through `top` places for every query, also where the context is shorter (empty ones are masked). CP ranks gather
    latents and the index's keys.
    """
    step, value = ctx.step, float(a.kv_lora_rank)
    pairs = causal_pairs(step.new_tokens, step.cached_tokens, top)
    keys: Num = minimum(step.kv_len, float(top) * step.new_tokens)
    ops = [_sparse_scores(ctx, heads, (pairs, step.new_tokens * float(top)), keys, latent, value)]
    if ctx.parallel.cp_size > 1:
        row = latent * ctx.model.storage.kv_cache.bytes_per_element + float(a.index_head_dim or 0)
        ops.append(_merge(ctx, heads * value, step.kv_len * row))
    return ops


def _sparse_scores(
    ctx: Context, heads: float, pairs: tuple[Num, Num], keys: Num, qk_dim: float, v_dim: float
) -> Op:  # fmt: skip
    """One key head of rows that are values too; `pairs` that count, and that a kernel runs through, of one sequence."""
    step, cp, is_decode = ctx.step, ctx.parallel.cp_size, ctx.step.phase is Phase.DECODE
    useful, run_pairs = pairs
    read = ctx.sequences * keys * (qk_dim * ctx.model.storage.kv_cache.bytes_per_element)
    asked, given = (ctx.tokens * (heads * dim * ctx.activation_bytes) for dim in (qk_dim, v_dim))
    n_flop = ctx.sequences * useful / cp * (2.0 * heads * (qk_dim + v_dim))
    work = Work(n_flop, (read / cp if is_decode else read) + asked, given)
    # a causal pass over `seen` keys has as many pairs as this one
    seen = run_pairs / step.new_tokens + (step.new_tokens - 1.0) * 0.5
    run = _PADDED_HEADS * ceil(heads / _PADDED_HEADS)
    shape = AttentionShape(
        ctx.sequences, step.new_tokens, seen / (cp if is_decode else 1), run, 1.0, qk_dim, v_dim, None, is_decode
    )
    return Op("attention_scores", _kind(ctx), work, shape, _arithmetic(ctx), GROUP)


def _merge(ctx: Context, output_width: float, gathered_bytes: Num) -> Op:
    """Context parallelism: prefill gathers the other ranks' rows (bytes of a sequence), decode adds partial outputs up."""
    cp, tp = ctx.parallel.cp_size, ctx.parallel.tp_size
    if ctx.step.phase is Phase.DECODE:
        output_bytes = ctx.tokens * (output_width * ctx.activation_bytes)
        return collective(ctx, "context_parallel_reduce", OpKind.ALL_REDUCE, cp, output_bytes, tp)
    return collective(ctx, "context_parallel_gather", OpKind.ALL_GATHER, cp, ctx.sequences * gathered_bytes, tp)


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
