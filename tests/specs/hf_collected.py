"""What the collected Hugging Face configs are: their layer plans, or the key for which they are refused."""

from __future__ import annotations

from typing import Any

Kinds = dict[str, int]


def _dense(layers: int, hidden: int, tied: bool = False, mtp: int = 0) -> tuple[Any, ...]:
    return (hidden, {"gqa+dense": layers}, None, mtp, tied)


def _moe(
    hidden: int, kinds: Kinds, moe: tuple[int, int, int, int], mtp: int = 0, tied: bool = False
) -> tuple[Any, ...]:
    return (hidden, kinds, moe, mtp, tied)


MLA_61 = _moe(7168, {"mla+dense": 3, "mla+moe": 58}, (256, 8, 2048, 1), mtp=1)
KIMI = _moe(7168, {"mla+dense": 1, "mla+moe": 60}, (384, 8, 2048, 1))
GLM_5 = _moe(6144, {"mla+dense": 3, "mla+moe": 75}, (256, 8, 2048, 1), mtp=1)
QWEN3_30B = _moe(2048, {"gqa+moe": 48}, (128, 8, 768, 0))
QWEN3_235B = _moe(4096, {"gqa+moe": 94}, (128, 8, 1536, 0))
QWEN3_5_122B = _moe(3072, {"linear+moe": 36, "gqa+moe": 12}, (256, 8, 1024, 1), mtp=1)
QWEN3_5_35B = _moe(2048, {"linear+moe": 30, "gqa+moe": 10}, (256, 8, 512, 1), mtp=1)
V2_LITE = _moe(2048, {"mla+dense": 1, "mla+moe": 26}, (64, 6, 1408, 2))
MINIMAX = _moe(3072, {"gqa+moe": 62}, (256, 8, 1536, 0), mtp=3)
MIXTRAL = _moe(4096, {"gqa+moe": 32}, (8, 2, 14336, 0))
OLMOE = _moe(2048, {"gqa+moe": 16}, (64, 8, 1024, 0))
LLAMA_MOE = _moe(4096, {"gqa+moe": 32}, (16, 4, 688, 0))
STEP = _moe(4096, {"gqa+dense": 1, "gqa/w512+dense": 2, "gqa/w512+moe": 31, "gqa+moe": 11}, (288, 8, 1280, 1), mtp=3)
ENC_DEC = {"enc:gqa+dense": 18, "enc:gqa+moe": 6, "gqa+cross+dense": 18, "gqa+cross+moe": 6}

M3 = _moe(6144, {"gqa+dense": 3, "gqa/top2048+moe": 57}, (128, 4, 3072, 1), mtp=1)
V4_FLASH = _moe(
    4096, {"compressed/w128+moe": 2, "compressed/4+moe": 21, "compressed/128+moe": 20}, (256, 6, 2048, 1), mtp=1
)
V4_PRO = _moe(7168, {"compressed/128+moe": 31, "compressed/4+moe": 30}, (384, 6, 3072, 1), mtp=1)
KIMI_K3 = _moe(7168, {"linear+dense": 1, "linear+moe": 68, "mla+moe": 24}, (896, 16, 3072, 2))

#: file (without ``_config.json``): hidden size, layers by kind, (E, K, F, shared) of the MoE, MTP layers, tied embedding.
IMPORTED: dict[str, tuple[Any, ...]] = {
    "aic--MiniMaxAI--MiniMax-M2.5": MINIMAX,
    "aic--MiniMaxAI--MiniMax-M2.7": MINIMAX,
    "aic--MiniMaxAI--MiniMax-M3": M3,
    "aic--Qwen--Qwen3-0.6B": _dense(28, 1024, tied=True),
    "aic--Qwen--Qwen3-1.7B": _dense(28, 2048, tied=True),
    "aic--Qwen--Qwen3-235B-A22B": QWEN3_235B,
    "aic--Qwen--Qwen3-235B-A22B-FP8": QWEN3_235B,
    "aic--Qwen--Qwen3-30B-A3B": QWEN3_30B,
    "aic--Qwen--Qwen3-30B-A3B-FP8": QWEN3_30B,
    "aic--Qwen--Qwen3-32B": _dense(64, 5120),
    "aic--Qwen--Qwen3-32B-FP8": _dense(64, 5120),
    "aic--Qwen--Qwen3-32B-FP8-Static-PerTensor": _dense(64, 5120),
    "aic--Qwen--Qwen3-8B": _dense(36, 4096),
    "aic--Qwen--Qwen3-Coder-480B-A35B-Instruct": _moe(6144, {"gqa+moe": 62}, (160, 8, 2560, 0)),
    "aic--Qwen--Qwen3-VL-235B-A22B-Instruct": QWEN3_235B,
    "aic--Qwen--Qwen3-VL-2B-Instruct": _dense(28, 2048, tied=True),
    "aic--Qwen--Qwen3-VL-30B-A3B-Instruct": QWEN3_30B,
    "aic--Qwen--Qwen3-VL-32B-Instruct": _dense(64, 5120),
    "aic--Qwen--Qwen3-VL-32B-Thinking": _dense(64, 5120),
    "aic--Qwen--Qwen3-VL-4B-Instruct": _dense(36, 2560, tied=True),
    "aic--Qwen--Qwen3-VL-8B-Instruct": _dense(36, 4096),
    "aic--Qwen--Qwen3.5-122B-A10B": QWEN3_5_122B,
    "aic--Qwen--Qwen3.5-27B": (5120, {"linear+dense": 48, "gqa+dense": 16}, None, 1, False),
    "aic--Qwen--Qwen3.5-35B-A3B": QWEN3_5_35B,
    "aic--Qwen--Qwen3.5-397B-A17B": _moe(4096, {"linear+moe": 45, "gqa+moe": 15}, (512, 10, 1024, 1), mtp=1),
    "aic--XiaomiMiMo--MiMo-7B-Base": _dense(36, 4096, mtp=1),
    "aic--XiaomiMiMo--MiMo-V2-Flash": _moe(4096, {"gqa+dense": 1, "gqa/w128+moe": 39, "gqa+moe": 8}, (256, 8, 2048, 0)),
    "aic--deepseek-ai--DeepSeek-R1": MLA_61,
    "aic--deepseek-ai--DeepSeek-V3": MLA_61,
    "aic--deepseek-ai--DeepSeek-V3.2": MLA_61,
    "aic--deepseek-ai--DeepSeek-V4-Flash": V4_FLASH,
    "aic--deepseek-ai--DeepSeek-V4-Pro": V4_PRO,
    "aic--google--gemma-4-26B-A4B": _moe(2816, {"gqa/w1024+moe": 25, "gqa+moe": 5}, (128, 8, 704, 0), tied=True),
    "aic--meta-llama--Llama-4-Maverick-17B-128E-Instruct": _moe(
        5120, {"gqa/w8192+dense": 24, "gqa/w8192+moe": 12, "gqa+moe": 12}, (128, 1, 8192, 1)
    ),
    "aic--meta-llama--Llama-4-Scout-17B-16E-Instruct": _moe(
        5120, {"gqa/w8192+moe": 36, "gqa+moe": 12}, (16, 1, 8192, 1)
    ),
    "aic--meta-llama--Meta-Llama-3.1-405B": _dense(126, 16384),
    "aic--meta-llama--Meta-Llama-3.1-70B": _dense(80, 8192),
    "aic--meta-llama--Meta-Llama-3.1-8B": _dense(32, 4096),
    "aic--mistralai--Mixtral-8x22B-v0.1": _moe(6144, {"gqa+moe": 56}, (8, 2, 16384, 0)),
    "aic--mistralai--Mixtral-8x7B-v0.1": MIXTRAL,
    "aic--moonshotai--Kimi-K2-Instruct": KIMI,
    "aic--moonshotai--Kimi-K2.5": KIMI,
    "aic--moonshotai--Kimi-K3": KIMI_K3,
    "aic--openai--gpt-oss-120b": _moe(2880, {"gqa/w128+moe": 18, "gqa+moe": 18}, (128, 4, 2880, 0)),
    "aic--openai--gpt-oss-20b": _moe(2880, {"gqa/w128+moe": 12, "gqa+moe": 12}, (32, 4, 2880, 0)),
    "aic--sgl-project--DeepSeek-V4-Flash-FP8": V4_FLASH,
    "aic--sgl-project--DeepSeek-V4-Pro-FP8": V4_PRO,
    "aic--stepfun-ai--Step-3.7-Flash": STEP,
    "aic--stepfun-ai--Step-3.7-Flash-FP8": STEP,
    "aic--zai-org--GLM-5": GLM_5,
    "aic--zai-org--GLM-5-FP8": GLM_5,
    "aic--zai-org--GLM-5.1": GLM_5,
    "aic--zai-org--GLM-5.1-FP8": GLM_5,
    "aic--zai-org--GLM-5.2": GLM_5,
    "aic--zai-org--GLM-5.2-FP8": GLM_5,
    "infersim--deepseek_v3": MLA_61,
    "infersim--deepseek_v3.2": MLA_61,
    "infersim--qwen3-235B-A22B": QWEN3_235B,
    "infersim--qwen3-30B-A3B": QWEN3_30B,
    "infersim--qwen3-8B": _dense(36, 4096),
    "infersim--qwen3-next-80B-A3B": _moe(2048, {"linear+moe": 36, "gqa+moe": 12}, (512, 10, 512, 1)),
    "infersim--qwen3.5-122B-A10B": QWEN3_5_122B,
    "infersim--qwen3.5-35B-A3B": QWEN3_5_35B,
    "infsim--deepseek-v2-lite": V2_LITE,
    "infsim--llama-2-7b-hf": _dense(32, 4096),
    "infsim--mistral-nemo-instruct-2407": _dense(40, 5120),
    "infsim--qwen2.5-7b-instruct": _dense(28, 3584),
    "infsim--qwen3-14b": _dense(40, 5120),
    "moe-lrc--deepseek": _moe(2048, {"gqa+dense": 1, "gqa+moe": 27}, (64, 6, 1408, 2)),
    "moe-lrc--deepseek2": V2_LITE,
    "moe-lrc--grin": _moe(4096, {"gqa/w2047+moe": 32}, (16, 2, 6400, 0)),
    "moe-lrc--jamba": _moe(4096, {"linear+dense": 12, "linear+moe": 16, "gqa+dense": 4}, (16, 2, 14336, 0)),
    "moe-lrc--llamamoe": LLAMA_MOE,
    "moe-lrc--llamamoe2": _moe(4096, {"gqa/w4096+moe": 32}, (8, 2, 1792, 0)),
    "moe-lrc--llamamoes": LLAMA_MOE,
    "moe-lrc--mixtral": MIXTRAL,
    "moe-lrc--nllb": _moe(2048, ENC_DEC, (128, 2, 8192, 0), tied=True),
    "moe-lrc--olmoe": OLMOE,
    "moe-lrc--olmoedpo": OLMOE,
    "moe-lrc--olmoeins": OLMOE,
    "moe-lrc--olmoesft": OLMOE,
    "moe-lrc--phi": _moe(4096, {"gqa+moe": 32}, (16, 2, 6400, 0)),
    "moe-lrc--powermoe": _moe(1536, {"gqa+moe": 32}, (40, 8, 512, 0), tied=True),
    "moe-lrc--qwen": _moe(2048, {"gqa+moe": 24}, (60, 4, 1408, 1)),
    "moe-lrc--qwen2": _moe(3584, {"gqa+moe": 28}, (64, 8, 2560, 1)),
    "moe-lrc--qwen3": QWEN3_30B,
    "moe-lrc--switch": _moe(768, dict.fromkeys(ENC_DEC, 6), (128, 1, 3072, 0), tied=True),
    "moe-lrc--xverse": _moe(2560, {"gqa+moe": 28}, (64, 6, 1728, 2)),
}

#: file: the key that is not understood.
REFUSED = {
    "moe-lrc--jetmoe": "moe_num_experts",
    "moe-lrc--jetmoechat": "moe_num_experts",
    "moe-lrc--jetmoesft": "moe_num_experts",
    "moe-lrc--llamamoe2s": "intermediate_size_residual",
    "moe-lrc--minicpm": "model_type",
    "moe-lrc--openmoe": "moe_layer_interval",
    "moe-lrc--yuan": "moe_config",
}
