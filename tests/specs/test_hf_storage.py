"""Number formats of weights, activations and caches that a config names."""

from __future__ import annotations

import pytest
from hf_cards import FP4, FP8, INT4, config_groups, imported

from moesim.specs.dtypes import Dtype


@pytest.mark.parametrize(
    ("quant", "dtype", "bytes_per_element", "activation"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Dtype.FP8_BLOCK, 1 + 4 / 16384, Dtype.FP8),
        ({"quant_method": "fp8", "activation_scheme": "static"}, Dtype.FP8, 1.0, Dtype.FP8),
        ({"quant_method": "fbgemm_fp8"}, Dtype.FP8, 1.0, Dtype.FP8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Dtype.INT4, 0.5 + 2 / 128, Dtype.BF16),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, Dtype.INT4, 0.5 + 2 / 64, Dtype.BF16),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Dtype.INT8, 1.0, Dtype.BF16),
        (config_groups(INT4, None), Dtype.INT4, 0.5 + 2 / 32, Dtype.BF16),
        (config_groups(FP4, FP4), Dtype.NVFP4, 0.5 + 1 / 16, Dtype.NVFP4),
        (config_groups(FP4, None), Dtype.NVFP4, 0.5 + 1 / 16, Dtype.BF16),
        (config_groups({**FP4, "group_size": 32}, None), Dtype.MXFP4, 0.5 + 1 / 32, Dtype.BF16),
        (config_groups(FP8, FP8), Dtype.FP8, 1.0, Dtype.FP8),
        (config_groups({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}), Dtype.INT8, 1.0, Dtype.INT8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Dtype.NVFP4, 0.5 + 1 / 16, Dtype.NVFP4),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Dtype.FP8, 1.0, Dtype.FP8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Dtype.INT4, 0.5 + 4 / 64, Dtype.BF16),
    ],
)
def test_formats_of_linear_layers(quant, dtype, bytes_per_element, activation):
    storage = imported("mixtral-8x7b", quantization_config=quant).storage
    assert storage.routed_experts.dtype is storage.attention.dtype is dtype
    assert storage.routed_experts.bytes_per_element == pytest.approx(bytes_per_element)
    assert storage.activation is storage.expert_activation is activation
    assert storage.embedding.dtype is storage.lm_head.dtype is storage.router.dtype is storage.norm.dtype is Dtype.BF16


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-next-80b-a3b", "llama-4-scout"])
@pytest.mark.parametrize(
    ("ignored", "kept"),
    [
        (["lm_head"], set()),
        (["re:.*self_attn.*", "re:.*linear_attn.*"], {"attention"}),
        (["model.layers.*.self_attn*", "model.layers.*.linear_attn"], {"attention"}),
        (["self_attn", "linear_attn"], {"attention"}),
        (["re:.*shared_experts?.*"], {"shared_experts"}),
        (["re:.*mlp.experts.*", "re:.*feed_forward.experts.*"], {"routed_experts"}),
        (["gate", "router", "e_score_correction_bias"], set()),
        ([f"model.layers.{i}.self_attn.q_norm" for i in range(61)], set()),
        ([f"model.layers.{i}.mlp.gate" for i in range(61)], set()),
        (["model.layers.0.self_attn", "model.layers.1.self_attn"], set()),
    ],
)
def test_modules_not_to_convert(name, ignored, kept):
    quant = {"quant_method": "fp8", "modules_to_not_convert": ignored}
    storage = imported(name, quantization_config=quant, dtype="bfloat16").storage
    linear = {"attention", "routed_experts", "shared_experts"}
    assert {kind for kind in linear if getattr(storage, kind).dtype is Dtype.BF16} == kept


def test_ignored_modules_layer_by_layer():
    quant = config_groups(
        INT4, None, ignore=[f"model.layers.{i}.self_attn.{p}_proj" for i in range(32) for p in "qkvo"]
    )
    storage = imported("mixtral-8x7b", quantization_config=quant).storage
    assert storage.attention.dtype is Dtype.BF16
    assert storage.routed_experts.dtype is Dtype.INT4


def test_mxfp4_is_for_experts_alone():
    storage = imported("gpt-oss-20b").storage
    assert storage.routed_experts.bytes_per_element == pytest.approx(0.53125)
    assert storage.attention.dtype is Dtype.BF16


def test_expert_dtype():
    storage = imported("deepseek-v3", expert_dtype="fp4").storage
    assert storage.routed_experts.dtype is Dtype.MXFP4
    assert storage.shared_experts.dtype is storage.attention.dtype is Dtype.FP8_BLOCK


@pytest.mark.parametrize("scheme", ["FP8", {"num_bits": 8, "type": "float", "dynamic": False}])
def test_kv_cache_in_fp8(scheme):
    storage = imported("qwen3-32b", quantization_config=config_groups(FP8, FP8, kv_cache_scheme=scheme)).storage
    assert storage.kv_cache.dtype is Dtype.FP8


@pytest.mark.parametrize(
    ("name", "dtype"), [("float16", Dtype.FP16), ("bfloat16", Dtype.BF16), ("torch.float32", Dtype.FP32)]
)
def test_plain_dtypes(name, dtype):
    storage = imported("olmoe-1b-7b", torch_dtype=name).storage
    assert storage.routed_experts.dtype is storage.embedding.dtype is storage.kv_cache.dtype is dtype
