"""What all importers share: the parts of a model and the usual ways to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.errors import InputError
from moesim.specs.dtypes import Storage
from moesim.specs.hf.fields import Fields
from moesim.specs.model import Attention, DenseFfn, Ffn, GqaAttention, LayerSpec

__all__ = [
    "FULL",
    "SLIDING",
    "Parts",
    "assemble",
    "base",
    "check_top_k",
    "dense_ffn",
    "head_dim_of",
    "n_layers",
    "read_gqa",
    "tied",
    "window_plan",
]

FULL, SLIDING = "full_attention", "sliding_attention"

#: More layers than any model has; a larger number is a mistake that would only fill memory.
MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class Base:
    """The sizes that every decoder has."""

    n_layers: int
    hidden_size: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What an importer returns; `import_config` adds name and storage. `kv_cache` is how it must be cached, if so."""

    hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool
    layers: tuple[LayerSpec, ...]
    other_params: int
    mtp_layers: tuple[LayerSpec, ...] = ()
    mtp_extra_params: int = 0
    note: str | None = None
    kv_cache: Storage | None = None


def base(fields: Fields) -> Base:
    """Layers, hidden size and vocabulary under their usual names."""
    return Base(n_layers(fields, "num_hidden_layers"), fields.count("hidden_size"), fields.count("vocab_size"))


def n_layers(fields: Fields, key: str) -> int:
    """A number of layers that can be laid out.

    Raises:
        InputError: missing, or absurdly large.
    """
    count = fields.count(key)
    if count > MAX_LAYERS:
        raise InputError("is too large", field=fields.name(key), value=count, allowed=f"1..{MAX_LAYERS}")
    return count


def tied(fields: Fields, default: bool = False) -> bool:
    """Whether the output head is the embedding; a multimodal config may say so outside its text model.

    Raises:
        InputError: neither true nor false.
    """
    value = fields.inherited("tie_word_embeddings", default)
    if not isinstance(value, bool):
        raise InputError("must be true or false", field=fields.name("tie_word_embeddings"), value=value)
    return value


def head_dim_of(fields: Fields, hidden_size: int, n_heads: int, default: int | None = None) -> int:
    """Width of one head: `head_dim`, else `default`, else hidden size over heads.

    Raises:
        InputError: heads that do not divide the hidden size.
    """
    given = fields.optional_count("head_dim")
    if given is not None or default is not None:
        return given if given is not None else default or 1
    if hidden_size % n_heads:
        raise InputError("does not divide hidden_size", field=fields.name("num_attention_heads"), value=n_heads,
                         hint=f"hidden_size is {hidden_size}; give head_dim")  # fmt: skip
    return hidden_size // n_heads


def read_gqa(
    fields: Fields,
    hidden_size: int,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norm: str = "none",
    output_gate: bool = False,
    sinks: bool = False,
    default_kv_heads: int | None = None,
) -> GqaAttention:
    """Grouped-query attention from the usual keys; `qk_norm` is none, head (one head wide) or full (all heads wide).

    Raises:
        InputError: key-value heads that do not divide the heads.
    """
    n_heads = fields.count("num_attention_heads")
    n_kv = fields.count("num_key_value_heads", default=default_kv_heads or n_heads)
    if n_heads % n_kv:
        raise InputError("must divide num_attention_heads", field=fields.name("num_key_value_heads"), value=n_kv,
                         hint=f"num_attention_heads is {n_heads}")  # fmt: skip
    width = head_dim_of(fields, hidden_size, n_heads, head_dim)
    norms = {"none": 0, "head": 2 * width, "full": (n_heads + n_kv) * width}[qk_norm]
    return GqaAttention(
        n_heads=n_heads, n_kv_heads=n_kv, head_dim=width, v_head_dim=width, qkv_bias=qkv_bias, o_bias=o_bias,
        output_gate=output_gate, extra_params=norms + (n_heads if sinks else 0),
    )  # fmt: skip


def window_plan(attention: GqaAttention, plan: Sequence[str], window: int | None) -> list[GqaAttention]:
    """One attention per layer, windowed where the plan says `sliding_attention`."""
    windowed = attention.model_copy(update={"sliding_window": window})
    return [windowed if kind == SLIDING and window else attention for kind in plan]


def dense_ffn(fields: Fields, key: str = "intermediate_size", bias: bool = False) -> DenseFfn:
    """The usual gated feed-forward block."""
    return DenseFfn(intermediate_size=fields.count(key), bias=bias)


def check_top_k(fields: Fields, key: str, top_k: int, n_experts: int) -> None:
    """A token cannot visit more experts than there are.

    Raises:
        InputError: it would have to.
    """
    if top_k > n_experts:
        raise InputError(
            "is more than there are experts", field=fields.name(key), value=top_k, allowed=f"1..{n_experts}"
        )


def assemble(
    sizes: Base,
    attentions: Sequence[Attention],
    ffns: Sequence[Ffn],
    *,
    tie: bool,
    norms_per_layer: int = 2,
    norm_width: int = 1,
    other_params: int = 0,
    mtp_layers: int = 0,
    mtp_extra_params: int = 0,
    note: str | None = None,
) -> Parts:
    """A decoder of the given attentions and FFNs, `norms_per_layer` norms of D (x `norm_width`) each and one at the end.

    MTP layers are copies of the last layer, each with a 2D -> D projection and three norms (DeepSeek-V3 report, 2.2).
    """
    hidden = sizes.hidden_size
    norm = norm_width * hidden
    layers = tuple(
        LayerSpec(attention=a, ffn=f, norm_params=norms_per_layer * norm) for a, f in zip(attentions, ffns, strict=True)
    )
    extra = mtp_extra_params or mtp_layers * (2 * hidden * hidden + 3 * norm)
    return Parts(
        hidden_size=hidden, vocab_size=sizes.vocab_size, tie_word_embeddings=tie, layers=layers,
        other_params=norm + other_params, mtp_layers=(layers[-1],) * mtp_layers, mtp_extra_params=extra, note=note,
    )  # fmt: skip
