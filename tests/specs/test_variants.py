"""Checkpoint names that are not in the catalog: which model and which format they stand for."""

from __future__ import annotations

import pytest

from moesim.errors import CatalogError
from moesim.specs.catalog import load_card, load_model
from moesim.specs.dtypes import Dtype


@pytest.mark.parametrize(
    ("name", "base", "experts_or_ffn", "attention"),
    [
        ("nvidia/DeepSeek-R1-0528-FP4-V2", "deepseek-r1", Dtype.NVFP4, Dtype.BF16),
        ("nvidia/Kimi-K2.5-NVFP4", "kimi-k2.5", Dtype.NVFP4, Dtype.BF16),
        ("nvidia/Qwen3-235B-A22B-NVFP4", "qwen3-235b-a22b", Dtype.NVFP4, Dtype.NVFP4),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", "qwen3-coder-480b-a35b", Dtype.FP8_BLOCK, Dtype.FP8_BLOCK),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "qwen3-235b-a22b-fp8", Dtype.FP8_BLOCK, Dtype.FP8_BLOCK),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b", Dtype.BF16, Dtype.BF16),
        ("unsloth/gpt-oss-120b-BF16", "gpt-oss-120b", Dtype.BF16, Dtype.BF16),
    ],
)
def test_a_mixture_checkpoint_name_stands_for_its_base_in_the_format_it_names(
    name: str, base: str, experts_or_ffn: Dtype, attention: Dtype
) -> None:
    model, base_model = load_model(name), load_model(base)
    assert (model.storage.routed_experts.dtype, model.storage.attention.dtype) == (experts_or_ffn, attention)
    assert model.layers == base_model.layers
    assert model.n_params == base_model.n_params
    assert "same shape" in (model.note or "")
    assert base_model.note is None


@pytest.mark.parametrize(
    ("name", "base", "weights", "kv_cache"),
    [
        ("nvidia/Llama-3.3-70B-Instruct-FP8", "llama-3.1-70b", Dtype.FP8, Dtype.FP8),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "llama-3.1-70b", Dtype.NVFP4, Dtype.FP8),
        ("RedHatAI/Meta-Llama-3.1-405B-Instruct-FP8-dynamic", "llama-3.1-405b", Dtype.FP8, Dtype.FP8),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", "qwen2.5-72b", Dtype.INT4, Dtype.BF16),
        ("Qwen/Qwen3-32B-AWQ", "qwen3-32b", Dtype.INT4, Dtype.BF16),
        ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b", Dtype.FP16, Dtype.FP16),
    ],
)
def test_a_dense_checkpoint_name_too(name: str, base: str, weights: Dtype, kv_cache: Dtype) -> None:
    storage = load_model(name).storage
    assert (storage.dense_ffn.dtype, storage.attention.dtype, storage.kv_cache.dtype) == (weights, weights, kv_cache)
    assert load_model(name).layers == load_model(base).layers


@pytest.mark.parametrize("name", ["qwen3-33b", "deepseek-r1-distill-llama-71b", "nvidia/-FP8", "-FP8", "meta-"])
def test_other_sizes_and_empty_names_are_refused(name: str) -> None:
    with pytest.raises(CatalogError, match="no model of this name"):
        load_model(name)


def test_a_card_of_the_catalog_is_not_taken_for_a_variant() -> None:
    assert load_model("Qwen/Qwen3-30B-A3B-FP8").name == "qwen3-30b-a3b-fp8"
    assert "taken as" not in (load_card("qwen3-30b-a3b-fp8").note or "")


@pytest.mark.parametrize(
    ("name", "attention", "dense", "experts", "shared"),
    [
        # what the published files of these checkpoints say (hf_quant_config.json or quantization_config)
        ("nvidia/DeepSeek-V3.2-NVFP4", "bf16", "nvfp4", "nvfp4", "nvfp4"),
        ("nvidia/DeepSeek-V4-Flash-NVFP4", "fp8_block", "fp8_block", "nvfp4", "fp8_block"),
        ("nvidia/GLM-5-NVFP4", "bf16", "nvfp4", "nvfp4", "nvfp4"),
        ("nvidia/GLM-5.1-NVFP4", "bf16", "bf16", "nvfp4", "bf16"),
        ("nvidia/Kimi-K2.6-NVFP4", "bf16", "bf16", "nvfp4", "bf16"),
        ("nvidia/Gemma-4-26B-A4B-NVFP4", "bf16", "bf16", "nvfp4", "bf16"),
        ("nvidia/Gemma-4-31B-IT-NVFP4", "bf16", "nvfp4", "nvfp4", "nvfp4"),
        ("nvidia/MiniMax-M2.5-NVFP4", "bf16", "nvfp4", "nvfp4", "nvfp4"),
        ("nvidia/MiniMax-M3-NVFP4", "fp8_block", "fp8_block", "nvfp4", "fp8_block"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4", "nvfp4", "nvfp4", "nvfp4", "nvfp4"),
        ("nvidia/Qwen3.6-35B-A3B-NVFP4", "fp8", "bf16", "nvfp4", "nvfp4"),
    ],
)
def test_what_nvfp4_checkpoints_leave_alone_is_a_fact_of_each_family(
    name: str, attention: str, dense: str, experts: str, shared: str
) -> None:
    storage = load_model(name).storage
    found = (storage.attention, storage.dense_ffn, storage.routed_experts, storage.shared_experts)
    assert tuple(s.dtype.value for s in found) == (attention, dense, experts, shared)
    assert storage.router.dtype is Dtype.BF16
    assert storage.routed_experts.weight_only is ("Qwen3.6" in name)
