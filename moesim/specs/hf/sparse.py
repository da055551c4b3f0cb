"""MoE decoders with grouped-query attention whose layers are all alike or nearly: Mixtral, Qwen-MoE, OLMoE, gpt-oss."""

from __future__ import annotations

from moesim.specs.hf.dense import layer_types, qwen_windows
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import (
    FULL,
    SLIDING,
    Parts,
    assemble,
    base,
    check_top_k,
    dense_ffn,
    read_gqa,
    tied,
    window_plan,
)
from moesim.specs.model import Ffn, MoeFfn

__all__ = ["gpt_oss", "mixtral", "moe_ffn", "olmoe", "qwen2_moe", "qwen3_moe", "sparse_steps"]


def moe_ffn(
    fields: Fields,
    *,
    experts: tuple[str, ...] = ("num_local_experts", "num_experts"),
    width: str = "intermediate_size",
    top_k: str = "num_experts_per_tok",
    bias: bool = False,
    router_bias: bool = False,
    shared_intermediate_size: int = 0,
    n_shared_experts: int | None = None,
    shared_expert_gate: bool = False,
    extra_params: int = 0,
) -> MoeFfn:
    """An MoE block from the keys given."""
    n_experts, k = fields.count(*experts), fields.count(top_k)
    check_top_k(fields, top_k, k, n_experts)
    n_shared = n_shared_experts if n_shared_experts is not None else int(shared_intermediate_size > 0)
    return MoeFfn(
        n_routed_experts=n_experts, num_experts_per_tok=k, moe_intermediate_size=fields.count(width), bias=bias,
        router_bias=router_bias, n_shared_experts=n_shared, shared_intermediate_size=shared_intermediate_size,
        shared_expert_gate=shared_expert_gate and shared_intermediate_size > 0, extra_params=extra_params,
    )  # fmt: skip


def mixtral(fields: Fields) -> Parts:
    """Mixtral: MoE in every layer; a window in all layers where `sliding_window` is given."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias)
    if fields.text("moe_type", "modulelist") != "modulelist":
        raise fields.refuse("moe_type", "is not understood")
    window = fields.optional_count("sliding_window")
    plan = layer_types(fields, sizes.n_layers, [SLIDING if window else FULL] * sizes.n_layers)
    tie = tied(fields)
    return assemble(sizes, window_plan(attention, plan, window), [moe_ffn(fields)] * sizes.n_layers, tie=tie)


def sparse_steps(fields: Fields, n_layers: int, moe: MoeFfn) -> list[Ffn]:
    """Qwen's plan: MoE in every `decoder_sparse_step`-th layer except those in `mlp_only_layers`; dense elsewhere."""
    step = fields.count("decoder_sparse_step", default=1)
    only_dense = fields.indices("mlp_only_layers", n_layers)
    is_moe = [(i + 1) % step == 0 and i not in only_dense for i in range(n_layers)]
    fields.has("intermediate_size")
    dense = None if all(is_moe) else dense_ffn(fields)
    return [moe if sparse or dense is None else dense for sparse in is_moe]


def qwen2_moe(fields: Fields) -> Parts:
    """Qwen1.5-MoE and Qwen2-MoE: a shared expert behind a sigmoid gate; biases on query, key and value."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=fields.flag("qkv_bias", True))
    shared = fields.count("shared_expert_intermediate_size", default=5632, least=0)
    moe = moe_ffn(fields, width="moe_intermediate_size", shared_intermediate_size=shared, shared_expert_gate=True)
    plan, window = qwen_windows(fields, sizes.n_layers)
    tie = tied(fields)
    attentions = window_plan(attention, plan, window)
    return assemble(sizes, attentions, sparse_steps(fields, sizes.n_layers, moe), tie=tie)


def qwen3_moe(fields: Fields) -> Parts:
    """Qwen3-MoE: no shared expert, norms on query and key heads."""
    sizes = base(fields)
    bias = fields.flag("attention_bias") or fields.flag("qkv_bias")
    fields.flag("use_qk_norm", True)
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias, qk_norm="head")
    moe = moe_ffn(fields, width="moe_intermediate_size")
    plan, window = qwen_windows(fields, sizes.n_layers)
    tie = tied(fields)
    attentions = window_plan(attention, plan, window)
    return assemble(sizes, attentions, sparse_steps(fields, sizes.n_layers, moe), tie=tie)


def olmoe(fields: Fields) -> Parts:
    """OLMoE: MoE in every layer, norms over all query and key heads together."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias, qk_norm="full")
    fields.has("clip_qkv")
    tie = tied(fields)
    return assemble(sizes, [attention] * sizes.n_layers, [moe_ffn(fields)] * sizes.n_layers, tie=tie)


def gpt_oss(fields: Fields) -> Parts:
    """gpt-oss: windowed and full layers in turn, attention sinks, biases everywhere, router with bias."""
    sizes = base(fields)
    bias = fields.flag("attention_bias", True)
    attention = read_gqa(fields, sizes.hidden_size, head_dim=64, qkv_bias=bias, o_bias=bias, sinks=True)
    window = fields.count("sliding_window", default=128)
    plan = layer_types(fields, sizes.n_layers, [FULL if i % 2 else SLIDING for i in range(sizes.n_layers)])
    fields.count("num_experts_per_tok", "experts_per_token")
    fields.has("initial_context_length")
    moe = moe_ffn(fields, bias=True, router_bias=True)
    tie = tied(fields)
    return assemble(sizes, window_plan(attention, plan, window), [moe] * sizes.n_layers, tie=tie)
