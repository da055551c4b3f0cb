"""Which kinds of weights a list of modules means: those a quantiser leaves alone (``ignore``) or converts (``targets``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import translate

from moesim.errors import InputError
from moesim.specs.model import CompressedAttention, DenseFfn, LayerSpec, LinearAttention, MlaAttention, MoeFfn

__all__ = ["KINDS", "named_kinds"]

#: The kinds of weights with a storage of their own that quantisers may convert.
KINDS = ("attention", "dense_ffn", "routed_experts", "shared_experts", "router", "embedding", "lm_head")

_DENSE = ("gate_proj", "up_proj", "down_proj")
_EXPERT = ("w1", "w3", "w2")
_GATE = ("gate_proj", "w1")
_GQA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLA = (
    "self_attn.q_a_proj",
    "self_attn.q_b_proj",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
    "self_attn.o_proj",
)
#: Projections of mixers of a fixed state; those of Kimi delta attention are spelt like attention.
_LINEAR = {
    "gated_delta_net": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj"),
    "mamba": ("mamba.in_proj", "mamba.out_proj"),
    "mamba2": ("mixer.in_proj", "mixer.out_proj"),
    "kda": _GQA,
}
_COMPRESSED = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")
#: Spellings of a block's name in checkpoints; a list that names any one of them means the block.
_MOE_BLOCKS = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "mixer")


def named_kinds(patterns: Sequence[str], layers: Sequence[LayerSpec], hidden_size: int, field: str) -> frozenset[str]:
    """The kinds of weights of which `patterns` name more than half, each module of a mixer counted by its share of the weights.

    A pattern is a regular expression after ``re:``, a glob if it has ``*``, or the dotted name of a module or of a part of
    it. Names are those of `transformers` for the model's layers.

    Raises:
        InputError: a pattern that is not text or no valid regular expression.
    """
    match = _matcher(patterns, field)
    counts = {kind: [0.0, 0.0] for kind in KINDS}
    for kind, spellings, weight in _modules(layers, hidden_size):
        counts[kind][0] += weight * any(match(name) for name in spellings)
        counts[kind][1] += weight
    return frozenset(kind for kind, (hit, total) in counts.items() if total and 2 * hit > total)


class _Matcher:
    def __init__(self, plain: frozenset[str], expressions: Sequence[re.Pattern[str]]) -> None:
        self.plain = plain
        self.expressions = expressions

    def __call__(self, name: str) -> bool:
        parts = name.split(".")
        spans = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
        return any(span in self.plain for span in spans) or any(e.search(name) for e in self.expressions)


def _matcher(patterns: Sequence[str], field: str) -> _Matcher:
    plain, expressions = set(), []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError("must be a list of module names", field=field, value=pattern)
        if pattern.startswith("re:"):
            try:
                expressions.append(re.compile(pattern.removeprefix("re:")))
            except re.error as error:
                raise InputError(f"is no regular expression: {error}", field=field, value=pattern) from None
        elif "*" in pattern:
            inside = translate("*" + _without_root(pattern)).removesuffix(r"\Z").removesuffix(r"\z")
            expressions.append(re.compile(rf"{inside}(\.|$)"))
        else:
            plain.add(_without_root(pattern))
    return _Matcher(frozenset(plain), expressions)


def _without_root(name: str) -> str:
    """The name from ``layers`` on: prefixes differ between plain and multimodal checkpoints."""
    return re.sub(r"^(model\.|language_model\.|backbone\.)+", "", name)


def _modules(layers: Sequence[LayerSpec], hidden_size: int) -> Iterator[tuple[str, tuple[str, ...], float]]:
    yield "embedding", ("model.embed_tokens",), 1.0
    yield "lm_head", ("lm_head",), 1.0
    for i, layer in enumerate(layers):
        prefix = f"model.layers.{i}."
        modules = list(_attention_modules(layer))
        for spellings in modules:
            weight = layer.attention.n_params(hidden_size) / len(modules) if layer.attention is not None else 0.0
            yield "attention", tuple(prefix + name for name in spellings), weight
        blocks: Iterator[tuple[str, tuple[str, ...]]] = iter(())
        if isinstance(layer.ffn, DenseFfn):
            blocks = _dense_modules(prefix, layer.ffn)
        elif isinstance(layer.ffn, MoeFfn):
            blocks = _moe_modules(prefix, layer.ffn)
        for kind, spellings in blocks:
            yield kind, spellings, 1.0


def _attention_modules(layer: LayerSpec) -> Iterator[tuple[str, ...]]:
    attention = layer.attention
    if isinstance(attention, LinearAttention):
        names = _LINEAR.get(attention.variant, _LINEAR["gated_delta_net"])
    elif isinstance(attention, CompressedAttention):
        yield from ((f"attn.{name}", f"self_attn.{name}") for name in _COMPRESSED)
        return
    else:
        names = () if attention is None else _MLA if isinstance(attention, MlaAttention) else _GQA
    for name in names:
        yield name, name.replace("self_attn.", "mixer.")


def _dense_modules(prefix: str, ffn: DenseFfn) -> Iterator[tuple[str, tuple[str, ...]]]:
    for part in _DENSE:
        if ffn.gated or part != _GATE[0]:
            yield "dense_ffn", tuple(f"{prefix}{block}.{part}" for block in ("mlp", "feed_forward", "mixer"))


def _moe_modules(prefix: str, moe: MoeFfn) -> Iterator[tuple[str, tuple[str, ...]]]:
    beside = moe.dense_residual is not None  # then "mlp" is the dense block, not that of the experts
    blocks = ("block_sparse_moe.", "") if beside else tuple(f"{block}." for block in _MOE_BLOCKS)
    for parts in zip(_DENSE, _EXPERT, strict=True):
        if moe.gated or parts != _GATE:
            yield "routed_experts", tuple(f"{prefix}{b}experts.0.{p}" for b in blocks for p in parts)
    yield "router", tuple(f"{prefix}{block}{gate}" for block in blocks for gate in ("gate", "router"))
    if moe.dense_residual is not None:
        for part in _DENSE:
            names = tuple(f"{prefix}{block}.{part}" for block in ("mlp", "residual_mlp"))
            yield from (("dense_ffn", names), ("shared_experts", names))
    if moe.shared_intermediate_size:
        shared = [f"{b}.{name}" for b in _MOE_BLOCKS for name in ("shared_experts", "shared_expert")]
        for part in _DENSE:
            if moe.gated or part != _GATE[0]:
                yield "shared_experts", tuple(f"{prefix}{name}.{part}" for name in (*shared, "shared_mlp"))
