"""Early MoEs with experts that are not gated: Switch and NLLB-MoE (encoder and decoder), GLaM."""

from __future__ import annotations

from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Parts, assemble, base, check_top_k, n_layers, tied
from moesim.specs.model import DenseFfn, Ffn, GqaAttention, LayerSpec, MoeFfn

__all__ = ["glam", "nllb_moe", "switch"]


def _mha(n_heads: int, head_dim: int, *, bias: bool = False, cross: bool = False) -> GqaAttention:
    return GqaAttention(
        n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim, v_head_dim=head_dim, qkv_bias=bias, o_bias=bias,
        is_cross=cross,
    )  # fmt: skip


def _encoder(attention: GqaAttention, ffns: list[Ffn], norm: int) -> list[LayerSpec]:
    return [LayerSpec(attention=attention, ffn=f, norm_params=2 * norm, stack="encoder") for f in ffns]


def _decoder(attention: GqaAttention, cross: GqaAttention, ffns: list[Ffn], norm: int) -> list[LayerSpec]:
    return [LayerSpec(attention=attention, cross_attention=cross, ffn=f, norm_params=3 * norm) for f in ffns]


def _switch_ffns(fields: Fields, stack: str, depth: int, dense: DenseFfn, moe: MoeFfn) -> list[Ffn]:
    """The number of sparse layers gives the step, as in `transformers`; the step counts where the number is absent."""
    n_sparse = fields.count(f"num_sparse_{stack}_layers", default=-1, least=0)
    given = fields.count(f"{stack}_sparse_step", default=1)
    step = given if n_sparse < 0 else depth // n_sparse if n_sparse else 0
    return [moe if step == 1 or (step and i % step == 1) else dense for i in range(depth)]


def switch(fields: Fields) -> Parts:
    """Switch Transformer (Fedus et al., arXiv 2101.03961): T5 with top-1 experts in every n-th layer of both stacks."""
    hidden, width, heads = fields.count("d_model"), fields.count("d_ff"), fields.count("num_heads")
    n_enc = n_layers(fields, "num_layers")
    n_dec = n_layers(fields, "num_decoder_layers") if fields.has("num_decoder_layers") else n_enc
    if fields.flag("is_gated_act") or fields.text("feed_forward_proj", "relu").startswith("gated"):
        raise fields.refuse("feed_forward_proj", "gated experts are not part of this architecture")
    fields.flag("is_encoder_decoder", True)
    dense = DenseFfn(intermediate_size=width, gated=False)
    n_experts, top_k = fields.count("num_experts"), fields.count("num_selected_experts", default=1)
    check_top_k(fields, "num_selected_experts", top_k, n_experts)
    moe = MoeFfn(n_routed_experts=n_experts, num_experts_per_tok=top_k, moe_intermediate_size=width, gated=False,
                 router_bias=fields.flag("router_bias"))  # fmt: skip
    head_dim = fields.count("d_kv")
    layers = [
        *_encoder(_mha(heads, head_dim), _switch_ffns(fields, "encoder", n_enc, dense, moe), hidden),
        *_decoder(_mha(heads, head_dim), _mha(heads, head_dim, cross=True),
                  _switch_ffns(fields, "decoder", n_dec, dense, moe), hidden),
    ]  # fmt: skip
    buckets = fields.count("relative_attention_num_buckets", default=32)
    return Parts(
        hidden_size=hidden, vocab_size=fields.count("vocab_size"),
        tie_word_embeddings=tied(fields, True), layers=tuple(layers),
        other_params=2 * hidden + 2 * buckets * heads,
    )  # fmt: skip


def nllb_moe(fields: Fields) -> Parts:
    """NLLB-MoE (arXiv 2207.04672): biases everywhere, top-2 experts in every n-th layer of both stacks."""
    hidden = fields.count("d_model")
    fields.flag("is_encoder_decoder", True)
    fields.has("num_hidden_layers")
    stacks: dict[str, list[Ffn]] = {}
    heads: dict[str, int] = {}
    for stack in ("encoder", "decoder"):
        depth, width = n_layers(fields, f"{stack}_layers"), fields.count(f"{stack}_ffn_dim")
        heads[stack] = fields.count(f"{stack}_attention_heads")
        if hidden % heads[stack]:
            raise fields.refuse(f"{stack}_attention_heads", "does not divide d_model")
        step = fields.count(f"{stack}_sparse_step", default=4, least=0)
        n_experts = fields.count("num_experts", default=128, least=2)
        moe = MoeFfn(n_routed_experts=n_experts, num_experts_per_tok=2, moe_intermediate_size=width, gated=False, bias=True,
                     router_bias=fields.flag("router_bias"))  # fmt: skip
        dense = DenseFfn(intermediate_size=width, gated=False, bias=True)
        stacks[stack] = [moe if step and (i + 1) % step == 0 else dense for i in range(depth)]
    enc, dec = (_mha(heads[s], hidden // heads[s], bias=True) for s in ("encoder", "decoder"))
    cross = dec.model_copy(update={"is_cross": True})
    norm = 2 * hidden
    return Parts(
        hidden_size=hidden, vocab_size=fields.count("vocab_size"),
        tie_word_embeddings=tied(fields, True),
        layers=(*_encoder(enc, stacks["encoder"], norm), *_decoder(dec, cross, stacks["decoder"], norm)),
        other_params=2 * norm,
    )  # fmt: skip


def glam(fields: Fields) -> Parts:
    """GLaM (Du et al., arXiv 2112.06905): top-2 experts that are not gated in every second layer, gated dense FFNs between.

    It was never published as a checkpoint: ``glam`` and its keys are spellings of this tool.
    """
    sizes = base(fields)
    attention = _mha(fields.count("num_attention_heads"), fields.count("head_dim"))
    width, n_experts, top_k = (
        fields.count("intermediate_size"),
        fields.count("num_experts"),
        fields.count("num_experts_per_tok"),
    )
    check_top_k(fields, "num_experts_per_tok", top_k, n_experts)
    moe = MoeFfn(n_routed_experts=n_experts, num_experts_per_tok=top_k, moe_intermediate_size=width, gated=False)
    step = fields.count("decoder_sparse_step", default=2)
    dense = DenseFfn(intermediate_size=width)
    ffns: list[Ffn] = [dense if (i + 1) % step else moe for i in range(sizes.n_layers)]
    tie = tied(fields, True)
    return assemble(sizes, [attention] * sizes.n_layers, ffns, tie=tie)
