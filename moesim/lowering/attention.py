"""Attention of one layer on one rank: projections, scores and values, and the collectives that tensor and context splits need.

Letters: t tokens on the rank, D hidden size, h heads, S keys, d head width.
"""

from __future__ import annotations

from dataclasses import replace

from moesim.lowering.common import Context, after_reduce, causal_pairs, collective, elementwise, gemm
from moesim.lowering.compressed import lower_block_index, lower_compressed, lower_token_index, sparse_mla_scores
from moesim.ops import SCORES, AttentionShape, Num, Op, OpKind, Phase, Work, minimum
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.model import Attention, CompressedAttention, GqaAttention, LinearAttention, MlaAttention

__all__ = ["lower_attention"]

GROUP = "attention"


def lower_attention(ctx: Context, attention: Attention, *, scatters: bool = False) -> list[Op]:
    """Operators of one attention block, norm before it included.

    With `scatters` each tensor-parallel rank goes on with its share of the tokens (vLLM's sequence-parallel MoE, SGLang's
    scattered mode): partial sums are reduced and scattered instead of reduced everywhere.
    """
    norm = elementwise(ctx, "attention_norm", ctx.tokens, ctx.hidden, "norm", reads=2.0, writes=2.0)
    ops = [replace(norm, inside="" if ctx.exchanges else after_reduce(ctx, "ffn"))]
    if isinstance(attention, GqaAttention):
        ops += _gqa(ctx, attention)
    elif isinstance(attention, MlaAttention):
        ops += _mla(ctx, attention)
    elif isinstance(attention, CompressedAttention):
        ops += lower_compressed(ctx, attention)
    else:
        ops += _linear(ctx, attention)
    if ctx.parallel.tp_size > 1:
        message = ctx.tokens * (ctx.hidden * ctx.activation_bytes)
        name, kind = "attention_all_reduce", OpKind.ALL_REDUCE
        if scatters:
            name, kind = "attention_reduce_scatter", OpKind.REDUCE_SCATTER
        ops.append(collective(ctx, name, kind, ctx.parallel.tp_size, message))
    return ops


def _gqa(ctx: Context, a: GqaAttention) -> list[Op]:
    tp, t, storage = ctx.parallel.tp_size, ctx.tokens, ctx.model.storage.attention
    heads = a.n_heads / tp
    kv_heads = max(1.0, a.n_kv_heads / tp)
    n_q = heads * (a.head_dim + (a.v_head_dim if a.output_gate else 0))
    n_kv = 0.0 if a.reuses_kv else kv_heads * (a.head_dim + (0 if a.k_is_v else a.v_head_dim))
    ops = [
        gemm(ctx, "qkv_proj", t, n_q + n_kv, ctx.hidden, storage, GROUP),
        *_qk_norm(ctx, a, heads + kv_heads),
        elementwise(
            ctx, "rope_and_cache", t, (heads + (0 if a.reuses_kv else 2 * kv_heads)) * a.head_dim, GROUP, inside=SCORES
        ),
    ]
    kv_row = kv_heads * (a.head_dim + a.v_head_dim)
    ops += lower_block_index(ctx, a)
    seen = a.sliding_window if a.index_topk is None else a.index_topk
    ops += _scores(ctx, heads, kv_heads, float(a.head_dim), float(a.v_head_dim), kv_row, seen, is_mla=False)
    ops.append(gemm(ctx, "o_proj", t, ctx.hidden, heads * a.v_head_dim, storage, GROUP))
    return ops


def _qk_norm(ctx: Context, a: GqaAttention, heads: float) -> list[Op]:
    """Norms of queries and keys; where one spans all heads (not each its own), TP ranks add up two sums of squares per token."""
    if not a.extra_params or a.extra_params < 2 * a.head_dim:
        return []
    t = ctx.tokens
    ops = [elementwise(ctx, "qk_norm", t, heads * a.head_dim, GROUP)]
    if ctx.parallel.tp_size > 1 and a.extra_params >= (a.n_heads + a.n_kv_heads) * a.head_dim:
        ops.append(collective(ctx, "qk_norm_all_reduce", OpKind.ALL_REDUCE, ctx.parallel.tp_size, t * 8.0))
    return ops


def _mla(ctx: Context, a: MlaAttention) -> list[Op]:
    tp, t, storage = ctx.parallel.tp_size, ctx.tokens, ctx.model.storage.attention
    heads = a.n_heads / tp
    latent = float(a.kv_lora_rank + a.qk_rope_head_dim)
    ops: list[Op] = []
    if a.q_lora_rank is None:
        ops += [
            gemm(ctx, "q_proj", t, heads * a.qk_head_dim, ctx.hidden, storage, GROUP),
            gemm(ctx, "kv_a_proj", t, latent, ctx.hidden, storage, GROUP),
        ]
    else:
        ops += [
            gemm(ctx, "q_kv_a_proj", t, a.q_lora_rank + latent, ctx.hidden, storage, GROUP),
            gemm(ctx, "q_b_proj", t, heads * a.qk_head_dim, float(a.q_lora_rank), storage, GROUP),
        ]
    ops.append(elementwise(ctx, "rope_and_cache", t, latent + heads * a.qk_rope_head_dim, GROUP, inside=SCORES))
    ops += lower_token_index(ctx, a)
    # an index picks latents, so that prompts are absorbed too (FlashMLA's sparse kernels)
    ops += (
        _mla_absorbed(ctx, a, heads, latent)
        if ctx.step.phase is Phase.DECODE or a.index_topk is not None
        else _mla_naive(ctx, a, heads, latent, storage)
    )
    if a.output_gate:
        width = heads * a.v_head_dim
        ops += [
            gemm(ctx, "output_gate_proj", t, width, ctx.hidden, storage, GROUP),
            elementwise(ctx, "output_gate", t, width, GROUP, reads=2.0),
        ]
    ops.append(gemm(ctx, "o_proj", t, ctx.hidden, heads * a.v_head_dim, storage, GROUP))
    return ops


def _mla_naive(ctx: Context, a: MlaAttention, heads: float, latent: float, storage: Storage) -> list[Op]:
    """Prefill: keys and values are unpacked from the latent, for cached tokens too, and attention runs per head.

    With context parallelism ranks gather latents, which are much smaller than keys and values, and each unpacks them all.
    """
    unpacked = ctx.sequences * ctx.step.kv_len
    copies = _mla_copies(ctx, a, heads, unpacked) if ctx.exchanges else []
    kv_row = heads * (a.qk_head_dim + a.v_head_dim)
    return [
        gemm(
            ctx,
            "kv_b_proj",
            unpacked,
            heads * (a.qk_nope_head_dim + a.v_head_dim),
            float(a.kv_lora_rank),
            storage,
            GROUP,
        ),
        *copies,
        *_scores(
            ctx,
            heads,
            heads,
            float(a.qk_head_dim),
            float(a.v_head_dim),
            kv_row,
            None,
            is_mla=True,
            latent=latent,
        ),
    ]


def _mla_copies(ctx: Context, a: MlaAttention, heads: float, unpacked: Num) -> list[Op]:
    """Norms of the two latents, and queries and keys put together: [not rotated | rotated], the one rotated key once per head.

    Source: SGLang's DeepSeek-V2 model, `forward_normal` (May 2025); vLLM's copies alike. Values stay where they are.
    """
    latents = float((a.q_lora_rank or 0) + a.kv_lora_rank)
    rotated, plain = float(a.qk_rope_head_dim), float(a.qk_nope_head_dim)
    width = heads * (plain + rotated)
    return [
        elementwise(ctx, "latent_norm", ctx.tokens, latents, GROUP, n_kernels=2),
        elementwise(ctx, "query_copy", ctx.tokens, heads * rotated, GROUP),
        elementwise(
            ctx, "key_copy", unpacked, width, GROUP, reads=(heads * plain + rotated) / width, n_kernels=2
        ),
    ]  # fmt: skip


def _mla_absorbed(ctx: Context, a: MlaAttention, heads: float, latent: float) -> list[Op]:
    """Decode: the unpacking is folded into query and output, so every head reads the one latent (arXiv 2405.04434, 2.1.2).

    Norms of the two latents run side by side (SGLang's DeepSeek-V2 model on two streams in captured passes, TensorRT-LLM's MLA by
    maybe_execute_in_parallel): the time of one kernel.
    """
    t, storage, value = ctx.tokens, ctx.model.storage.attention, float(a.kv_lora_rank)
    if a.index_topk is not None:
        scores = sparse_mla_scores(ctx, a, heads, latent, a.index_topk)
    else:
        scores = _scores(ctx, heads, 1.0, latent, value, latent, None, is_mla=True)
    return [
        elementwise(ctx, "latent_norm", t, (a.q_lora_rank or 0) + value, GROUP),
        gemm(ctx, "q_absorb", t, float(a.kv_lora_rank), float(a.qk_nope_head_dim), storage, GROUP, n_batch=heads),
        *scores,
        gemm(ctx, "v_absorb", t, float(a.v_head_dim), float(a.kv_lora_rank), storage, GROUP, n_batch=heads),
    ]


def _scores(
    ctx: Context,
    heads: float,
    kv_heads: float,
    qk_dim: float,
    v_dim: float,
    kv_row: float,
    window: int | None,
    *,
    is_mla: bool,
    latent: float = 0.0,
) -> list[Op]:
    """Scores, softmax and values of the new tokens over the cache, and the merge that context parallelism needs."""
    step, cp = ctx.step, ctx.parallel.cp_size
    pairs = ctx.sequences * causal_pairs(step.new_tokens, step.cached_tokens, window)
    keys: Num = step.kv_len if window is None else minimum(step.kv_len, float(window) + step.new_tokens - 1.0)
    kv_bytes = ctx.model.storage.kv_cache.bytes_per_element
    is_decode = step.phase is Phase.DECODE
    naive_mla = is_mla and not is_decode
    read = ctx.sequences * keys * (kv_row * (2.0 if naive_mla else kv_bytes))
    pairs, read = pairs / cp, (read / cp if is_decode else read)
    act = ctx.activation_bytes
    q_bytes = ctx.tokens * (heads * qk_dim * act)
    o_bytes = ctx.tokens * (heads * v_dim * act)
    work = Work(pairs * (2.0 * heads * (qk_dim + v_dim)), read + q_bytes, o_bytes)
    kv_len = keys / cp if is_decode else keys
    shape = AttentionShape(ctx.sequences, step.new_tokens, kv_len, heads, kv_heads, qk_dim, v_dim, window, is_mla)
    ops = [Op("attention_scores", _kind(ctx), work, shape, _score_arithmetic(ctx), GROUP)]
    if cp > 1:
        gathered = step.kv_len * latent if naive_mla else keys * kv_row
        ops.append(_context_parallel_merge(ctx, gathered * kv_bytes, o_bytes))
    return ops


def _score_arithmetic(ctx: Context) -> Dtype:
    """Scores are computed in the cache's format: fp8 weights alone leave queries, keys and values in 16 bits."""
    cache = ctx.model.storage.kv_cache.dtype
    return cache if cache in (Dtype.FP8, Dtype.BF16, Dtype.FP16, Dtype.FP32) else Dtype.BF16


def _context_parallel_merge(ctx: Context, kv_bytes_per_sequence: Num, o_bytes: Num) -> Op:
    """Prefill gathers the other ranks' keys and values; decode sums partial outputs. CP ranks are `tp_size` apart."""
    cp, tp = ctx.parallel.cp_size, ctx.parallel.tp_size
    if ctx.step.phase is Phase.DECODE:
        return collective(ctx, "context_parallel_reduce", OpKind.ALL_REDUCE, cp, o_bytes, tp)
    return collective(ctx, "context_parallel_gather", OpKind.ALL_GATHER, cp, ctx.sequences * kv_bytes_per_sequence, tp)


def _linear(ctx: Context, a: LinearAttention) -> list[Op]:
    """Projections, a short convolution, gates, and a recurrence whose state is read and written once a pass (chunked in prefill).

    Projections go in and out (two kernels each way in serving stacks: large ones, and the small ones of gates); splitting, the
    convolution, gates and the gated norm take a kernel each.
    """
    tp, t, storage = ctx.parallel.tp_size, ctx.tokens, ctx.model.storage.attention
    state_bytes = ctx.sequences * (2.0 * a.state_elements / tp * 4.0)
    work = Work(t * (a.flops_per_token / tp), state_bytes * 0.5 + t * ctx.activation_bytes, state_bytes * 0.5)
    shape = AttentionShape(
        ctx.sequences, ctx.step.new_tokens, 0.0, a.n_heads / tp, (a.n_key_heads or a.n_heads) / tp,
        float(a.key_head_dim or 0), float(a.value_head_dim or 0), None, False,
    )  # fmt: skip
    width = a.n_proj_params / ctx.model.hidden_size / tp
    gates = min(2.0 * a.n_heads / tp, width / 3.0)
    # the output projection is about a third of the weights of the variants that are run (assumption)
    return [
        gemm(ctx, "linear_attention_proj", t, width * 2.0 / 3.0 - gates, ctx.hidden, storage, GROUP),
        gemm(ctx, "linear_attention_gates_proj", t, gates, ctx.hidden, storage, GROUP),
        elementwise(ctx, "linear_attention_conv", t, width * 2.0 / 3.0, GROUP, n_kernels=3),
        Op("linear_attention_state", _kind(ctx), work, shape, ctx.activation, GROUP),
        elementwise(ctx, "linear_attention_norm", t, width / 3.0, GROUP, reads=2.0),
        gemm(ctx, "linear_attention_out", t, ctx.hidden, width / 3.0, storage, GROUP),
    ]


def _kind(ctx: Context) -> OpKind:
    return OpKind.ATTENTION_DECODE if ctx.step.phase is Phase.DECODE else OpKind.ATTENTION_PREFILL
