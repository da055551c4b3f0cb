"""The DeepSeek line: DeepSeek-MoE, V2, V3, V3.2, and Kimi-K2 and GLM-5, which copy it."""

from __future__ import annotations

from moesim.errors import InputError
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Base, Parts, assemble, base, check_top_k, dense_ffn, read_gqa, tied
from moesim.specs.model import Ffn, MlaAttention, MoeFfn

__all__ = ["deepseek_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "latent_decoder", "moe_plan", "routed"]


def routed(fields: Fields, router_bias: bool) -> MoeFfn:
    """DeepSeek's MoE block: routed experts in groups, shared experts of the same width.

    Raises:
        InputError: groups that do not divide the experts.
    """
    n_experts = fields.count("n_routed_experts", "num_routed_experts", "num_experts")
    top_k = fields.count("num_experts_per_tok")
    check_top_k(fields, "num_experts_per_tok", top_k, n_experts)
    n_shared = fields.count("n_shared_experts", "num_shared_experts", default=0, least=0)
    width = fields.count("moe_intermediate_size")
    n_group = fields.count("n_group", default=1)
    topk_group = fields.count("topk_group", default=1)
    if topk_group > n_group or n_experts % n_group:
        raise InputError("does not fit n_routed_experts and topk_group", field=fields.name("n_group"), value=n_group)
    return MoeFfn(
        n_routed_experts=n_experts, num_experts_per_tok=top_k, moe_intermediate_size=width, router_bias=router_bias,
        n_shared_experts=n_shared, shared_intermediate_size=n_shared * width, n_group=n_group, topk_group=topk_group,
    )  # fmt: skip


def moe_plan(fields: Fields, n_layers: int, first: int = 0) -> list[bool]:
    """Which layers hold experts: from `first_k_dense_replace` (else `first`) on, every `moe_layer_freq`-th, or as its list says.

    Raises:
        InputError: `mlp_layer_types` that says otherwise.
    """
    first = fields.count("first_k_dense_replace", default=first, least=0)
    frequency = fields.any("moe_layer_freq", 1)
    if isinstance(frequency, list):
        plan = fields.kinds("moe_layer_freq", n_layers, {0: False, 1: True}) or []
    else:
        step = fields.count("moe_layer_freq", default=1)
        plan = [i >= first and i % step == 0 for i in range(n_layers)]
    named = fields.kinds("mlp_layer_types", n_layers, {"dense": False, "sparse": True})
    if named is not None and fields.has("first_k_dense_replace") and named != plan:
        raise InputError("disagrees with first_k_dense_replace", field=fields.name("mlp_layer_types"))
    return named or plan


def _ffns(fields: Fields, n_layers: int, moe: MoeFfn, first: int = 0) -> list[Ffn]:
    plan = moe_plan(fields, n_layers, first)
    fields.has("intermediate_size")
    dense = None if all(plan) else dense_ffn(fields)
    return [moe if sparse or dense is None else dense for sparse in plan]


def _mla(fields: Fields) -> MlaAttention:
    for key in ("head_dim", "qk_head_dim", "num_key_value_heads"):  # repeat what the other keys say
        fields.has(key)
    if fields.flag("attention_bias"):
        raise fields.refuse("attention_bias", "biases in latent attention are not modelled")
    return MlaAttention(
        n_heads=fields.count("num_attention_heads"),
        q_lora_rank=fields.optional_count("q_lora_rank"),
        kv_lora_rank=fields.count("kv_lora_rank"),
        qk_nope_head_dim=fields.count("qk_nope_head_dim"),
        qk_rope_head_dim=fields.count("qk_rope_head_dim"),
        v_head_dim=fields.count("v_head_dim"),
    )


def _indexed(fields: Fields, mla: MlaAttention) -> MlaAttention:
    return mla.model_copy(
        update={
            "index_n_heads": fields.count("index_n_heads"),
            "index_head_dim": fields.count("index_head_dim"),
            "index_topk": fields.count("index_topk"),
        }
    )


def _decoder(fields: Fields, sizes: Base, attentions: list[MlaAttention], router_bias: bool, first: int = 0) -> Parts:
    ffns = _ffns(fields, sizes.n_layers, routed(fields, router_bias), first)
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    tie = tied(fields)
    return assemble(sizes, attentions, ffns, tie=tie, mtp_layers=n_mtp)


def latent_decoder(fields: Fields, router_bias: bool, first: int = 0) -> Parts:
    """Latent attention in every layer, experts from layer `first` on unless the config says otherwise."""
    sizes = base(fields)
    return _decoder(fields, sizes, [_mla(fields)] * sizes.n_layers, router_bias, first)


def deepseek_moe(fields: Fields) -> Parts:
    """DeepSeek-MoE 16B (arXiv 2401.06066): plain attention, shared experts, a leading dense layer."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias)
    ffns = _ffns(fields, sizes.n_layers, routed(fields, router_bias=False))
    tie = tied(fields)
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tie)


def deepseek_v2(fields: Fields) -> Parts:
    """DeepSeek-V2 (arXiv 2405.04434): latent attention; the router has no correction bias."""
    return latent_decoder(fields, router_bias=False)


def deepseek_v3(fields: Fields) -> Parts:
    """DeepSeek-V3 and R1 (arXiv 2412.19437), Kimi-K2: node-limited groups, score correction bias, MTP layers."""
    return latent_decoder(fields, router_bias=fields.text("topk_method", "noaux_tc") == "noaux_tc")


def deepseek_v32(fields: Fields) -> Parts:
    """DeepSeek-V3.2 and GLM-5: V3 with an index that picks the tokens to attend to.

    Layers that `indexer_types` calls shared (GLM-5.2) reuse the tokens that an earlier layer picked and have no index.
    """
    sizes = base(fields)
    router_bias = fields.text("topk_method", "noaux_tc") == "noaux_tc"
    fields.kinds("layer_types", sizes.n_layers, {"deepseek_sparse_attention": True})
    for key in ("index_topk_freq", "index_skip_topk_offset", "index_topk_pattern", "index_share_for_mtp_iteration"):
        fields.has(key)
    if fields.any("index_topk_freq", 1) != 1 and not fields.has("indexer_types"):
        raise fields.refuse("index_topk_freq", "needs indexer_types, which says which layers share an index")
    indexed = _indexed(fields, _mla(fields))
    shared = indexed.model_copy(update={"index_n_heads": None, "index_head_dim": None})
    plan = fields.kinds("indexer_types", sizes.n_layers, {"full": indexed, "shared": shared})
    return _decoder(fields, sizes, plan or [indexed] * sizes.n_layers, router_bias)
