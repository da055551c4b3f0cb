"""Which importer reads which `model_type`, and which architectures are refused for what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moesim.specs.hf import (
    deepseek,
    deepseek_v4,
    dense,
    early,
    first_wave,
    further,
    hybrid,
    kimi,
    minimax_m3,
    nemotron,
    recent,
    sparse,
)
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Parts

__all__ = ["BUILDERS", "REFUSED", "Builder"]

Builder = Callable[[Fields], Parts]

BUILDERS: Mapping[str, Builder] = {
    "afmoe": further.afmoe,
    "arctic": first_wave.arctic,
    "dbrx": first_wave.dbrx,
    "deepseek": deepseek.deepseek_moe,
    "deepseek_ref": deepseek_v4.deepseek_v4,
    "deepseek_v2": deepseek.deepseek_v2,
    "deepseek_v3": deepseek.deepseek_v3,
    "deepseek_v32": deepseek.deepseek_v32,
    "deepseek_v4": deepseek_v4.deepseek_v4,
    "dots1": further.dots1,
    "ernie4_5_moe": further.ernie4_5_moe,
    "exaone_moe": further.exaone_moe,
    "gemma": dense.gemma,
    "gemma2": dense.gemma2,
    "gemma3_text": dense.gemma3,
    "gemma4_text": recent.gemma4,
    "glam": early.glam,
    "glm4_moe": recent.glm4_moe,
    "glm4_moe_lite": further.glm4_moe_lite,
    "glm_moe_dsa": deepseek.deepseek_v32,
    "gpt_oss": sparse.gpt_oss,
    "granite": dense.llama,
    "granitemoe": first_wave.granite_moe,
    "granitemoeshared": first_wave.granite_moe,
    "grinmoe": first_wave.phimoe,
    "grok-1": first_wave.grok,
    "hunyuan": first_wave.hunyuan,
    "hy_v3": further.hy_v3,
    "jamba": hybrid.jamba,
    "kimi_k2": deepseek.deepseek_v3,
    "kimi_linear": kimi.kimi_linear,
    "llama": dense.llama,
    "llama4_text": recent.llama4,
    "llama_moe": first_wave.llama_moe,
    "mimo": dense.mimo,
    "mimo_v2_flash": recent.mimo_v2_flash,
    "minimax_m2": recent.minimax_m2,
    "minimax_m3": minimax_m3.minimax_m3,
    "minimax_m3_vl_text": minimax_m3.minimax_m3,
    "mistral": dense.mistral,
    "mistral4": further.mistral4,
    "mixtral": sparse.mixtral,
    "nemotron-nas": nemotron.nemotron_nas,
    "nemotron_h": nemotron.nemotron_h,
    "nllb-moe": early.nllb_moe,
    "olmoe": sparse.olmoe,
    "phi3": dense.mistral,
    "phimoe": first_wave.phimoe,
    "qwen2": dense.qwen2,
    "qwen2_moe": sparse.qwen2_moe,
    "qwen3": dense.qwen3,
    "qwen3_5_moe_text": hybrid.qwen3_next,
    "qwen3_5_text": hybrid.qwen3_5,
    "qwen3_moe": sparse.qwen3_moe,
    "qwen3_next": hybrid.qwen3_next,
    "qwen3_vl_moe_text": sparse.qwen3_moe,
    "qwen3_vl_text": dense.qwen3,
    "solar_open": further.solar_open,
    "step3p5": recent.step3p7,
    "step3p7": recent.step3p7,
    "switch_transformers": early.switch,
    "xverse": first_wave.xverse,
}

#: Architectures that are known and not modelled: the key that says so, and why.
REFUSED: Mapping[str, tuple[str, str]] = {
    "jetmoe": ("moe_num_experts", "experts among the attention heads are not modelled"),
    "longcat_flash": ("zero_expert_num", "experts that do nothing and two attentions per layer are not modelled"),
    "openmoe": ("moe_layer_interval", "this MoE has further blocks in its MoE layers that are not modelled"),
    "yuan": ("moe_config", "attention among experts in the router and filtered attention are not modelled"),
}
