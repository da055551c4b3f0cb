"""Dense decoders: Llama, Mistral, Qwen2, Qwen3, MiMo-7B, Gemma 2 and 3."""

from __future__ import annotations

from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import FULL, SLIDING, Parts, assemble, base, dense_ffn, read_gqa, tied, window_plan

__all__ = ["gemma", "gemma2", "gemma3", "layer_types", "llama", "mimo", "mistral", "qwen2", "qwen3"]

_TYPES = {FULL: FULL, SLIDING: SLIDING}


def layer_types(fields: Fields, n_layers: int, default: list[str]) -> list[str]:
    """The `layer_types` list, or the pattern that the architecture has without it."""
    return fields.kinds("layer_types", n_layers, _TYPES) or default


def llama(fields: Fields) -> Parts:
    """Llama 1 to 3 and what copies it: one attention, one gated FFN, two norms."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=bias, o_bias=bias)
    ffn = dense_ffn(fields, bias=fields.flag("mlp_bias"))
    tie = tied(fields)
    return assemble(sizes, [attention] * sizes.n_layers, [ffn] * sizes.n_layers, tie=tie)


def mistral(fields: Fields) -> Parts:
    """Mistral: Llama with a sliding window in all layers where `sliding_window` is given."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size)
    window = fields.optional_count("sliding_window")
    plan = layer_types(fields, sizes.n_layers, [SLIDING if window else FULL] * sizes.n_layers)
    tie = tied(fields)
    return assemble(sizes, window_plan(attention, plan, window), [dense_ffn(fields)] * sizes.n_layers, tie=tie)


def qwen_windows(fields: Fields, n_layers: int) -> tuple[list[str], int | None]:
    """Qwen's window: layers from `max_window_layers` on, and only with `use_sliding_window`."""
    window = fields.optional_count("sliding_window")
    n_full = fields.count("max_window_layers", default=n_layers, least=0)
    if not fields.flag("use_sliding_window"):
        window = None
    default = [SLIDING if window and i >= n_full else FULL for i in range(n_layers)]
    return layer_types(fields, n_layers, default), window


def qwen2(fields: Fields) -> Parts:
    """Qwen2 and 2.5: biases on query, key and value."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=True)
    plan, window = qwen_windows(fields, sizes.n_layers)
    tie = tied(fields)
    return assemble(sizes, window_plan(attention, plan, window), [dense_ffn(fields)] * sizes.n_layers, tie=tie)


def qwen3(fields: Fields) -> Parts:
    """Qwen3: heads of 128 whatever the hidden size, and a norm on each query and key head."""
    sizes = base(fields)
    bias = fields.flag("attention_bias")
    fields.flag("use_qk_norm", True)
    attention = read_gqa(fields, sizes.hidden_size, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm="head")
    plan, window = qwen_windows(fields, sizes.n_layers)
    tie = tied(fields)
    return assemble(sizes, window_plan(attention, plan, window), [dense_ffn(fields)] * sizes.n_layers, tie=tie)


def mimo(fields: Fields) -> Parts:
    """MiMo-7B: Qwen2 with MTP layers."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size, qkv_bias=fields.flag("attention_bias", True))
    plan, window = qwen_windows(fields, sizes.n_layers)
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    tie = tied(fields)
    attentions = window_plan(attention, plan, window)
    return assemble(sizes, attentions, [dense_ffn(fields)] * sizes.n_layers, tie=tie, mtp_layers=n_mtp)


def gemma(fields: Fields) -> Parts:
    """Gemma 1: heads of 256 whatever the hidden size, tied embedding."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size, head_dim=256)
    tie = tied(fields, True)
    return assemble(sizes, [attention] * sizes.n_layers, [dense_ffn(fields)] * sizes.n_layers, tie=tie)


def gemma2(fields: Fields) -> Parts:
    """Gemma 2: every other layer windowed (the even ones), four norms per layer, tied embedding."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size, head_dim=256)
    window = fields.count("sliding_window", default=4096)
    plan = layer_types(fields, sizes.n_layers, [FULL if i % 2 else SLIDING for i in range(sizes.n_layers)])
    tie = tied(fields, True)
    ffns = [dense_ffn(fields)] * sizes.n_layers
    return assemble(sizes, window_plan(attention, plan, window), ffns, tie=tie, norms_per_layer=4)


def gemma3(fields: Fields) -> Parts:
    """Gemma 3: one full layer after every five windowed ones, norms on query and key heads."""
    sizes = base(fields)
    attention = read_gqa(fields, sizes.hidden_size, head_dim=256, qk_norm="head")
    window = fields.count("sliding_window", default=4096)
    every = fields.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    plan = layer_types(fields, sizes.n_layers, [SLIDING if (i + 1) % every else FULL for i in range(sizes.n_layers)])
    tie = tied(fields, True)
    ffns = [dense_ffn(fields)] * sizes.n_layers
    return assemble(sizes, window_plan(attention, plan, window), ffns, tie=tie, norms_per_layer=4)
