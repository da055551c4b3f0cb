"""MoE decoders of 2025 and after: Llama 4, MiniMax-M2, GLM-4.5, MiMo-V2-Flash, Step-3.7-Flash, Gemma 4."""

from __future__ import annotations

from dataclasses import replace

from moesim.errors import InputError
from moesim.specs.hf.deepseek import moe_plan, routed
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import FULL, SLIDING, Parts, assemble, base, dense_ffn, read_gqa, tied, window_plan
from moesim.specs.hf.sparse import moe_ffn
from moesim.specs.model import Attention, Ffn, GqaAttention

__all__ = ["gemma4", "glm4_moe", "llama4", "mimo_v2_flash", "minimax_m2", "step3p7"]


def llama4(fields: Fields) -> Parts:
    """Llama 4: MoE in every n-th layer, one shared expert; three of four layers attend within chunks.

    Attention in chunks is read as a window of the chunk's size, an upper bound of what it reads. The norms of queries and
    keys have no weights.
    """
    sizes = base(fields)
    n = sizes.n_layers
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, head_dim=128, qkv_bias=bias, o_bias=bias)
    fields.flag("use_qk_norm", True)
    every = fields.count("no_rope_layer_interval", default=4)
    rope = fields.kinds("no_rope_layers", n, {0: FULL, 1: SLIDING}) if fields.any("no_rope_layers") else None
    kinds = {FULL: FULL, "chunked_attention": SLIDING}
    default = rope or [SLIDING if (i + 1) % every else FULL for i in range(n)]
    plan = fields.kinds("layer_types", n, kinds) or default
    chunk = fields.optional_count("attention_chunk_size")
    width = fields.count("intermediate_size")
    moe = moe_ffn(fields, n_shared_experts=1, shared_intermediate_size=width)
    step = fields.count("interleave_moe_layer_step", default=1)
    where = fields.indices("moe_layers", n) or frozenset(range(step - 1, n, step))
    dense = dense_ffn(fields, "intermediate_size_mlp")
    ffns: list[Ffn] = [moe if i in where else dense for i in range(n)]
    return assemble(sizes, window_plan(attention, plan, chunk), ffns, tie=tied(fields))


def minimax_m2(fields: Fields) -> Parts:
    """MiniMax-M2: full attention with norms over all heads, MoE in every layer, routing bias, MTP modules."""
    sizes = base(fields)
    kinds = fields.sequence("attn_type_list", sizes.n_layers)
    if kinds is not None and any(kind != 1 for kind in kinds):
        raise fields.refuse("attn_type_list", "only full attention (1) is modelled")
    norm = "none"
    if fields.flag("use_qk_norm", True):
        norm = {"per_layer": "full", "per_head": "head"}.get(fields.text("qk_norm_type", "per_layer"), "")
        if not norm:
            raise fields.refuse("qk_norm_type", "is not understood", "known: per_layer, per_head")
    attention = read_gqa(fields, sizes.hidden_size, head_dim=128, qk_norm=norm)
    shared = fields.count("shared_intermediate_size", default=0, least=0)
    moe = moe_ffn(fields, router_bias=fields.flag("use_routing_bias", True), shared_intermediate_size=shared)
    n_modules, per_module = (
        fields.count("num_mtp_modules", default=0, least=0),
        fields.count("mtp_transformer_layers", default=1),
    )
    n_mtp = n_modules * per_module if fields.flag("use_mtp") else 0
    tie = tied(fields)
    return assemble(sizes, [attention] * sizes.n_layers, [moe] * sizes.n_layers, tie=tie, mtp_layers=n_mtp)


def glm4_moe(fields: Fields) -> Parts:
    """GLM-4.5 and 4.6: leading dense layers, a shared expert, score correction bias, biases on query, key and value."""
    sizes = base(fields)
    norm = "head" if fields.flag("use_qk_norm") else "none"
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=fields.flag("attention_bias"), qk_norm=norm)
    moe, dense = routed(fields, router_bias=True), dense_ffn(fields)
    ffns: list[Ffn] = [moe if sparse else dense for sparse in moe_plan(fields, sizes.n_layers)]
    n_mtp = fields.count("num_nextn_predict_layers", "num_mtp_layers", default=0, least=0)
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tied(fields), mtp_layers=n_mtp)


def mimo_v2_flash(fields: Fields) -> Parts:
    """MiMo-V2-Flash: mostly windowed layers with sinks and more key-value heads; values narrower than keys."""
    sizes = base(fields)
    fields.has("attention_chunk_size")
    full = _wide_gqa(fields, "", sinks=fields.flag("add_full_attention_sink_bias"))
    sliding = _wide_gqa(fields, "swa_", sinks=fields.flag("add_swa_attention_sink_bias", True))
    window = fields.count("sliding_window", "sliding_window_size", default=128)
    sliding = sliding.model_copy(update={"sliding_window": window})
    n = sizes.n_layers
    plan: list[Attention] | None = fields.kinds("hybrid_layer_pattern", n, {0: full, 1: sliding})
    plan = plan or fields.kinds("layer_types", n, {FULL: full, SLIDING: sliding})
    plan = plan or [full if i == 0 or (i + 1) % 6 == 0 else sliding for i in range(n)]
    moe, dense = routed(fields, router_bias=fields.text("topk_method", "noaux_tc") == "noaux_tc"), dense_ffn(fields)
    ffns: list[Ffn] = [moe if sparse else dense for sparse in moe_plan(fields, n)]
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    return assemble(sizes, plan, ffns, tie=tied(fields), mtp_layers=n_mtp)


def _wide_gqa(fields: Fields, prefix: str, sinks: bool) -> GqaAttention:
    """Attention under keys with a prefix; the windowed kind has twice the key-value heads unless told."""
    n_heads = fields.count(f"{prefix}num_attention_heads", default=fields.count("num_attention_heads"))
    n_kv = fields.count(
        f"{prefix}num_key_value_heads", default=fields.count("num_key_value_heads") * (2 if prefix else 1)
    )
    if n_heads % n_kv:
        raise fields.refuse(f"{prefix}num_key_value_heads", "must divide the number of heads")
    head_dim = fields.count(f"{prefix}head_dim", default=fields.count("head_dim", default=192))
    return GqaAttention(
        n_heads=n_heads, n_kv_heads=n_kv, head_dim=head_dim,
        v_head_dim=fields.count(f"{prefix}v_head_dim", default=fields.count("v_head_dim", default=128)),
        qkv_bias=fields.flag("attention_bias"), extra_params=n_heads if sinks else 0,
    )  # fmt: skip


def step3p7(fields: Fields) -> Parts:
    """Step-3.5 and 3.7 Flash: a gate per head, windowed layers that may have more heads, one shared expert, dense MTP layers."""
    sizes = base(fields)
    n = sizes.n_layers
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    full = _head_gated(fields, sizes.hidden_size, fields.count("num_attention_heads"))
    other = fields.sub("attention_other_setting")
    wide = other.count("num_attention_heads", default=full.n_heads)
    wide = fields.count("num_sliding_attention_heads", default=wide)
    sliding = _head_gated(fields, sizes.hidden_size, wide)
    sliding = sliding.model_copy(update={"sliding_window": fields.optional_count("sliding_window")})
    plan = fields.kinds("layer_types", n, {FULL: full, SLIDING: sliding}) or [full] * n
    width = fields.count("share_expert_dim", "share_expert_dims", default=1280)
    n_shared = fields.count("n_shared_experts", default=1)
    moe = moe_ffn(
        fields, experts=("num_experts", "n_routed_experts", "moe_num_experts"), width="moe_intermediate_size",
        n_shared_experts=n_shared, shared_intermediate_size=n_shared * width,
        router_bias=fields.flag("use_moe_router_bias"),
    )  # fmt: skip
    dense = dense_ffn(fields)
    ffns: list[Ffn] = [moe if sparse else dense for sparse in moe_plan(fields, n, first=3)]
    parts = assemble(sizes, plan, ffns, tie=tied(fields), mtp_layers=n_mtp)
    last = parts.layers[-1].model_copy(update={"ffn": dense})
    return replace(parts, mtp_layers=(last,) * n_mtp)


def _head_gated(fields: Fields, hidden_size: int, n_heads: int) -> GqaAttention:
    n_kv, width = fields.count("num_key_value_heads"), fields.count("head_dim", default=128)
    if n_heads % n_kv:
        raise fields.refuse("num_key_value_heads", "must divide the number of heads")
    return GqaAttention(n_heads=n_heads, n_kv_heads=n_kv, head_dim=width, v_head_dim=width,
                        extra_params=2 * width + hidden_size * n_heads)  # fmt: skip


def gemma4(fields: Fields) -> Parts:
    """Gemma 4: windowed and full layers of different head widths; full layers use keys as values; experts beside a dense FFN.

    Raises:
        InputError: per-layer embeddings, shared key-value layers or double-wide MLPs (the small models of the family).
    """
    sizes = base(fields)
    n, hidden = sizes.n_layers, sizes.hidden_size
    for key in ("hidden_size_per_layer_input", "num_kv_shared_layers", "use_double_wide_mlp"):
        if fields.any(key, 0):
            raise fields.refuse(key, "is not modelled")
    fields.has("vocab_size_per_layer_input")
    bias = fields.flag("attention_bias")
    sliding = read_gqa(fields, hidden, head_dim=256, qkv_bias=bias, o_bias=bias, qk_norm="head")
    sliding = sliding.model_copy(update={"sliding_window": fields.count("sliding_window", default=512)})
    full = _global(fields, sliding)
    plan = fields.kinds("layer_types", n, {FULL: full, SLIDING: sliding})
    plan = plan or [sliding if (i + 1) % 6 else full for i in range(n)]
    dense = dense_ffn(fields)
    if not fields.flag("enable_moe_block"):
        return assemble(sizes, plan, [dense] * n, tie=tied(fields, True), norms_per_layer=4)
    moe = moe_ffn(fields, experts=("num_experts",), width="moe_intermediate_size", top_k="top_k_experts")
    small = hidden + moe.n_routed_experts  # scales of the router's input and of each expert
    moe = moe.model_copy(update={"dense_residual": dense, "extra_params": small})
    return assemble(sizes, plan, [moe] * n, tie=tied(fields, True), norms_per_layer=7)


def _global(fields: Fields, sliding: GqaAttention) -> GqaAttention:
    width = fields.count("global_head_dim", default=sliding.head_dim)
    same = fields.flag("attention_k_eq_v")
    n_kv = fields.optional_count("num_global_key_value_heads")
    n_kv = n_kv if same and n_kv is not None else sliding.n_kv_heads
    if sliding.n_heads % n_kv:
        raise InputError("must divide the heads", field=fields.name("num_global_key_value_heads"), value=n_kv)
    update = {"sliding_window": None, "head_dim": width, "v_head_dim": width, "n_kv_heads": n_kv, "k_is_v": same,
              "extra_params": 2 * width}  # fmt: skip
    return sliding.model_copy(update=update)
