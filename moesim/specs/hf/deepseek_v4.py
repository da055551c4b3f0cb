"""DeepSeek-V4: attention over compressed keys, hyper-connections, and experts picked by a hash in the first layers.

Shapes are those of `modeling_deepseek_v4.py` in transformers 5.23 and of the DeepSeek-V4 report (2026), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moesim.errors import InputError
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.hf.deepseek import routed
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Parts, assemble, base, tied
from moesim.specs.model import CompressedAttention, Ffn

__all__ = ["V4_CACHE", "deepseek_v4", "hyper_params"]

#: Tokens to a row of each kind of layer; the sparse kind pools over two neighbouring groups and has an index.
_RATES = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
_SPARSE, _HEAVY = _RATES["compressed_sparse_attention"], _RATES["heavily_compressed_attention"]

#: A row of the cache as serving stacks keep it: 448 of its 512 elements in 8 bits, 64 rotary ones in 16, and 8 bytes of scales.
#: Source: fp8_ds_mla of vLLM's DeepSeek-V4 attention, the only format that it takes.
V4_CACHE = Storage(dtype=Dtype.FP8, scale_group_size=64, scale_bytes=9.0)


def hyper_params(hidden_size: int, streams: int) -> int:
    """Weights that mix n streams into one block's input and its output back into them: (2 + n) n (n D + 1) + 3."""
    width = (2 + streams) * streams
    return width * (streams * hidden_size + 1) + 3


def deepseek_v4(fields: Fields) -> Parts:
    """DeepSeek-V4 Flash and Pro.

    Raises:
        InputError: compression ratios other than 4 (sparse) and 128 (heavy), which alone say how rows are pooled.
    """
    sizes = base(fields)
    n, hidden = sizes.n_layers, sizes.hidden_size
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    ratios = _ratios(fields, n, n_mtp)
    window = _window(fields)
    attentions = [_compressed(fields, window, ratio) for ratio in ratios]
    streams = fields.count("hc_mult", default=4)
    fields.has("hc_sinkhorn_iters")
    moe = routed(fields, router_bias=True)
    hashed = moe.model_copy(update={"router_bias": False})
    ffns: list[Ffn] = [hashed if by_hash else moe for by_hash in _hash_plan(fields, n)]
    head = streams * (streams * hidden + 1) + 1
    extra = n_mtp * (2 * hidden * hidden + 3 * hidden + head)
    parts = assemble(sizes, attentions[:n], ffns, tie=tied(fields), other_params=head, mtp_layers=n_mtp,
                     mtp_extra_params=extra)  # fmt: skip
    mixed = {"residual_streams": streams, "norm_params": 2 * hidden + 2 * hyper_params(hidden, streams)}
    layers = tuple(layer.model_copy(update=mixed) for layer in parts.layers)
    mtp = tuple(layers[-1].model_copy(update={"attention": a, "ffn": moe}) for a in attentions[n:])
    return replace(parts, layers=layers, mtp_layers=mtp, kv_cache=V4_CACHE)


def _window(fields: Fields) -> CompressedAttention:
    for key in ("qk_rope_head_dim", "attention_bias", "mlp_bias"):
        if key != "qk_rope_head_dim" and fields.flag(key):
            raise fields.refuse(key, "biases are not modelled in this architecture")
        fields.has(key)
    if fields.count("num_key_value_heads", default=1) != 1:
        raise fields.refuse("num_key_value_heads", "more than one shared key head is not modelled")
    heads, groups = fields.count("num_attention_heads"), fields.count("o_groups", default=8)
    if heads % groups:
        raise fields.refuse("o_groups", "must divide num_attention_heads")
    return CompressedAttention(
        n_heads=heads, head_dim=fields.count("head_dim", default=512), q_lora_rank=fields.count("q_lora_rank"),
        o_groups=groups, o_lora_rank=fields.count("o_lora_rank", default=1024),
        sliding_window=fields.count("sliding_window", default=128),
    )  # fmt: skip


def _compressed(fields: Fields, window: CompressedAttention, ratio: int) -> CompressedAttention:
    index = {key: fields.count(key) for key in ("index_n_heads", "index_head_dim", "index_topk")}
    if ratio == 0:
        return window
    own: dict[str, Any] = {"compress_ratio": ratio}
    if ratio == _SPARSE:
        own |= {"overlap": True, **index}
    return window.model_copy(update=own)


def _ratios(fields: Fields, n_layers: int, n_mtp: int) -> list[int]:
    """Tokens to a row for each layer, MTP layers last (a window alone, unless `compress_ratios` says otherwise)."""
    names = fields.kinds("layer_types", n_layers, _RATES)
    given: Sequence[Any] | None = fields.sequence("compress_ratios")
    rates = fields.any("compress_rates")
    if rates is not None and rates != {k: v for k, v in _RATES.items() if v}:
        raise fields.refuse("compress_rates", "only 4 (sparse) and 128 (heavy) tokens to a row are modelled")
    if given is None:
        if names is None:
            raise InputError("is missing", field=fields.name("compress_ratios"), hint="it says how each layer attends")
        return names + [0] * n_mtp
    for ratio in given:
        if isinstance(ratio, bool) or ratio not in (0, _SPARSE, _HEAVY):
            raise InputError("is not modelled", field=fields.name("compress_ratios"), value=ratio, allowed="0, 4, 128")
    if len(given) not in (n_layers, n_layers + n_mtp):
        allowed = f"{n_layers} entries, or {n_layers + n_mtp} with MTP layers"
        raise InputError(
            "has the wrong length", field=fields.name("compress_ratios"), value=len(given), allowed=allowed
        )
    return [*given, *[0] * (n_layers + n_mtp - len(given))]


def _hash_plan(fields: Fields, n_layers: int) -> list[bool]:
    """Layers whose experts a token's id picks: the first `num_hash_layers`, or as `mlp_layer_types` says."""
    n_hash = fields.count("num_hash_layers", default=3, least=0)
    named = fields.kinds("mlp_layer_types", n_layers, {"hash_moe": True, "moe": False})
    return named or [i < n_hash for i in range(n_layers)]
