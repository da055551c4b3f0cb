"""Kimi-Linear and Kimi-K3: Kimi delta attention in three of four layers, latent attention in the fourth.

Shapes are those of `modeling_kimi_linear.py` in transformers 5.23 and, for what K3 adds (gates of full rank, experts that work
on a latent, attention residuals), of the Kimi K3 report (arXiv 2607.24653) and open implementations of it.
"""

from __future__ import annotations

from dataclasses import replace

from moesim.errors import InputError
from moesim.specs.hf.deepseek import moe_plan
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Parts, assemble, base, check_top_k, dense_ffn, tied
from moesim.specs.model import Attention, Ffn, LinearAttention, MlaAttention, MoeFfn

__all__ = ["depth_sources", "kimi_delta_attention", "kimi_linear"]


def kimi_delta_attention(linear: Fields, hidden_size: int) -> LinearAttention:
    """Kimi delta attention (arXiv 2510.26692): a gated delta net whose decay is one number per channel.

    Per token and head of width d: decay, read, rank-one update and output, 7 d^2 flops; and the convolutions of q, k and v.
    """
    heads, dim = linear.count("num_heads"), linear.count("head_dim")
    kernel = linear.count("short_conv_kernel_size", default=4)
    inner = heads * dim
    gate = hidden_size * inner if linear.flag("use_full_rank_gate") else hidden_size * dim + dim * inner
    forget = hidden_size * dim + dim * inner
    proj = 4 * hidden_size * inner + gate + forget + hidden_size * heads
    return LinearAttention(
        variant="kda",
        n_heads=heads,
        n_weight_params=proj + 3 * inner * kernel + inner + heads + dim,
        n_proj_params=proj,
        state_elements=heads * dim * dim + 3 * inner * (kernel - 1),
        flops_per_token=7 * heads * dim * dim + 6 * inner * kernel,
        n_key_heads=heads,
        key_head_dim=dim,
        value_head_dim=dim,
    )


def depth_sources(n_layers: int, block: int) -> float:
    """States that the input of an attention or FFN is mixed from, on the mean: finished blocks of layers and the running sum.

    >>> depth_sources(2, 1)
    2.0
    """
    attention = sum(-(-i // block) + 1 for i in range(1, n_layers))
    ffn = sum(i // block + 2 for i in range(n_layers))
    return (attention + ffn) / (2 * n_layers)


def kimi_linear(fields: Fields) -> Parts:
    """Kimi-Linear 48B and the language model of Kimi-K3.

    Raises:
        InputError: a layer that is of neither or of both kinds.
    """
    sizes = base(fields)
    n, hidden = sizes.n_layers, sizes.hidden_size
    linear = fields.sub("linear_attn_config")
    attentions = _plan(linear, n, kimi_delta_attention(linear, hidden), _latent_attention(fields))
    moe, dense = _moe(fields), dense_ffn(fields)
    ffns: list[Ffn] = [moe if sparse else dense for sparse in moe_plan(fields, n, first=1)]
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    block = fields.optional_count("attn_res_block_size")
    if block is None:
        return assemble(sizes, attentions, ffns, tie=tied(fields), mtp_layers=n_mtp)
    parts = assemble(
        sizes, attentions, ffns, tie=tied(fields), norms_per_layer=6, other_params=2 * hidden, mtp_layers=n_mtp
    )
    mixed = {"depth_sources": depth_sources(n, block)}
    return replace(parts, layers=tuple(layer.model_copy(update=mixed) for layer in parts.layers))


def _latent_attention(fields: Fields) -> MlaAttention:
    for key in ("num_key_value_heads", "head_dim", "mla_use_nope"):
        fields.has(key)
    if fields.flag("attention_bias"):
        raise fields.refuse("attention_bias", "biases in latent attention are not modelled")
    return MlaAttention(
        n_heads=fields.count("num_attention_heads"), q_lora_rank=fields.optional_count("q_lora_rank"),
        kv_lora_rank=fields.count("kv_lora_rank"), qk_nope_head_dim=fields.count("qk_nope_head_dim"),
        qk_rope_head_dim=fields.count("qk_rope_head_dim"), v_head_dim=fields.count("v_head_dim"),
        output_gate=fields.flag("mla_use_output_gate"),
    )  # fmt: skip


def _plan(linear: Fields, n_layers: int, delta: LinearAttention, full: MlaAttention) -> list[Attention]:
    """Layers are numbered from 1 in this config."""
    numbers = {key: set(linear.sequence(key) or ()) for key in ("full_attn_layers", "kda_layers")}
    both = numbers["full_attn_layers"] & numbers["kda_layers"]
    if both or set().union(*numbers.values()) != set(range(1, n_layers + 1)):
        raise InputError("and full_attn_layers must name each layer once", field=linear.name("kda_layers"),
                         allowed=f"1..{n_layers}")  # fmt: skip
    return [full if i + 1 in numbers["full_attn_layers"] else delta for i in range(n_layers)]


def _moe(fields: Fields) -> MoeFfn:
    experts = fields.count("num_experts", "n_routed_experts")
    top_k = fields.count("num_experts_per_token", "num_experts_per_tok")
    check_top_k(fields, "num_experts_per_token", top_k, experts)
    n_shared = fields.count("num_shared_experts", "n_shared_experts", default=0, least=0)
    width = fields.count("moe_intermediate_size")
    latent = fields.optional_count("routed_expert_hidden_size")
    has_norm = latent is not None and fields.flag("latent_moe_use_norm")
    groups = fields.count("num_expert_group", "n_group", default=1)
    for key in ("use_grouped_topk", "latent_moe_use_norm", "moe_router_activation_func"):
        fields.has(key)
    return MoeFfn(
        n_routed_experts=experts, num_experts_per_tok=top_k, moe_intermediate_size=width, router_bias=True,
        n_shared_experts=n_shared, shared_intermediate_size=n_shared * width, n_group=groups,
        topk_group=fields.count("topk_group", default=1), latent_size=latent,
        extra_params=latent if has_norm and latent else 0,
    )  # fmt: skip
