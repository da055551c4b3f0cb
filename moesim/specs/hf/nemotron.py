"""NVIDIA's hybrids (Nemotron-H, Nemotron 3: one mixer or one FFN to a layer) and pruned Llamas (nemotron-nas).

Shapes are those of `modeling_nemotron_h.py` in transformers 5.23 and of vLLM's `nemotron_nas.py` and `nemotron_h_mtp.py`.
"""

from __future__ import annotations

from typing import Any

from moesim.errors import InputError
from moesim.specs.hf.deepseek import routed
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Base, Parts, n_layers, read_gqa, tied
from moesim.specs.model import DenseFfn, GqaAttention, LayerSpec, LinearAttention, MoeFfn

__all__ = ["mamba2", "nemotron_h", "nemotron_nas"]

_LETTERS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
_NAMES = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention",
          "moe": "moe", "mlp": "mlp"}  # fmt: skip


def mamba2(fields: Fields, hidden_size: int) -> LinearAttention:
    """Mamba-2 mixer (Dao and Gu, arXiv 2405.21060): h heads of width p over a state of n, B and C shared in g groups.

    Per token: decay, rank-one update and output, 5 h p n flops; and the convolution.
    """
    heads, width = fields.count("mamba_num_heads"), fields.count("mamba_head_dim")
    groups, state = fields.count("n_groups", default=8), fields.count("ssm_state_size", default=128)
    kernel = fields.count("conv_kernel", default=4)
    inner = heads * width
    channels = inner + 2 * groups * state
    proj = hidden_size * (inner + channels + heads) + inner * hidden_size
    bias = channels if fields.flag("use_conv_bias", True) else 0
    return LinearAttention(
        variant="mamba2",
        n_heads=heads,
        n_weight_params=proj + channels * kernel + bias + 3 * heads + inner,
        n_proj_params=proj,
        state_elements=inner * state + channels * (kernel - 1),
        flops_per_token=5 * inner * state + 2 * channels * kernel,
    )


def nemotron_h(fields: Fields) -> Parts:
    """Nemotron-H and Nemotron 3 Nano, Super and Ultra; experts of the last two work on a latent (LatentMoE).

    Raises:
        InputError: biases, windows, or a layer of an unknown kind.
    """
    for key in ("use_bias", "mlp_bias", "mamba_proj_bias"):
        if fields.flag(key):
            raise fields.refuse(key, "biases are not modelled in this architecture")
    if fields.has("sliding_window"):
        raise fields.refuse("sliding_window", "a window is not modelled in this architecture")
    for key in (
        "chunk_size",
        "expand",
        "time_step_rank",
        "num_logits_to_keep",
        "moe_shared_expert_overlap",
        "residual_in_fp32",
    ):
        fields.has(key)
    hidden = fields.count("hidden_size")
    plan = _kinds(fields, "hybrid_override_pattern", "layers_block_type")
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    mtp_plan = _kinds(fields, "mtp_hybrid_override_pattern", "mtp_layers_block_type") if n_mtp else []
    given = fields.optional_count("num_hidden_layers")
    if given is not None and given != len(plan):
        raise InputError(f"disagrees with the {len(plan)} layers of the pattern",
                         field=fields.name("num_hidden_layers"), value=given)  # fmt: skip
    made = {kind: _layer(fields, kind, hidden) for kind in dict.fromkeys((*plan, *mtp_plan))}
    for key in ("intermediate_size", "moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"):
        fields.has(key)
    return Parts(
        hidden_size=hidden, vocab_size=fields.count("vocab_size"), tie_word_embeddings=tied(fields),
        layers=tuple(made[kind] for kind in plan), other_params=hidden,
        mtp_layers=tuple(made[kind] for kind in mtp_plan) * n_mtp, mtp_extra_params=n_mtp * (2 * hidden * hidden + 3 * hidden),
    )  # fmt: skip


def _kinds(fields: Fields, pattern_key: str, list_key: str) -> list[str]:
    named = fields.sequence(list_key)
    pattern = fields.text(pattern_key, "")
    if not pattern and not named:
        raise InputError("is missing", field=fields.name(pattern_key), hint="it says what each layer is")
    known, key = (_NAMES, list_key) if named else (_LETTERS, pattern_key)
    entries = list(named or pattern)
    for entry in entries:
        if entry not in known:
            allowed = ", ".join(known)
            raise InputError(
                "has an entry that is not understood", field=fields.name(key), value=entry, allowed=allowed
            )
    n_layers(Fields({key: len(entries)}), key)
    return [known[entry] for entry in entries]


def _layer(fields: Fields, kind: str, hidden: int) -> LayerSpec:
    """A layer of one block and the norm before it."""
    attention: LinearAttention | GqaAttention | None = None
    ffn: DenseFfn | MoeFfn | None = None
    if kind == "mamba":
        attention = mamba2(fields, hidden)
    elif kind == "attention":
        width = fields.count("head_dim", "attention_head_dim", default=128)
        if fields.flag("attention_bias"):
            raise fields.refuse("attention_bias", "biases are not modelled in this architecture")
        attention = read_gqa(fields, hidden, head_dim=width)
    elif kind == "moe":
        ffn = _latent_moe(fields)
    else:
        ffn = DenseFfn(intermediate_size=fields.count("intermediate_size"), gated=False)
    return LayerSpec(attention=attention, ffn=ffn, norm_params=hidden)


def _latent_moe(fields: Fields) -> MoeFfn:
    shared = fields.count("moe_shared_expert_intermediate_size", default=0, least=0)
    update: dict[str, Any] = {"gated": False, "shared_intermediate_size": shared,
                              "latent_size": fields.optional_count("moe_latent_size")}  # fmt: skip
    return routed(fields, router_bias=True).model_copy(update=update)


def nemotron_nas(fields: Fields) -> Parts:
    """Llama-3.x-Nemotron Super and Ultra (arXiv 2411.19146): a Llama whose layers were searched, each with its own block sizes.

    The width of an FFN is its multiple of two thirds of D, rounded up to 256.

    Raises:
        InputError: a block that was replaced by one matrix, a sparse or windowed one, or anything else in a block.
    """
    sizes = Base(n_layers(fields, "num_hidden_layers"), fields.count("hidden_size"), fields.count("vocab_size"))
    for key in ("num_key_value_heads", "intermediate_size", "attention_bias", "mlp_bias"):
        if fields.has(key) and fields.data[key]:
            raise fields.refuse(key, "is given per layer in this architecture")
    blocks = fields.sequence("block_configs", sizes.n_layers)
    if blocks is None:
        raise InputError("is missing", field=fields.name("block_configs"), hint="it says what each layer is")
    layers = tuple(_nas_layer(fields, block, sizes.hidden_size, i) for i, block in enumerate(blocks))
    return Parts(hidden_size=sizes.hidden_size, vocab_size=sizes.vocab_size, tie_word_embeddings=tied(fields),
                 layers=layers, other_params=sizes.hidden_size)  # fmt: skip


def _nas_layer(fields: Fields, block: Any, hidden: int, index: int) -> LayerSpec:
    one = Fields({"block": block}, fields.name(f"block_configs.{index}")).sub("block")
    attention, ffn = one.sub("attention"), one.sub("ffn")
    for part in (attention, ffn):
        for key in set(part.data) - {"n_heads_in_group", "no_op", "ffn_mult"}:
            if part.any(key):
                raise part.refuse(key, "is not modelled in this architecture")
    made: GqaAttention | None = None
    if not attention.flag("no_op"):
        heads = fields.count("num_attention_heads")
        in_group = attention.count("n_heads_in_group")
        own = Fields({**fields.data, "num_key_value_heads": heads // in_group}, fields.path)
        made = read_gqa(own, hidden)
    width: DenseFfn | None = None
    if not ffn.flag("no_op"):
        multiple = ffn.any("ffn_mult")
        if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < multiple < 100:
            raise ffn.refuse("ffn_mult", "must be a positive number")
        width = DenseFfn(intermediate_size=-(-int(2 * multiple * hidden / 3) // 256) * 256)
    norms = hidden * ((made is not None) + (width is not None))
    return LayerSpec(attention=made, ffn=width, norm_params=norms)
