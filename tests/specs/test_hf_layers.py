"""How a config's keys become a plan of layers, one rule after another."""

from __future__ import annotations

import pytest
from hf_cards import card_config, imported

from moesim.specs import hf
from moesim.specs.dtypes import Dtype
from moesim.specs.model import GqaAttention, LinearAttention, MlaAttention


def test_leading_dense_layers():
    assert imported("deepseek-v3").moe_layers == tuple(range(3, 61))
    assert imported("deepseek-v3", first_k_dense_replace=0).moe_layers == tuple(range(61))


def test_moe_layer_freq_as_step_and_as_list():
    assert imported("deepseek-v3", moe_layer_freq=2).moe_layers == tuple(range(4, 61, 2))
    plan = [0, 1] * 30 + [1]
    assert imported("deepseek-v3", moe_layer_freq=plan).moe_layers == tuple(i for i, on in enumerate(plan) if on)


def test_decoder_sparse_step_and_mlp_only_layers():
    model = imported("qwen3-30b-a3b", decoder_sparse_step=2, mlp_only_layers=[1, 3], intermediate_size=6144)
    assert model.moe_layers == tuple(range(5, 48, 2))


def test_interleaved_moe_of_llama_4():
    assert imported("llama-4-maverick").moe_layers == tuple(range(1, 48, 2))
    assert len(imported("llama-4-scout").moe_layers) == 48


def test_jamba_puts_experts_and_attention_by_period_and_offset():
    model = imported("jamba-v0.1")
    assert model.moe_layers == tuple(range(1, 32, 2))
    attends = [i for i, layer in enumerate(model.layers) if isinstance(layer.attention, GqaAttention)]
    assert attends == [4, 12, 20, 28]


def test_linear_layers_come_three_to_one():
    model = imported("qwen3-next-80b-a3b")
    full = [i for i, layer in enumerate(model.layers) if isinstance(layer.attention, GqaAttention)]
    assert full == list(range(3, 48, 4))
    linear = model.layers[0].attention
    assert isinstance(linear, LinearAttention)
    assert linear.state_elements == 32 * 128 * 128 + (2 * 16 * 128 + 32 * 128) * 3
    assert linear.kv_elements_per_token() == 0


def test_windows_by_pattern():
    gemma = imported("gemma-3-27b")
    full = [i for i, layer in enumerate(gemma.layers) if layer.attention.sliding_window is None]
    assert full == list(range(5, 62, 6))
    assert {layer.attention.sliding_window for layer in gemma.layers} == {None, 1024}
    gemma2 = imported("gemma-2-9b")
    assert [layer.attention.sliding_window for layer in gemma2.layers[:4]] == [4096, None, 4096, None]
    assert {layer.attention.sliding_window for layer in imported("mistral-7b").layers} == {4096}


def test_qwen_window_counts_only_where_it_is_used():
    changes = {"sliding_window": 4096, "max_window_layers": 20}
    assert {layer.attention.sliding_window for layer in imported("qwen2.5-7b", **changes).layers} == {None}
    used = imported("qwen2.5-7b", use_sliding_window=True, **changes)
    assert [layer.attention.sliding_window for layer in used.layers] == [None] * 20 + [4096] * 8


def test_mimo_has_more_kv_heads_and_sinks_in_windowed_layers():
    model = imported("mimo-v2-flash")
    full, windowed = model.layers[0].attention, model.layers[1].attention
    assert (full.n_kv_heads, full.head_dim, full.v_head_dim, full.extra_params) == (4, 192, 128, 0)
    assert (windowed.n_kv_heads, windowed.sliding_window, windowed.extra_params) == (8, 128, 64)
    assert full.kv_elements_per_token() == 4 * (192 + 128)


def test_latent_attention_caches_latent_rotary_key_and_index():
    plain, indexed = imported("deepseek-v3").layers[0].attention, imported("deepseek-v3.2").layers[0].attention
    assert isinstance(plain, MlaAttention)
    assert isinstance(indexed, MlaAttention)
    assert plain.kv_elements_per_token() == 512 + 64
    assert indexed.kv_elements_per_token() == 512 + 64 + 128
    assert indexed.index_topk == 2048


def test_shared_index_layers_keep_the_top_k_and_lose_the_index():
    model = imported("glm-5", indexer_types=["full"] * 3 + ["shared"] * 75)
    assert model.layers[0].attention.index_n_heads == 32
    assert model.layers[3].attention.index_n_heads is None
    assert model.layers[3].attention.index_topk == 2048


def test_groups_of_experts():
    moe = imported("deepseek-v3").moe_ffn
    assert moe is not None
    assert (moe.n_group, moe.topk_group, moe.router_bias) == (8, 4, True)


def test_shared_experts_with_and_without_gate():
    gated, plain = imported("qwen2-57b-a14b").moe_ffn, imported("deepseek-moe-16b").moe_ffn
    assert gated is not None
    assert plain is not None
    assert (gated.shared_intermediate_size, gated.shared_expert_gate) == (20480, True)
    assert (plain.n_shared_experts, plain.shared_intermediate_size, plain.shared_expert_gate) == (2, 2816, False)


def test_mtp_layers_are_counted_apart():
    """DeepSeek-V3's README: 671B, and 14B of MTP, which repeat embedding and head (2 x 0.93B)."""
    model = imported("deepseek-v3")
    assert model.n_params == imported("deepseek-v3", num_nextn_predict_layers=0).n_params
    repeated = model.embedding_params + model.lm_head_params
    assert model.n_mtp_params + repeated == pytest.approx(14e9, rel=0.04)


def test_mtp_layers_of_hybrids_attend_in_full():
    for layer in imported("qwen3.5-35b-a3b").mtp_layers:
        assert isinstance(layer.attention, GqaAttention)


def test_encoder_and_decoder():
    model = imported("switch-base-128")
    assert [layer.stack for layer in model.layers] == ["encoder"] * 12 + ["decoder"] * 12
    assert all((layer.cross_attention is not None) == (layer.stack == "decoder") for layer in model.layers)
    assert model.moe_ffn is not None
    assert not model.moe_ffn.gated


def test_glam_gates_its_dense_blocks_and_not_its_experts():
    model = imported("glam-64b-64e")
    assert model.layers[0].ffn.kind == "dense"
    assert model.layers[0].ffn.gated
    assert not model.moe_ffn.gated
    assert len(model.moe_layers) == 32


def test_cross_layer_attention_reuses_keys_and_values():
    model = imported("hunyuan-large")
    own, reused = model.layers[0].attention, model.layers[1].attention
    assert own.kv_elements_per_token() == 2 * 8 * 80
    assert reused.kv_elements_per_token() == 0
    assert own.n_params(6400) - reused.n_params(6400) == 6400 * 2 * 8 * 80


def test_gemma_4_has_wider_full_layers_with_keys_as_values():
    model = imported("gemma-4-26b-a4b")
    windowed, full = model.layers[0].attention, model.layers[5].attention
    assert (windowed.head_dim, windowed.n_kv_heads, windowed.k_is_v) == (256, 8, False)
    assert (full.head_dim, full.n_kv_heads, full.k_is_v) == (512, 2, True)
    assert model.moe_ffn.dense_residual.intermediate_size == 2112


def test_arctic_has_a_dense_block_beside_its_experts():
    moe = imported("arctic").moe_ffn
    assert moe is not None
    assert moe.dense_residual is not None
    assert moe.dense_residual.intermediate_size == 7168


def test_longest_context():
    assert imported("mixtral-8x7b").max_position_embeddings == 32768
    assert imported("dbrx").max_position_embeddings == 32768


def test_null_counts_as_absent():
    assert imported("mixtral-8x7b", sliding_window=None, head_dim=None) == imported("mixtral-8x7b")


def test_text_model_of_a_multimodal_config():
    inner = card_config("gemma-3-27b")
    outer = {"model_type": "gemma3", "text_config": inner, "vision_config": {"hidden_size": 1152}, "mm_tokens": 256}
    assert hf.import_config(outer, "gemma-3-27b") == imported("gemma-3-27b")
    del inner["model_type"]
    assert hf.import_config(outer, "gemma-3-27b") == imported("gemma-3-27b")


def test_keys_of_other_towers_do_not_matter():
    outer = {"model_type": "mistral3", "text_config": card_config("mistral-7b"), "vision_config": {"num_hidden_layers": 24},
             "spatial_merge_size": 2, "vision_feature_layer": -1, "multimodal_projector_bias": True}  # fmt: skip
    assert hf.import_config(outer, "mistral-7b") == imported("mistral-7b")


def test_keys_that_shape_nothing_do_not_matter():
    llama = {"_attn_implementation_autoset": True, "embd_pdrop": 0.1, "pretraining_tp": 1, "rope_scaling": {"factor": 8.0},
             "unsloth_fixed": True, "output_hidden_states": True, "num_beams": 4}  # fmt: skip
    assert imported("llama-2-7b", **llama) == imported("llama-2-7b")
    minimax = {"layernorm_full_attention_alpha": 1.0, "layernorm_mlp_beta": 1.0, "attn_type_list": [1] * 62}
    assert imported("minimax-m2", **minimax) == imported("minimax-m2")
    ffn = {
        **card_config("dbrx")["ffn_config"],
        "moe_loss_weight": 0.05,
        "moe_normalize_expert_weights": 1,
        "moe_jitter_eps": 0.01,
    }
    assert imported("dbrx", ffn_config=ffn, resid_pdrop=0.1) == imported("dbrx")


def test_quantisation_and_tying_beside_the_text_model():
    quant = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    outer = {"model_type": "llava", "text_config": card_config("llama-2-7b", tie_word_embeddings="DROP"),
             "tie_word_embeddings": True, "quantization_config": quant}  # fmt: skip
    model = hf.import_config(outer, "llava")
    assert model.tie_word_embeddings
    assert model.storage.attention.dtype is Dtype.FP8_BLOCK
