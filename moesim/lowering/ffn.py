"""Feed-forward of one layer on one rank. A dense block is the one-expert case: the same products, no router and no dispatch.

Letters: t tokens on the rank, D hidden size, F width, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.lowering.common import Context, after_reduce, collective, elementwise, gemm
from moesim.lowering.load import MoeLoad
from moesim.ops import ExchangeShape, MoeShape, Num, Op, OpKind, Work, experts_call
from moesim.specs.dtypes import ELEMENT_BYTES, Dtype, Storage
from moesim.specs.model import DenseFfn, MoeFfn

__all__ = ["exchange", "lower_dense", "lower_moe"]

Array = NDArray[np.float64]
#: Bytes of an element sent in fp8 with its share of a 4-byte scale per 128.
NARROW_ROW = 1.0 + 4.0 / 128.0


def lower_dense(ctx: Context, ffn: DenseFfn) -> list[Op]:
    """Operators of a dense block that is split over the tensor-parallel ranks."""
    norm = elementwise(ctx, "ffn_norm", ctx.tokens, ctx.hidden, "norm", reads=2.0, writes=2.0)
    ops = [replace(norm, inside=after_reduce(ctx, "attention"))]
    ops += _mlp(
        ctx, "ffn", ffn.intermediate_size / ctx.parallel.tp_size, ffn.gated, ctx.model.storage.dense_ffn, "dense_ffn"
    )
    return ops + _tensor_reduce(ctx, "ffn_all_reduce")


def lower_moe(ctx: Context, ffn: MoeFfn, load: MoeLoad) -> list[Op]:
    """Operators of a Mixture-of-Experts block: router, permute, dispatch, experts, combine, shared experts.

    With data-parallel attention and expert parallelism tokens travel (dispatch and combine); with tensor-parallel attention
    every rank has every token and the partial sums are reduced; with data-parallel attention and sliced experts tokens are
    gathered and results scattered. Where tokens travel, tensor-parallel ranks have a share of their group's tokens each, from
    before the norm until all are gathered at the end; shared experts are whole on each.
    """
    p, travels = ctx.parallel, ctx.exchanges
    gathers, grouped = p.dp_size * p.cp_size > 1 and p.ep_size == 1, _is_grouped(ctx, load)
    norm = elementwise(ctx, "ffn_norm", _own_tokens(ctx, travels), ctx.hidden, "norm", reads=2.0, writes=2.0)
    ops = [
        replace(norm, inside="" if travels else after_reduce(ctx, "attention")),
        *_route(ctx, load, travels),
        *_shared(ctx, ffn, travels),
    ]
    if travels:
        ops.append(exchange(ctx, "dispatch", OpKind.DISPATCH, load))
    elif gathers:
        ops.append(_gather(ctx, "expert_all_gather", OpKind.ALL_GATHER, p.n_stage_ranks))
    ops.append(_experts(ctx, ffn, load))
    if not travels:
        # partial sums of a rank's own experts, before ranks add theirs
        seen = _seen_tokens(ctx)
        ops.append(elementwise(ctx, "unpermute", seen, ctx.hidden, "permute", reads=load.n_assignments / seen))
    if travels:
        ops.append(exchange(ctx, "combine", OpKind.COMBINE, load))
        # the exchange's kernels sum a token's rows; what is left is scaling and adding the shared experts' output
        reads = 2.0 if ffn.shared_intermediate_size or ffn.dense_residual is not None else 1.0
        ops.append(elementwise(ctx, "unpermute", _own_tokens(ctx, True), ctx.hidden, "permute", reads=reads))
    elif gathers:
        ops.append(_gather(ctx, "expert_reduce_scatter", OpKind.REDUCE_SCATTER, p.n_stage_ranks))
    if not travels and not gathers:
        return ops + _tensor_reduce(ctx, "ffn_all_reduce")
    if p.tp_size > 1:
        ops.append(_gather(ctx, "ffn_all_gather", OpKind.ALL_GATHER, p.tp_size))
    return [replace(op, is_grouped=True) if op.group == "permute" else op for op in ops] if grouped else ops


def _mlp(
    ctx: Context, name: str, width: Num, gated: bool, storage: Storage, group: str, under: str | None = None,
    tokens: Num | None = None,
) -> list[Op]:  # fmt: skip
    n_in, t = 2.0 if gated else 1.0, ctx.tokens if tokens is None else tokens
    return [
        gemm(ctx, f"{name}_up", t, width * n_in, ctx.hidden, storage, group, under=under),
        elementwise(ctx, f"{name}_act", t, width, group, reads=n_in, under=under),
        gemm(ctx, f"{name}_down", t, ctx.hidden, width, storage, group, under=under),
    ]  # fmt: skip


def _tensor_reduce(ctx: Context, name: str) -> list[Op]:
    if ctx.parallel.tp_size == 1:
        return []
    message = ctx.tokens * (ctx.hidden * ctx.activation_bytes)
    return [collective(ctx, name, OpKind.ALL_REDUCE, ctx.parallel.tp_size, message)]


def _own_tokens(ctx: Context, travels: bool) -> Num:
    """Tokens that a rank routes itself: with travelling tokens, TP ranks share their group's tokens out."""
    return ctx.tokens / ctx.parallel.tp_size if travels else ctx.tokens


def _seen_tokens(ctx: Context) -> Num:
    """Tokens whose rows a rank has at hand where tokens do not travel: its group's, or everybody's after a gather."""
    p = ctx.parallel
    return ctx.tokens * float(p.dp_size * p.cp_size)


def _route(ctx: Context, load: MoeLoad, travels: bool) -> list[Op]:
    own, seen = _own_tokens(ctx, travels), _seen_tokens(ctx)
    call = "" if travels else experts_call(ctx.model.storage.routed_experts.dtype, ctx.parallel.ep_size)
    ops = [
        gemm(ctx, "router", own, load.n_experts, ctx.hidden, ctx.model.storage.router, "router"),
        elementwise(ctx, "top_k", own, load.n_experts, "router", reads=2.0, inside=call),
    ]
    if not travels:
        writes = load.n_assignments / seen
        return [*ops, elementwise(ctx, "permute", seen, ctx.hidden, "permute", writes=writes)]
    if _is_low_latency(ctx) or not _narrow(ctx):
        return ops  # the low-latency kernel casts while it sends
    return [*ops, elementwise(ctx, "permute", own, ctx.hidden, "permute", writes=NARROW_ROW / ctx.activation_bytes)]


def _is_low_latency(ctx: Context) -> bool:
    """Which of the exchange's two modes a pass uses."""
    return ctx.step.is_low_latency


def _narrow(ctx: Context) -> bool:
    """Whether rows are dispatched in fp8, with a 4-byte scale per 128 elements."""
    return ELEMENT_BYTES[ctx.model.storage.expert_activation] <= 1.0


def _experts(ctx: Context, ffn: MoeFfn, load: MoeLoad) -> Op:
    """All routed experts of the rank: bytes follow the distinct experts hit, flops the padded tokens, time the fullest rank."""
    storage, etp = ctx.model.storage, ctx.parallel.etp_size
    width = ffn.moe_intermediate_size / etp
    n_mats = 3.0 if ffn.gated else 2.0
    d = ctx.hidden
    weight = load.n_experts_hit * (n_mats * d * width * storage.routed_experts.bytes_per_element)
    act = max(1.0, ELEMENT_BYTES[storage.expert_activation])
    read = weight + load.n_assignments * (d * act + width * act)
    write = load.n_assignments * (d * 2.0 + width * ((n_mats - 1.0) * 2.0))
    work = Work(load.n_padded * (2.0 * n_mats * d * width), read, write)
    n_local = load.n_slots / ctx.parallel.ep_size
    arrived = _arrived_tokens(ctx, load)
    shape = MoeShape(
        n_tokens=arrived, n_assignments=load.n_assignments, n_padded=load.n_padded, n_experts_hit=load.n_experts_hit,
        max_expert_tokens=load.max_expert_tokens, n_local_experts=n_local, hidden_size=d, inter_size=width,
        top_k=load.top_k, gated=ffn.gated,
    )  # fmt: skip
    side_bytes, n_side = _around_products(ctx, ffn, load, width, arrived) if ctx.exchanges else (0.0, 0)
    return Op(
        "experts",
        OpKind.GROUPED_GEMM,
        work,
        shape,
        _expert_arithmetic(storage.routed_experts, storage.expert_activation),
        "experts",
        weight_dtype=storage.routed_experts.dtype,
        side_bytes=side_bytes,
        n_side_kernels=n_side,
        is_grouped=_is_grouped(ctx, load),
    )


def _is_grouped(ctx: Context, load: MoeLoad) -> bool:
    """Whether 8-bit experts stand behind an exchange that crosses scale-up domains."""
    return ctx.exchanges and _narrow(ctx) and bool(np.any(np.asarray(load.nic_out_copies) > 0.0))


def _arrived_tokens(ctx: Context, load: MoeLoad) -> Num:
    """Tokens that the rank's experts are given: all of the pass, or those that an exchange brought."""
    if not ctx.exchanges:
        return ctx.step.n_tokens
    return load.n_assignments * load.tokens_per_pair


def _around_products(ctx: Context, ffn: MoeFfn, load: MoeLoad, width: float, rows: Num) -> tuple[Num, int]:
    """Bytes and number of the kernels around two grouped products on tokens that arrived through an exchange.

    n pairs of token and local expert, of r tokens (`rows`); e bytes per dispatched element, g products in. Low latency: rows
    arrive in order; activation and cast in one, n F (2 g + e). Normal mode: rows spread to their experts, r D e + n D e;
    activation, n F (2 g + 2); cast, n F (2 + e), in 8 bits only; weighted sum of a token's rows, n D 2 + r D 2. Source: SGLang,
    `DeepEPMoE.forward_deepgemm_contiguous` and `forward_deepgemm_masked` (April 2025).
    """
    n, d, narrow = load.n_assignments, ctx.hidden, _narrow(ctx)
    e, g = (NARROW_ROW if narrow else 2.0), (2.0 if ffn.gated else 1.0)
    if _is_low_latency(ctx):
        return n * (width * (2.0 * g + e)), 1
    act = n * (width * (2.0 * g + 2.0))
    cast = n * (width * (2.0 + e)) if narrow else 0.0
    return rows * (d * (e + 2.0)) + n * (d * (e + 2.0)) + act + cast, 4 if narrow else 3


def _expert_arithmetic(weights: Storage, activation: Dtype) -> Dtype:
    """The format that picks the arithmetic: weight-only formats run in the activations' format."""
    return activation if ELEMENT_BYTES[activation] > ELEMENT_BYTES[weights.dtype] else weights.dtype


def exchange(ctx: Context, name: str, kind: OpKind, load: MoeLoad) -> Op:
    """Dispatch sends activations out, in fp8 with scales where experts compute in 8 bits or less; combine returns 16-bit rows."""
    d = ctx.hidden
    per_copy = d * NARROW_ROW + 16.0 if _narrow(ctx) and kind is OpKind.DISPATCH else d * 2.0 + 16.0
    out, into = load.up_out_copies * per_copy, load.up_in_copies * per_copy
    nic_out, nic_in = load.nic_out_copies * per_copy, load.nic_in_copies * per_copy
    if kind is OpKind.COMBINE:
        out, into, nic_out, nic_in = into, out, nic_in, nic_out
    n = ctx.parallel.n_stage_ranks
    shape = ExchangeShape(
        n, out, into, nic_out, nic_in, float(n - 1), per_copy, _own_tokens(ctx, True) * per_copy, load.n_experts,
        is_low_latency=_is_low_latency(ctx), pairs=_pair_bytes(load, per_copy, kind),
    )  # fmt: skip
    return Op(name, kind, Work(0.0, out + nic_out, into + nic_in), shape, ctx.activation, "communication")


def _pair_bytes(load: MoeLoad, per_copy: float, kind: OpKind) -> tuple[Array, Array] | None:
    if load.pair_copies is None:
        return None
    up, nic = (copies * per_copy for copies in load.pair_copies)
    return (up.transpose(0, 2, 1), nic.transpose(0, 2, 1)) if kind is OpKind.COMBINE else (up, nic)


def _gather(ctx: Context, name: str, kind: OpKind, n_ranks: int) -> Op:
    """All-gather or reduce-scatter of token rows over `n_ranks` ranks; the buffer is what all of them hold together."""
    n_groups = n_ranks / ctx.parallel.tp_size
    message = ctx.tokens * (ctx.hidden * ctx.activation_bytes * max(1.0, n_groups))
    return collective(ctx, name, kind, n_ranks, message)


def _shared(ctx: Context, ffn: MoeFfn, travels: bool) -> list[Op]:
    """Sliced like a dense block; where tokens travel, whole, and each rank computes its own tokens."""
    tp, storage = 1.0 if travels else float(ctx.parallel.tp_size), ctx.model.storage
    tokens, under = _own_tokens(ctx, travels), "dispatch" if travels else None
    ops: list[Op] = []
    if ffn.shared_intermediate_size:
        width, kept = ffn.shared_intermediate_size / tp, storage.shared_experts
        ops += _mlp(ctx, "shared_experts", width, ffn.gated, kept, "shared_experts", under, tokens)
    if ffn.dense_residual is not None:
        width, kept = ffn.dense_residual.intermediate_size / tp, storage.dense_ffn
        ops += _mlp(ctx, "dense_residual", width, ffn.dense_residual.gated, kept, "shared_experts", under, tokens)
    return ops
