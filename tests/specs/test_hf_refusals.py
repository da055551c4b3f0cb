"""Configs that are refused, by one line that names the key; junk never crashes the import."""

from __future__ import annotations

from typing import Any

import pytest
from hf_cards import FP8, card_config, config_groups, imported
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.specs import hf
from moesim.specs.model import ModelSpec

DENSE = card_config("llama-2-7b")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**DENSE, "num_local_experts": 8, "num_experts_per_tok": 2}, "num_local_experts"),
        ({**DENSE, "moe_intermediate_size": 512}, "moe_intermediate_size"),
        ({**DENSE, "num_experts": 4}, "num_experts"),
        ({**DENSE, "ffn_config": {"moe_num_experts": 8}}, "ffn_config"),
        ({**DENSE, "model_type": "new_moe", "n_routed_experts": 8}, "model_type"),
        ({**DENSE, "model_type": "new", "router_topk": 2}, "model_type"),
        ({**DENSE, "model_type": "new", "moe": {"n": 8}}, "model_type"),
        ({**card_config("qwen3-8b"), "num_experts": 128, "num_experts_per_tok": 8}, "num_experts"),
        ({"text_config": DENSE, "model_type": "wrapped", "num_experts": 8}, "num_experts"),
        ({"text_config": {**DENSE, "num_experts": 8}, "model_type": "wrapped"}, "text_config.num_experts"),
        (card_config("mixtral-8x7b", n_shared_experts=1), "n_shared_experts"),
        (card_config("qwen3-30b-a3b", n_shared_experts=1), "n_shared_experts"),
        (card_config("deepseek-v3", index_topk=2048), "index_topk"),
        (
            card_config("dbrx", ffn_config={**card_config("dbrx")["ffn_config"], "n_shared_experts": 1}),
            "ffn_config.n_shared_experts",
        ),
        (card_config("deepseek-v3", hc_mult=4, compress_ratios=[1] * 61), "compress_ratios"),
        (card_config("deepseek-v3", routed_expert_hidden_size=3584), "routed_expert_hidden_size"),
    ],
)
def test_an_moe_is_never_read_as_dense_nor_a_stranger_as_a_friend(config, field):
    with pytest.raises(InputError) as caught:
        hf.import_config(config, "x")
    assert caught.value.field == field


RMS = {"rms_norm_eps": 1e-5, "hidden_act": "silu"}


def test_an_unknown_dense_model_that_looks_like_llama_is_read_as_one():
    model = hf.import_config({**DENSE, **RMS, "model_type": "new", "num_experts": 0, "rope_theta": 1e4}, "new")
    assert model.layers == hf.import_config(DENSE, "llama").layers


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**DENSE, "model_type": "new"}, "model_type"),
        ({**DENSE, **RMS, "model_type": "new", "hidden_act": "gelu"}, "model_type"),
        ({**DENSE, **RMS, "model_type": "new", "sliding_window": 4096}, "sliding_window"),
        ({**DENSE, **RMS, "model_type": "new", "anything_else": 3}, "anything_else"),
        ({"model_type": "bert", "hidden_size": 768}, "model_type"),
        ({}, "model_type"),
    ],
)
def test_other_unknown_models_are_refused(config, field):
    with pytest.raises(InputError) as caught:
        hf.import_config(config, "x")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("mixtral-8x7b", {"hidden_size": "DROP"}, "hidden_size"),
        ("mixtral-8x7b", {"hidden_size": "4096"}, "hidden_size"),
        ("mixtral-8x7b", {"hidden_size": 4096.0}, "hidden_size"),
        ("mixtral-8x7b", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("mixtral-8x7b", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("mixtral-8x7b", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("mixtral-8x7b", {"num_attention_heads": 33}, "num_key_value_heads"),
        ("mixtral-8x7b", {"num_attention_heads": 24, "head_dim": "DROP"}, "num_attention_heads"),
        ("mixtral-8x7b", {"num_experts": 16}, "num_local_experts"),
        ("mixtral-8x7b", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gpt-oss-20b", {"layer_types": ["magic"] * 24}, "layer_types"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [48]}, "mlp_only_layers"),
        ("deepseek-v3", {"moe_layer_freq": [1] * 60}, "moe_layer_freq"),
        ("deepseek-v3", {"moe_layer_freq": [2] * 61}, "moe_layer_freq"),
        ("deepseek-v3", {"topk_group": 9}, "n_group"),
        ("deepseek-v3", {"kv_lora_rank": "DROP"}, "kv_lora_rank"),
        ("deepseek-v3", {"attention_bias": True}, "attention_bias"),
        ("glm-5", {"index_topk_freq": 4}, "index_topk_freq"),
        ("gemma-4-26b-a4b", {"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input"),
        ("minimax-m2", {"attn_type_list": [0] * 62}, "attn_type_list"),
        ("switch-base-128", {"feed_forward_proj": "gated-gelu"}, "feed_forward_proj"),
        ("olmoe-1b-7b", {"torch_dtype": "int3"}, "torch_dtype"),
        ("olmoe-1b-7b", {"expert_dtype": "fp2"}, "expert_dtype"),
        ("olmoe-1b-7b", {"quantization_config": "fp8"}, "quantization_config"),
        ("olmoe-1b-7b", {"quantization_config": {"quant_method": "magic"}}, "quantization_config.quant_method"),
        ("olmoe-1b-7b", {"quantization_config": {"quant_method": "gptq", "bits": 3}}, "quantization_config.bits"),
        ("olmoe-1b-7b", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
         "quantization_config.weight_block_size"),
        ("olmoe-1b-7b", {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["re:("]}},
         "quantization_config.modules_to_not_convert"),
        ("olmoe-1b-7b", {"quantization_config": config_groups({"num_bits": 6, "type": "float"}, None)},
         "quantization_config.config_groups.group_0.weights.num_bits"),
        ("olmoe-1b-7b", {"quantization_config": config_groups(FP8, FP8, kv_cache_scheme="FP2")},
         "quantization_config.kv_cache_scheme"),
    ],
)  # fmt: skip
def test_a_broken_config_is_one_line_that_names_the_key(name, changes, field):
    with pytest.raises(InputError) as caught:
        imported(name, **changes)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-1, 3), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
FAMILIES = [
    "arctic",
    "dbrx",
    "deepseek-moe-16b",
    "deepseek-v3",
    "gemma-3-27b",
    "gemma-4-26b-a4b",
    "glam-64b-64e",
    "glm-4.5",
    "glm-5-fp8",
    "gpt-oss-20b",
    "grok-1",
    "hunyuan-large",
    "jamba-v0.1",
    "kimi-k2.5",
    "llama-4-maverick",
    "mimo-v2-flash",
    "minimax-m2",
    "mixtral-8x7b",
    "nllb-moe-54b",
    "phi-3.5-moe",
    "powermoe-3b",
    "qwen2-57b-a14b",
    "qwen3-next-80b-a3b",
    "qwen3.5-27b",
    "switch-base-128",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.data())
def test_junk_is_refused_or_read_and_never_crashes(data):
    name = data.draw(st.sampled_from(FAMILIES))
    config = card_config(name)
    for _ in range(data.draw(st.integers(1, 3))):
        config[data.draw(st.sampled_from([*config, "quantization_config", "layer_types"]))] = data.draw(JUNK)
    outcome = _outcome(config)
    if isinstance(outcome, InputError):
        assert outcome.field
        assert "\n" not in str(outcome)
    else:
        assert 0 < outcome.n_active_params <= outcome.n_params


def _outcome(config: dict[str, Any]) -> ModelSpec | InputError:
    try:
        return hf.import_config(config, "junk")
    except InputError as error:
        return error
