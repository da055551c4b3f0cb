"""Which importer reads which `model_type`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moesim.specs.hf import deepseek, dense, sparse
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Parts

__all__ = ["BUILDERS", "Builder"]

Builder = Callable[[Fields], Parts]

BUILDERS: Mapping[str, Builder] = {
    "deepseek": deepseek.deepseek_moe,
    "deepseek_v2": deepseek.deepseek_v2,
    "deepseek_v3": deepseek.deepseek_v3,
    "deepseek_v32": deepseek.deepseek_v32,
    "gemma2": dense.gemma2,
    "gemma3_text": dense.gemma3,
    "glm_moe_dsa": deepseek.deepseek_v32,
    "gpt_oss": sparse.gpt_oss,
    "kimi_k2": deepseek.deepseek_v3,
    "llama": dense.llama,
    "mimo": dense.mimo,
    "mistral": dense.mistral,
    "mixtral": sparse.mixtral,
    "olmoe": sparse.olmoe,
    "qwen2": dense.qwen2,
    "qwen2_moe": sparse.qwen2_moe,
    "qwen3": dense.qwen3,
    "qwen3_moe": sparse.qwen3_moe,
    "qwen3_vl_moe_text": sparse.qwen3_moe,
    "qwen3_vl_text": dense.qwen3,
}
