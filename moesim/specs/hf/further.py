"""Further MoE decoders: GLM-4.7-Flash, Mistral 4, ERNIE 4.5, dots.llm1, Hunyuan 3, K-EXAONE, Solar Open, AFMoE (Trinity).

Shapes are those of their `modeling_*.py` in transformers 5.23.
"""

from __future__ import annotations

from dataclasses import replace

from moesim.specs.hf.deepseek import latent_decoder, moe_plan, routed
from moesim.specs.hf.dense import layer_types
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

__all__ = ["afmoe", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe_lite", "hy_v3", "mistral4", "solar_open"]


def glm4_moe_lite(fields: Fields) -> Parts:
    """GLM-4.7-Flash: DeepSeek-V3 with one leading dense layer unless told."""
    return latent_decoder(fields, router_bias=True, first=1)


def mistral4(fields: Fields) -> Parts:
    """Mistral 4: latent attention, a shared expert, a router without correction bias."""
    return latent_decoder(fields, router_bias=False)


def _shared(
    fields: Fields, experts: str, shared: str, *, top_k: str = "num_experts_per_tok", router_bias: bool = True
) -> MoeFfn:
    """Routed experts and shared ones of the same width under the keys given."""
    n_experts, k = fields.count(experts), fields.count(top_k)
    check_top_k(fields, top_k, k, n_experts)
    n_shared, width = fields.count(shared, default=0, least=0), fields.count("moe_intermediate_size")
    return MoeFfn(
        n_routed_experts=n_experts, num_experts_per_tok=k, moe_intermediate_size=width, router_bias=router_bias,
        n_shared_experts=n_shared, shared_intermediate_size=n_shared * width, n_group=fields.count("n_group", default=1),
        topk_group=fields.count("topk_group", default=1),
    )  # fmt: skip


def _sparse_after(fields: Fields, n_layers: int, moe: MoeFfn, first: int) -> list[Ffn]:
    """Dense layers first, experts after them."""
    plan = moe_plan(fields, n_layers, first=first)
    fields.has("intermediate_size")
    dense = None if all(plan) else dense_ffn(fields)
    return [moe if sparse or dense is None else dense for sparse in plan]


def ernie4_5_moe(fields: Fields) -> Parts:
    """ERNIE 4.5: experts in every n-th layer of a range, a correction bias, embedding tied unless told."""
    sizes = base(fields)
    n = sizes.n_layers
    if fields.flag("use_bias"):
        raise fields.refuse("use_bias", "biases are not modelled in this architecture")
    moe = _shared(fields, "moe_num_experts", "moe_num_shared_experts", top_k="moe_k")
    start, step = (
        fields.count("moe_layer_start_index", default=1, least=0),
        fields.count("moe_layer_interval", default=1),
    )
    end = fields.count("moe_layer_end_index", default=-1, least=-1)
    last = n - 1 if end == -1 else end
    dense = dense_ffn(fields)
    ffns: list[Ffn] = [moe if (i + 1) % step == 0 and start <= i <= last else dense for i in range(n)]
    for key in ("moe_norm_min", "moe_capacity", "moe_gate", "moe_gate_act", "moe_use_aux_free"):
        fields.has(key)
    attention = read_gqa(fields, sizes.hidden_size)
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    parts = assemble(sizes, [attention] * n, ffns, tie=tied(fields, True), mtp_layers=n_mtp,
                     mtp_extra_params=n_mtp * 2 * sizes.hidden_size * (sizes.hidden_size + 1))  # fmt: skip
    mtp = parts.layers[-1].model_copy(
        update={"ffn": dense}
    )  # vLLM's ernie_mtp.py: a dense layer, two norms, a projection
    return replace(parts, mtp_layers=(mtp,) * n_mtp)


def dots1(fields: Fields) -> Parts:
    """dots.llm1: norms on query and key heads, leading dense layers, a correction bias."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias, qk_norm="head")
    window, n_full = (
        fields.optional_count("sliding_window"),
        fields.count("max_window_layers", default=sizes.n_layers, least=0),
    )
    plan = [SLIDING if window and i >= n_full else FULL for i in range(sizes.n_layers)]
    attentions = window_plan(attention, layer_types(fields, sizes.n_layers, plan), window)
    return assemble(sizes, attentions, _sparse_after(fields, sizes.n_layers, routed(fields, True), 0), tie=tied(fields))


def hy_v3(fields: Fields) -> Parts:
    """Hunyuan 3: norms on query and key heads, one leading dense layer, shared experts, a correction bias."""
    sizes = base(fields)
    if fields.flag("mlp_bias"):
        raise fields.refuse("mlp_bias", "biases are not modelled in this architecture")
    bias = fields.flag("attention_bias")
    if not fields.flag("qk_norm", True):
        raise fields.refuse("qk_norm", "attention without norms on heads is not modelled in this architecture")
    fields.count("moe_intermediate_size", "expert_hidden_dim")  # two spellings of the same
    fields.has("enable_moe_fp32_combine")
    attention = read_gqa(fields, sizes.hidden_size, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm="head")
    ffns = _sparse_after(fields, sizes.n_layers, _shared(fields, "num_experts", "num_shared_experts"), 1)
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tied(fields), mtp_layers=n_mtp)


def exaone_moe(fields: Fields) -> Parts:
    """K-EXAONE: norms on query and key heads, three windowed layers to a full one, shared experts, a correction bias."""
    sizes = base(fields)
    n = sizes.n_layers
    attention = read_gqa(fields, sizes.hidden_size, qk_norm="head")
    window = fields.optional_count("sliding_window")
    pattern = fields.any("sliding_window_pattern", 4)
    if isinstance(pattern, str) and set(pattern) == {"L", "G"}:
        plan = [SLIDING if pattern[i % len(pattern)] == "L" else FULL for i in range(n)]
    else:
        every = fields.count("sliding_window_pattern", default=4)
        plan = [SLIDING if (i + 1) % every else FULL for i in range(n)]
    attentions = window_plan(attention, layer_types(fields, n, plan), window)
    moe = _shared(fields, "num_experts", "num_shared_experts")
    fields.has("first_last_k_dense_replace")  # is_moe_layer says the same, layer by layer
    named = fields.kinds("is_moe_layer", n, {False: False, True: True})
    dense = dense_ffn(fields)
    ffns: list[Ffn] = [moe if sparse else dense for sparse in named or moe_plan(fields, n, first=1)]
    return assemble(sizes, attentions, ffns, tie=tied(fields))


def solar_open(fields: Fields) -> Parts:
    """Solar Open: GLM-4.5 with experts in every layer unless told, and no norms on heads."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size, head_dim=128, qkv_bias=fields.flag("attention_bias"))
    ffns = _sparse_after(fields, sizes.n_layers, routed(fields, True), 0)
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tied(fields))


def afmoe(fields: Fields) -> Parts:
    """Arcee's AFMoE (Trinity): a gate on the attention's output, four norms a layer, three windowed layers to a full one."""
    sizes = base(fields)
    n = sizes.n_layers
    if fields.flag("attention_bias"):
        raise fields.refuse("attention_bias", "biases are not modelled in this architecture")
    attention = read_gqa(fields, sizes.hidden_size, head_dim=128, qk_norm="head", output_gate=True)
    every = fields.count("global_attn_every_n_layers", default=4)
    plan = layer_types(fields, n, [SLIDING if (i + 1) % every else FULL for i in range(n)])
    moe, dense = _shared(fields, "num_experts", "num_shared_experts"), dense_ffn(fields)
    for key in ("num_expert_groups", "num_limited_groups", "route_norm", "use_grouped_mm"):
        fields.has(key)
    first = fields.count("num_dense_layers", default=1, least=0)
    ffns: list[Ffn] = [moe if i >= first else dense for i in range(n)]
    attentions = window_plan(attention, plan, fields.optional_count("sliding_window"))
    return assemble(sizes, attentions, ffns, tie=tied(fields), norms_per_layer=4)
