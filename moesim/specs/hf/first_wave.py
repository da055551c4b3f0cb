"""MoE decoders of 2024, each with a twist: Grok-1, DBRX, Arctic, Hunyuan-Large, Phi-3.5-MoE, Granite, XVERSE, LLaMA-MoE."""

from __future__ import annotations

from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Base, Parts, assemble, base, check_top_k, dense_ffn, n_layers, read_gqa, tied
from moesim.specs.hf.sparse import moe_ffn
from moesim.specs.hf.unread import refuse_unread
from moesim.specs.model import Attention, DenseFfn, Ffn, GqaAttention, MoeFfn

__all__ = ["arctic", "dbrx", "granite_moe", "grok", "hunyuan", "llama_moe", "phimoe", "xverse"]


def grok(fields: Fields) -> Parts:
    """Grok-1 (xai-org/grok-1, model.py): four norms per layer, embedding tied to the head."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size)
    ffns: list[Ffn] = [moe_ffn(fields)] * sizes.n_layers
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tied(fields, True), norms_per_layer=4)


def dbrx(fields: Fields) -> Parts:
    """DBRX: fine-grained experts, keys in nested objects."""
    sizes = Base(n_layers(fields, "n_layers"), fields.count("d_model"), fields.count("vocab_size"))
    n_heads = fields.count("n_heads")
    attn, ffn = fields.sub("attn_config"), fields.sub("ffn_config")
    n_kv = attn.count("kv_n_heads", default=1)
    if sizes.hidden_size % n_heads or n_heads % n_kv:
        raise fields.refuse("n_heads", "must divide d_model and be a multiple of kv_n_heads")
    head_dim = sizes.hidden_size // n_heads
    attention = GqaAttention(n_heads=n_heads, n_kv_heads=n_kv, head_dim=head_dim, v_head_dim=head_dim)
    moe = moe_ffn(ffn, experts=("moe_num_experts",), width="ffn_hidden_size", top_k="moe_top_k")
    refuse_unread(attn)
    refuse_unread(ffn)
    return assemble(sizes, [attention] * sizes.n_layers, [moe] * sizes.n_layers, tie=tied(fields))


def arctic(fields: Fields) -> Parts:
    """Snowflake Arctic: a dense block as wide as the model beside the experts of every MoE layer."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size)
    step = fields.count("moe_layer_frequency", default=2)
    moe = moe_ffn(fields)
    if fields.flag("parallel_attn_mlp_res"):
        moe = moe.model_copy(update={"dense_residual": DenseFfn(intermediate_size=sizes.hidden_size)})
    fields.flag("use_residual")  # what it adds follows from parallel_attn_mlp_res
    dense = dense_ffn(fields)
    ffns: list[Ffn] = [dense if (i + 1) % step else moe for i in range(sizes.n_layers)]
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tied(fields), norms_per_layer=3)


def hunyuan(fields: Fields) -> Parts:
    """Hunyuan-Large (arXiv 2411.02265): a shared expert, and keys and values shared by pairs of layers."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    qk_norm = "head" if fields.flag("use_qk_norm") else "none"
    own = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias, qk_norm=qk_norm)
    factor = fields.count("cla_share_factor", default=1) if fields.flag("use_cla") else 1
    reused = own.model_copy(update={"reuses_kv": True})
    attentions: list[Attention] = [reused if i % factor else own for i in range(sizes.n_layers)]
    n_shared = fields.count("num_shared_expert", default=0, least=0) if fields.flag("use_mixed_mlp_moe") else 0
    width = fields.count("intermediate_size")
    moe = moe_ffn(fields, top_k="moe_topk", n_shared_experts=n_shared, shared_intermediate_size=n_shared * width)
    return assemble(sizes, attentions, [moe] * sizes.n_layers, tie=tied(fields))


def phimoe(fields: Fields) -> Parts:
    """Phi-3.5-MoE and GRIN-MoE: layer norms and head with biases."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias)
    window = fields.optional_count("sliding_window")
    if window is not None and window < fields.count("max_position_embeddings", default=window + 1):
        attention = attention.model_copy(update={"sliding_window": window})
    head_bias = sizes.vocab_size if fields.flag("lm_head_bias") else 0
    ffns: list[Ffn] = [moe_ffn(fields)] * sizes.n_layers
    return assemble(
        sizes, [attention] * sizes.n_layers, ffns, tie=tied(fields), norm_width=2, other_params=head_bias
    )  # fmt: skip


def granite_moe(fields: Fields) -> Parts:
    """Granite MoE and PowerMoE: small experts in every layer."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias)
    shared = fields.count("shared_intermediate_size", default=0, least=0)
    ffns: list[Ffn] = [moe_ffn(fields, shared_intermediate_size=shared)] * sizes.n_layers
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tied(fields))


def xverse(fields: Fields) -> Parts:
    """XVERSE-MoE: shared experts as wide as the routed ones, all heads with keys and values of their own."""
    sizes = base(fields)
    width, n_shared = fields.count("intermediate_size"), fields.count("num_shared_experts", default=0, least=0)
    moe = moe_ffn(fields, top_k="moe_top_k", n_shared_experts=n_shared, shared_intermediate_size=n_shared * width)
    attention = read_gqa(fields, sizes.hidden_size)
    return assemble(sizes, [attention] * sizes.n_layers, [moe] * sizes.n_layers, tie=tied(fields))


def llama_moe(fields: Fields) -> Parts:
    """LLaMA-MoE v1 (arXiv 2406.16554): the FFN of a Llama cut into experts; a small MLP as router.

    Raises:
        InputError: experts of different sizes, or another router.
    """
    sizes = base(fields)
    n_experts, top_k = fields.count("num_experts"), fields.count("num_selects")
    check_top_k(fields, "num_selects", top_k, n_experts)
    whole = fields.count("intermediate_size")
    rows = fields.sequence("size_experts", sizes.n_layers) or [[whole // n_experts] * n_experts] * sizes.n_layers
    widths = {width for row in rows for width in (row if isinstance(row, list) else [row])}
    if len(widths) != 1 or any(len(row) != n_experts for row in rows if isinstance(row, list)):
        raise fields.refuse("size_experts", "experts of different sizes are not modelled")
    if fields.text("gate_network", "mlp") != "mlp" or fields.text("gates", "mlp") != "mlp":
        raise fields.refuse("gate_network", "only the router called 'mlp' is modelled")
    fields.text("gate_type", "TopKBalancedNoisyGate")
    fields.flag("gate_use_softmax", True)
    fields.flag("multiply_gate_scores", True)
    noise = n_experts * sizes.hidden_size if fields.flag("gate_add_noise") else 0
    moe = MoeFfn(n_routed_experts=n_experts, num_experts_per_tok=top_k, moe_intermediate_size=widths.pop(),
                 extra_params=n_experts * n_experts + noise)  # fmt: skip
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias)
    return assemble(sizes, [attention] * sizes.n_layers, [moe] * sizes.n_layers, tie=tied(fields))
