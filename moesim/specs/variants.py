"""Names of checkpoints that are not in the catalog themselves: a known model, tuned otherwise or stored in another format.

`nvidia/Llama-3.3-70B-Instruct-FP8` is Llama 3.3 70B with FP8 weights; `Qwen/Qwen3-235B-A22B-Thinking-2507` is Qwen3-235B.
Tuning changes no shape, so the card of the base stands for it. The format follows from the name's ending; which weights a
quantiser leaves in 16 bits is a fact of each family of checkpoints (see `_KEPT`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Variant", "kept_in_nvfp4", "quantised", "variant_of"]

_FORMATS = (
    (r"-(?:nvfp4|fp4)(?:-v\d+)?", "nvfp4"),
    (r"-fp8(?:-(?:dynamic|static|block|kv|static-pertensor|per-?tensor))*", "fp8"),
    (r"-(?:mxfp4)", "mxfp4"),
    (r"-(?:awq|gptq|quantized\.w4a16|w4a16|autoround)?-?(?:int4|4bit|w4a16|awq|gptq)(?:-g\d+)?", "int4"),
    (r"-(?:bf16|fp16)", "bf16"),
)  # fmt: skip
_TUNING = re.compile(r"-(?:instruct|chat|it|pt|base|thinking|hf|preview|\d{4}|v0\.\d)$")
#: Makers who publish block-wise FP8 themselves (quantization_config of their checkpoints); others use one scale per tensor.
_BLOCK_FP8_MAKERS = ("qwen", "deepseek-ai", "zai-org", "minimaxai", "moonshotai", "stepfun-ai", "xiaomimimo", "")
_PATTERNS = {
    "attention": ["*self_attn*", "*linear_attn*", "*mamba*"],
    "dense_ffn": ["*.mlp.gate_proj", "*.mlp.up_proj", "*.mlp.down_proj"],
    "shared_experts": ["*shared_expert*"],
}
#: Kinds of weights that published NVFP4 checkpoints of a family keep in 16 bits. Source: the exclude lists of nvidia's NVFP4
#: checkpoints of DeepSeek-V3.1, V3.2, GLM-5, Gemma-4, MiniMax-M2.5, M2.7, Nemotron-3 Nano, Super, Ultra and Qwen3-235B-A22B.
#: DeepSeek's and GLM-5's keep all of the attention but one projection; of Nemotron's mixers most weights are converted. Mixtures
#: that are not listed follow the later checkpoints (Kimi-K2.6, GLM-5.1 to 5.3, Qwen3.5, Gemma-4 26B): routed experts alone.
_KEPT: Mapping[str, tuple[str, ...]] = {
    "deepseek": ("attention",),
    "glm-5.": ("attention", "dense_ffn", "shared_experts"),
    "glm-5": ("attention",),
    "gemma-4-31b": ("attention",),
    "minimax": ("attention",),
    "nemotron": (),
    "qwen3-": (),
}
_EXPERTS_ALONE = ("attention", "dense_ffn", "shared_experts")
#: Families whose NVFP4 checkpoints hold other formats beside: (patterns, ModelOpt's name), and the cache's. Source: the
#: `quantized_layers` of nvidia's checkpoints of MiniMax-M3, Qwen3.6-27B and Qwen3.6-35B-A3B.
_MIXED: Mapping[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "minimax-m3": (
        (("*self_attn*", "*.mlp.*_proj", "*shared_experts*"), "MXFP8"),
        (("*.experts.*",), "NVFP4"),
    ),
    "qwen3.6": (
        (("*self_attn*", "*linear_attn*"), "FP8"),
        (("*.mlp.*_proj", "lm_head"), "W4A16_NVFP4"),
    ),
}  # fmt: skip
_WIDE_CACHE = ("minimax-m3",)


@dataclass(frozen=True, slots=True)
class Variant:
    """A checkpoint as a model of the catalog (`base`) and a format of its weights; None: as the card says."""

    base: str
    weight_format: str | None
    maker: str


def variant_of(name: str, known: Mapping[str, str]) -> Variant | None:
    """What a checkpoint's name says; None if no known model has that name, tuning and format apart.

    Args:
        name: such as ``nvidia/DeepSeek-R1-0528-FP4-V2``.
        known: lower-cased names, aliases and Hugging Face ids to catalog names.

    >>> variant_of("nvidia/Llama-3.3-70B-Instruct-FP8", {"meta-llama/llama-3.3-70b-instruct": "llama-3.1-70b"})
    Variant(base='llama-3.1-70b', weight_format='fp8', maker='nvidia')
    """
    maker, core, weight_format = _parts(name)
    plain = None
    for other, stem in known.items():
        _, other_core, other_format = _parts(other)
        if other_core != core:
            continue
        if other_format == weight_format:
            return Variant(stem, None, maker)
        if other_format is None:
            plain = plain or Variant(stem, weight_format, maker)
    return plain


def _parts(name: str) -> tuple[str, str, str | None]:
    """Maker, name without tuning and format, format."""
    maker, _, core = name.lower().rpartition("/")
    core = core.removeprefix("meta-").replace("llama-3_", "llama-3.")
    weight_format = None
    while True:
        for pattern, found in _FORMATS:
            match = re.search(pattern + "$", core)
            if match and match.start() > 0:
                core, weight_format = core[: match.start()], weight_format or found
                break
        else:
            shorter = _TUNING.sub("", core)
            if shorter == core:
                return maker, core, weight_format
            core = shorter


def kept_in_nvfp4(base: str, is_moe: bool) -> tuple[str, ...]:
    """Kinds of weights that NVFP4 checkpoints of a model leave in 16 bits, besides embedding, head, router and norms."""
    for prefix, kinds in _KEPT.items():
        if base.startswith(prefix):
            return kinds if is_moe or prefix == base else ()
    return _EXPERTS_ALONE if is_moe else ()


def quantised(config: Mapping[str, Any], variant: Variant, is_moe: bool) -> dict[str, Any]:
    """The base's ``config.json`` with the `quantization_config` that the variant's checkpoint would have."""
    own = config.get("quantization_config")
    if variant.weight_format == "nvfp4" and variant.base.startswith("deepseek-v4") and own:
        # its experts alone change format (nvidia/DeepSeek-V4-{Flash,Pro}-NVFP4)
        return {**config, "expert_dtype": "nvfp4"}
    changed = {key: value for key, value in config.items() if key not in ("quantization_config", "expert_dtype")}
    made = _quantisation(variant, is_moe)
    return {**changed, "quantization_config": made} if made else changed


def _quantisation(variant: Variant, is_moe: bool) -> dict[str, Any] | None:
    match variant.weight_format:
        case "nvfp4":
            for prefix, formats in _MIXED.items():
                if variant.base.startswith(prefix):
                    return _mixed(formats, has_wide_cache=prefix in _WIDE_CACHE)
            kept = [pattern for kind in kept_in_nvfp4(variant.base, is_moe) for pattern in _PATTERNS[kind]]
            return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": kept,
                    "kv_cache_scheme": {"type": "float", "num_bits": 8}}  # fmt: skip
        case "fp8" if variant.maker in _BLOCK_FP8_MAKERS:
            return {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
        case "fp8":
            return {
                "quant_method": "modelopt",
                "quant_algo": "FP8",
                "kv_cache_scheme": {"type": "float", "num_bits": 8},
            }
        case "mxfp4":
            return {"quant_method": "mxfp4"}
        case "int4":
            return {"quant_method": "awq", "bits": 4, "group_size": 128}
    return None


def _mixed(formats: Sequence[tuple[Sequence[str], str]], *, has_wide_cache: bool) -> dict[str, Any]:
    """ModelOpt's mixed precision: a format for each pattern."""
    layers = {pattern: {"quant_algo": name} for patterns, name in formats for pattern in patterns}
    cache = {} if has_wide_cache else {"kv_cache_scheme": {"type": "float", "num_bits": 8}}
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers, **cache}
