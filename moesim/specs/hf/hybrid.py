"""Decoders that mix softmax attention with layers of fixed state: Qwen3-Next, Qwen3.5 and Jamba."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import FULL, Parts, assemble, base, check_top_k, dense_ffn, read_gqa, tied
from moesim.specs.hf.sparse import moe_ffn, sparse_steps
from moesim.specs.model import Attention, Ffn, GqaAttention, LinearAttention, MoeFfn

__all__ = ["gated_delta_net", "jamba", "mamba", "qwen3_5", "qwen3_next"]

_LINEAR = "linear_attention"


def gated_delta_net(fields: Fields, hidden_size: int) -> LinearAttention:
    """Gated delta net (Yang et al., arXiv 2412.06464) as Qwen3-Next builds it.

    Per token and value head of widths dk x dv: decay, read, rank-one update and output, 7 dk dv flops; and the convolution.
    """
    n_k, n_v = fields.count("linear_num_key_heads"), fields.count("linear_num_value_heads")
    dk, dv = fields.count("linear_key_head_dim"), fields.count("linear_value_head_dim")
    kernel = fields.count("linear_conv_kernel_dim", default=4)
    if n_v % n_k:
        raise fields.refuse("linear_num_value_heads", "must be a multiple of linear_num_key_heads")
    channels = 2 * n_k * dk + n_v * dv
    proj = hidden_size * (channels + n_v * dv + 2 * n_v) + n_v * dv * hidden_size
    return LinearAttention(
        variant="gated_delta_net",
        n_heads=n_v,
        n_weight_params=proj + channels * kernel + 2 * n_v + dv,
        n_proj_params=proj,
        state_elements=n_v * dk * dv + channels * (kernel - 1),
        flops_per_token=7 * n_v * dk * dv + 2 * channels * kernel,
        n_key_heads=n_k,
        key_head_dim=dk,
        value_head_dim=dv,
    )


def _mixers(fields: Fields, n_layers: int, hidden_size: int) -> list[Attention]:
    """Every `full_attention_interval`-th layer attends in full; the others are gated delta nets."""
    bias = fields.flag("attention_bias")
    gate = fields.flag("attn_output_gate", True)
    if fields.text("output_gate_type", "swish") not in ("swish", "sigmoid"):
        raise fields.refuse("output_gate_type", "is not understood", "known: swish, sigmoid")
    full = read_gqa(fields, hidden_size, head_dim=256, qkv_bias=bias, o_bias=bias, qk_norm="head", output_gate=gate)
    linear = gated_delta_net(fields, hidden_size)
    every = fields.count("full_attention_interval", default=4)
    plan = fields.kinds("layer_types", n_layers, {FULL: full, _LINEAR: linear})
    if fields.flag("use_sliding_window"):
        raise fields.refuse("use_sliding_window", "a window is not modelled in this architecture")
    return plan or [linear if (i + 1) % every else full for i in range(n_layers)]


def _qwen(fields: Fields, ffns: list[Ffn]) -> Parts:
    sizes = base(fields)
    mixers = _mixers(fields, sizes.n_layers, sizes.hidden_size)
    n_mtp = fields.count("mtp_num_hidden_layers", "num_nextn_predict_layers", default=0, least=0)
    if fields.flag("mtp_use_dedicated_embeddings"):
        raise fields.refuse(
            "mtp_use_dedicated_embeddings", "MTP layers with an embedding of their own are not modelled"
        )
    tie = tied(fields)
    parts = assemble(sizes, mixers, ffns, tie=tie, mtp_layers=n_mtp)
    attending = [layer for layer in parts.layers if isinstance(layer.attention, GqaAttention)]
    return replace(parts, mtp_layers=tuple(attending[-1:]) * n_mtp)  # MTP layers attend in full


def _gated_moe(fields: Fields) -> MoeFfn:
    shared = fields.count("shared_expert_intermediate_size", default=512, least=0)
    return moe_ffn(fields, width="moe_intermediate_size", shared_intermediate_size=shared, shared_expert_gate=True)


def qwen3_next(fields: Fields) -> Parts:
    """Qwen3-Next and Qwen3.5 MoE: three gated delta nets to one gated attention, MoE with a gated shared expert."""
    return _qwen(fields, sparse_steps(fields, base(fields).n_layers, _gated_moe(fields)))


def qwen3_5(fields: Fields) -> Parts:
    """Qwen3.5 dense: the mixers of Qwen3-Next with a dense FFN in every layer."""
    return _qwen(fields, [dense_ffn(fields)] * base(fields).n_layers)


def mamba(fields: Fields, hidden_size: int) -> LinearAttention:
    """Mamba-1 mixer (Gu and Dao, arXiv 2312.00752) with Jamba's norms on dt, B and C.

    Per token: 9 flops for each of the inner x state elements (the count of the reference selective scan), and the convolution.
    """
    inner = fields.count("mamba_expand", default=2) * hidden_size
    state, kernel = fields.count("mamba_d_state", default=16), fields.count("mamba_d_conv", default=4)
    auto = fields.any("mamba_dt_rank", "auto") == "auto"
    rank = ceil(hidden_size / 16) if auto else fields.count("mamba_dt_rank")
    if not fields.flag("mamba_inner_layernorms", True):
        raise fields.refuse("mamba_inner_layernorms", "a mixer without its inner norms is not modelled")
    conv_bias, proj_bias = fields.flag("mamba_conv_bias", True), fields.flag("mamba_proj_bias")
    proj = hidden_size * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * hidden_size
    biases = inner + (inner if conv_bias else 0) + (2 * inner + hidden_size if proj_bias else 0)
    return LinearAttention(
        variant="mamba",
        n_heads=inner,
        n_weight_params=proj + biases + inner * kernel + inner * state + inner + rank + 2 * state,
        n_proj_params=proj,
        state_elements=inner * (state + kernel - 1),
        flops_per_token=9 * inner * state + 2 * inner * kernel,
    )


def jamba(fields: Fields) -> Parts:
    """Jamba (arXiv 2403.19887): one attention in eight layers, Mamba in the others; MoE in every second layer."""
    sizes = base(fields)
    period, offset = fields.count("attn_layer_period", default=8), fields.count("attn_layer_offset", default=4, least=0)
    every, start = (
        fields.count("expert_layer_period", default=2),
        fields.count("expert_layer_offset", default=1, least=0),
    )
    if fields.has("sliding_window"):
        raise fields.refuse("sliding_window", "a window is not modelled in this architecture")
    full, linear = read_gqa(fields, sizes.hidden_size), mamba(fields, sizes.hidden_size)
    fields.has("num_logits_to_keep")
    dense = dense_ffn(fields)
    n_experts = fields.count("num_experts", default=16)
    moe: Ffn = dense
    if n_experts > 1:
        check_top_k(fields, "num_experts_per_tok", fields.count("num_experts_per_tok", default=2), n_experts)
        moe = moe_ffn(fields)
    layers = range(sizes.n_layers)
    mixers: list[Attention] = [full if i % period == offset else linear for i in layers]
    tie = tied(fields)
    return assemble(sizes, mixers, [moe if i % every == start else dense for i in layers], tie=tie)
