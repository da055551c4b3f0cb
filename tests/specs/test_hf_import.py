"""Import of Hugging Face configs: every real config that was collected, the rules one by one, and what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.specs import catalog, hf
from moesim.specs.dtypes import Dtype
from moesim.specs.model import GqaAttention, LinearAttention, MlaAttention, ModelSpec

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "hf_configs").is_dir(), reason="no ../shared/data beside the checkout")

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


def _read(stem: str) -> dict[str, Any]:
    folder = DATA / "hf_configs"
    path = folder / f"{stem}_config.json"
    path = path if path.is_file() else folder / f"{stem}.json"
    return dict(json.loads(path.read_text()))


@needs_data
def test_every_collected_config_is_in_the_tables():
    found = {path.stem.removesuffix("_config") for path in (DATA / "hf_configs").glob("*.json")}
    assert found == set(IMPORTED) | set(REFUSED)
    assert len(found) >= 94


@needs_data
@pytest.mark.parametrize("stem", IMPORTED)
def test_collected_config_imports_with_its_layer_plan(stem):
    hidden, kinds, moe, n_mtp, tied = IMPORTED[stem]
    model = hf.import_config(_read(stem), stem)
    assert model.hidden_size == hidden
    assert dict(Counter(layer.kind for layer in model.layers)) == kinds
    found = model.moe_ffn
    shape = None
    if found is not None:
        shape = (
            found.n_routed_experts, found.num_experts_per_tok, found.moe_intermediate_size, found.n_shared_experts
        )  # fmt: skip
    assert shape == moe
    assert len(model.mtp_layers) == n_mtp
    assert model.tie_word_embeddings is tied


@needs_data
@pytest.mark.parametrize("stem", REFUSED)
def test_collected_config_is_refused_by_the_key_not_understood(stem):
    with pytest.raises(InputError) as caught:
        hf.import_config(_read(stem), stem)
    assert caught.value.field == REFUSED[stem]
    assert "\n" not in str(caught.value)
    assert REFUSED[stem] in str(caught.value)


def _number(text: str) -> int | None:
    return int(float(text)) if text else None


@needs_data
def test_shapes_agree_with_the_collected_table():
    """models.csv was made by other hands from the same files."""
    n_rows = 0
    for row in csv.DictReader((DATA / "models.csv").read_text().splitlines()):
        stem = "aic--" + Path(row["source"].split(":")[-1]).name.removesuffix("_config.json")
        if row["confidence"] != "config" or stem not in IMPORTED:
            continue
        n_rows += 1
        model = hf.import_config(_read(stem), stem)
        assert len(model.layers) == _number(row["layers"]), stem
        assert model.vocab_size == _number(row["vocab"]), stem
        assert model.tie_word_embeddings == (row["tied_embed"] == "1"), stem
        assert len(model.moe_layers) == (_number(row["n_moe_layers"]) or 0), stem
        heads = {layer.attention.n_heads for layer in model.layers if not isinstance(layer.attention, LinearAttention)}
        assert heads == {_number(row["heads"])}, stem
        if model.moe_ffn is not None:
            moe = model.moe_ffn
            assert moe.n_routed_experts == _number(row["n_routed_experts"]), stem
            assert moe.num_experts_per_tok == _number(row["top_k"]), stem
            assert moe.moe_intermediate_size == _number(row["moe_ffn"]), stem
            assert moe.shared_intermediate_size == (_number(row["shared_ffn"]) or 0), stem
    assert n_rows >= 30


def _card(name: str, **changes: Any) -> dict[str, Any]:
    config = {**catalog.load_card(name).config, **changes}
    return {key: value for key, value in config.items() if value != "DROP"}


def _import(name: str, **changes: Any) -> ModelSpec:
    return hf.import_config(_card(name, **changes), name)


# --- layer plans


def test_leading_dense_layers():
    assert _import("deepseek-v3").moe_layers == tuple(range(3, 61))
    assert _import("deepseek-v3", first_k_dense_replace=0).moe_layers == tuple(range(61))


def test_moe_layer_freq_as_step_and_as_list():
    assert _import("deepseek-v3", moe_layer_freq=2).moe_layers == tuple(range(4, 61, 2))
    plan = [0, 1] * 30 + [1]
    assert _import("deepseek-v3", moe_layer_freq=plan).moe_layers == tuple(i for i, on in enumerate(plan) if on)


def test_decoder_sparse_step_and_mlp_only_layers():
    model = _import("qwen3-30b-a3b", decoder_sparse_step=2, mlp_only_layers=[1, 3], intermediate_size=6144)
    assert model.moe_layers == tuple(range(5, 48, 2))


def test_interleaved_moe_of_llama_4():
    assert _import("llama-4-maverick").moe_layers == tuple(range(1, 48, 2))
    assert len(_import("llama-4-scout").moe_layers) == 48


def test_jamba_puts_experts_and_attention_by_period_and_offset():
    model = _import("jamba-v0.1")
    assert model.moe_layers == tuple(range(1, 32, 2))
    attends = [i for i, layer in enumerate(model.layers) if isinstance(layer.attention, GqaAttention)]
    assert attends == [4, 12, 20, 28]


def test_linear_layers_come_three_to_one():
    model = _import("qwen3-next-80b-a3b")
    full = [i for i, layer in enumerate(model.layers) if isinstance(layer.attention, GqaAttention)]
    assert full == list(range(3, 48, 4))
    linear = model.layers[0].attention
    assert isinstance(linear, LinearAttention)
    assert linear.state_elements == 32 * 128 * 128 + (2 * 16 * 128 + 32 * 128) * 3
    assert linear.kv_elements_per_token() == 0


def test_windows_by_pattern():
    gemma = _import("gemma-3-27b")
    full = [i for i, layer in enumerate(gemma.layers) if layer.attention.sliding_window is None]
    assert full == list(range(5, 62, 6))
    assert {layer.attention.sliding_window for layer in gemma.layers} == {None, 1024}
    gemma2 = _import("gemma-2-9b")
    assert [layer.attention.sliding_window for layer in gemma2.layers[:4]] == [4096, None, 4096, None]
    assert {layer.attention.sliding_window for layer in _import("mistral-7b").layers} == {4096}


def test_qwen_window_counts_only_where_it_is_used():
    changes = {"sliding_window": 4096, "max_window_layers": 20}
    assert {layer.attention.sliding_window for layer in _import("qwen2.5-7b", **changes).layers} == {None}
    used = _import("qwen2.5-7b", use_sliding_window=True, **changes)
    assert [layer.attention.sliding_window for layer in used.layers] == [None] * 20 + [4096] * 8


def test_mimo_has_more_kv_heads_and_sinks_in_windowed_layers():
    model = _import("mimo-v2-flash")
    full, windowed = model.layers[0].attention, model.layers[1].attention
    assert (full.n_kv_heads, full.head_dim, full.v_head_dim, full.extra_params) == (4, 192, 128, 0)
    assert (windowed.n_kv_heads, windowed.sliding_window, windowed.extra_params) == (8, 128, 64)
    assert full.kv_elements_per_token() == 4 * (192 + 128)


def test_latent_attention_caches_latent_rotary_key_and_index():
    plain, indexed = _import("deepseek-v3").layers[0].attention, _import("deepseek-v3.2").layers[0].attention
    assert isinstance(plain, MlaAttention)
    assert isinstance(indexed, MlaAttention)
    assert plain.kv_elements_per_token() == 512 + 64
    assert indexed.kv_elements_per_token() == 512 + 64 + 128
    assert indexed.index_topk == 2048


def test_shared_index_layers_keep_the_top_k_and_lose_the_index():
    model = _import("glm-5", indexer_types=["full"] * 3 + ["shared"] * 75)
    assert model.layers[0].attention.index_n_heads == 32
    assert model.layers[3].attention.index_n_heads is None
    assert model.layers[3].attention.index_topk == 2048


def test_groups_of_experts():
    moe = _import("deepseek-v3").moe_ffn
    assert moe is not None
    assert (moe.n_group, moe.topk_group, moe.router_bias) == (8, 4, True)


def test_shared_experts_with_and_without_gate():
    gated, plain = _import("qwen2-57b-a14b").moe_ffn, _import("deepseek-moe-16b").moe_ffn
    assert gated is not None
    assert plain is not None
    assert (gated.shared_intermediate_size, gated.shared_expert_gate) == (20480, True)
    assert (plain.n_shared_experts, plain.shared_intermediate_size, plain.shared_expert_gate) == (2, 2816, False)


def test_mtp_layers_are_counted_apart():
    """DeepSeek-V3's README: 671B, and 14B of MTP, which repeat embedding and head (2 x 0.93B)."""
    model = _import("deepseek-v3")
    assert model.n_params == _import("deepseek-v3", num_nextn_predict_layers=0).n_params
    repeated = model.embedding_params + model.lm_head_params
    assert model.n_mtp_params + repeated == pytest.approx(14e9, rel=0.04)


def test_mtp_layers_of_hybrids_attend_in_full():
    for layer in _import("qwen3.5-35b-a3b").mtp_layers:
        assert isinstance(layer.attention, GqaAttention)


def test_encoder_and_decoder():
    model = _import("switch-base-128")
    assert [layer.stack for layer in model.layers] == ["encoder"] * 12 + ["decoder"] * 12
    assert all((layer.cross_attention is not None) == (layer.stack == "decoder") for layer in model.layers)
    assert model.moe_ffn is not None
    assert not model.moe_ffn.gated


def test_glam_gates_its_dense_blocks_and_not_its_experts():
    model = _import("glam-64b-64e")
    assert model.layers[0].ffn.kind == "dense"
    assert model.layers[0].ffn.gated
    assert not model.moe_ffn.gated
    assert len(model.moe_layers) == 32


def test_cross_layer_attention_reuses_keys_and_values():
    model = _import("hunyuan-large")
    own, reused = model.layers[0].attention, model.layers[1].attention
    assert own.kv_elements_per_token() == 2 * 8 * 80
    assert reused.kv_elements_per_token() == 0
    assert own.n_params(6400) - reused.n_params(6400) == 6400 * 2 * 8 * 80


def test_gemma_4_has_wider_full_layers_with_keys_as_values():
    model = _import("gemma-4-26b-a4b")
    windowed, full = model.layers[0].attention, model.layers[5].attention
    assert (windowed.head_dim, windowed.n_kv_heads, windowed.k_is_v) == (256, 8, False)
    assert (full.head_dim, full.n_kv_heads, full.k_is_v) == (512, 2, True)
    assert model.moe_ffn.dense_residual.intermediate_size == 2112


def test_arctic_has_a_dense_block_beside_its_experts():
    moe = _import("arctic").moe_ffn
    assert moe is not None
    assert moe.dense_residual is not None
    assert moe.dense_residual.intermediate_size == 7168


def test_longest_context():
    assert _import("mixtral-8x7b").max_position_embeddings == 32768
    assert _import("dbrx").max_position_embeddings == 32768


def test_null_counts_as_absent():
    assert _import("mixtral-8x7b", sliding_window=None, head_dim=None) == _import("mixtral-8x7b")


def test_text_model_of_a_multimodal_config():
    inner = _card("gemma-3-27b")
    outer = {"model_type": "gemma3", "text_config": inner, "vision_config": {"hidden_size": 1152}, "mm_tokens": 256}
    assert hf.import_config(outer, "gemma-3-27b") == _import("gemma-3-27b")
    del inner["model_type"]
    assert hf.import_config(outer, "gemma-3-27b") == _import("gemma-3-27b")


def test_keys_of_other_towers_do_not_matter():
    outer = {"model_type": "mistral3", "text_config": _card("mistral-7b"), "vision_config": {"num_hidden_layers": 24},
             "spatial_merge_size": 2, "vision_feature_layer": -1, "multimodal_projector_bias": True}  # fmt: skip
    assert hf.import_config(outer, "mistral-7b") == _import("mistral-7b")


def test_keys_that_shape_nothing_do_not_matter():
    llama = {"_attn_implementation_autoset": True, "embd_pdrop": 0.1, "pretraining_tp": 1, "rope_scaling": {"factor": 8.0},
             "unsloth_fixed": True, "output_hidden_states": True, "num_beams": 4}  # fmt: skip
    assert _import("llama-2-7b", **llama) == _import("llama-2-7b")
    minimax = {"layernorm_full_attention_alpha": 1.0, "layernorm_mlp_beta": 1.0, "attn_type_list": [1] * 62}
    assert _import("minimax-m2", **minimax) == _import("minimax-m2")
    ffn = {
        **_card("dbrx")["ffn_config"],
        "moe_loss_weight": 0.05,
        "moe_normalize_expert_weights": 1,
        "moe_jitter_eps": 0.01,
    }
    assert _import("dbrx", ffn_config=ffn, resid_pdrop=0.1) == _import("dbrx")


def test_quantisation_and_tying_beside_the_text_model():
    quant = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    outer = {"model_type": "llava", "text_config": _card("llama-2-7b", tie_word_embeddings="DROP"),
             "tie_word_embeddings": True, "quantization_config": quant}  # fmt: skip
    model = hf.import_config(outer, "llava")
    assert model.tie_word_embeddings
    assert model.storage.attention.dtype is Dtype.FP8_BLOCK


# --- storage

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float"}


def _groups(weights: dict[str, Any], inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": weights, "input_activations": inputs}}, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "dtype", "bytes_per_element", "activation"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Dtype.FP8_BLOCK, 1 + 4 / 16384, Dtype.FP8),
        ({"quant_method": "fp8", "activation_scheme": "static"}, Dtype.FP8, 1.0, Dtype.FP8),
        ({"quant_method": "fbgemm_fp8"}, Dtype.FP8, 1.0, Dtype.FP8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Dtype.INT4, 0.5 + 2 / 128, Dtype.BF16),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, Dtype.INT4, 0.5 + 2 / 64, Dtype.BF16),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Dtype.INT8, 1.0, Dtype.BF16),
        (_groups(INT4, None), Dtype.INT4, 0.5 + 2 / 32, Dtype.BF16),
        (_groups(FP4, FP4), Dtype.NVFP4, 0.5 + 1 / 16, Dtype.NVFP4),
        (_groups(FP4, None), Dtype.NVFP4, 0.5 + 1 / 16, Dtype.BF16),
        (_groups({**FP4, "group_size": 32}, None), Dtype.MXFP4, 0.5 + 1 / 32, Dtype.BF16),
        (_groups(FP8, FP8), Dtype.FP8, 1.0, Dtype.FP8),
        (_groups({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}), Dtype.INT8, 1.0, Dtype.INT8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Dtype.NVFP4, 0.5 + 1 / 16, Dtype.NVFP4),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Dtype.FP8, 1.0, Dtype.FP8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Dtype.INT4, 0.5 + 4 / 64, Dtype.BF16),
    ],
)
def test_formats_of_linear_layers(quant, dtype, bytes_per_element, activation):
    storage = _import("mixtral-8x7b", quantization_config=quant).storage
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
    storage = _import(name, quantization_config=quant, dtype="bfloat16").storage
    linear = {"attention", "routed_experts", "shared_experts"}
    assert {kind for kind in linear if getattr(storage, kind).dtype is Dtype.BF16} == kept


def test_ignored_modules_layer_by_layer():
    quant = _groups(INT4, None, ignore=[f"model.layers.{i}.self_attn.{p}_proj" for i in range(32) for p in "qkvo"])
    storage = _import("mixtral-8x7b", quantization_config=quant).storage
    assert storage.attention.dtype is Dtype.BF16
    assert storage.routed_experts.dtype is Dtype.INT4


def test_mxfp4_is_for_experts_alone():
    storage = _import("gpt-oss-20b").storage
    assert storage.routed_experts.bytes_per_element == pytest.approx(0.53125)
    assert storage.attention.dtype is Dtype.BF16


def test_expert_dtype():
    storage = _import("deepseek-v3", expert_dtype="fp4").storage
    assert storage.routed_experts.dtype is Dtype.MXFP4
    assert storage.shared_experts.dtype is storage.attention.dtype is Dtype.FP8_BLOCK


@pytest.mark.parametrize("scheme", ["FP8", {"num_bits": 8, "type": "float", "dynamic": False}])
def test_kv_cache_in_fp8(scheme):
    storage = _import("qwen3-32b", quantization_config=_groups(FP8, FP8, kv_cache_scheme=scheme)).storage
    assert storage.kv_cache.dtype is Dtype.FP8


@pytest.mark.parametrize(
    ("name", "dtype"), [("float16", Dtype.FP16), ("bfloat16", Dtype.BF16), ("torch.float32", Dtype.FP32)]
)
def test_plain_dtypes(name, dtype):
    storage = _import("olmoe-1b-7b", torch_dtype=name).storage
    assert storage.routed_experts.dtype is storage.embedding.dtype is storage.kv_cache.dtype is dtype


# --- refusals

DENSE = _card("llama-2-7b")


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
        ({**_card("qwen3-8b"), "num_experts": 128, "num_experts_per_tok": 8}, "num_experts"),
        ({"text_config": DENSE, "model_type": "wrapped", "num_experts": 8}, "num_experts"),
        ({"text_config": {**DENSE, "num_experts": 8}, "model_type": "wrapped"}, "text_config.num_experts"),
        (_card("mixtral-8x7b", n_shared_experts=1), "n_shared_experts"),
        (_card("qwen3-30b-a3b", n_shared_experts=1), "n_shared_experts"),
        (_card("deepseek-v3", index_topk=2048), "index_topk"),
        (
            _card("dbrx", ffn_config={**_card("dbrx")["ffn_config"], "n_shared_experts": 1}),
            "ffn_config.n_shared_experts",
        ),
        (_card("deepseek-v3", hc_mult=4, compress_ratios=[1] * 61), "compress_ratios"),
        (_card("deepseek-v3", routed_expert_hidden_size=3584), "routed_expert_hidden_size"),
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
        ("olmoe-1b-7b", {"quantization_config": _groups({"num_bits": 6, "type": "float"}, None)},
         "quantization_config.config_groups.group_0.weights.num_bits"),
        ("olmoe-1b-7b", {"quantization_config": _groups(FP8, FP8, kv_cache_scheme="FP2")},
         "quantization_config.kv_cache_scheme"),
    ],
)  # fmt: skip
def test_a_broken_config_is_one_line_that_names_the_key(name, changes, field):
    with pytest.raises(InputError) as caught:
        _import(name, **changes)
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
    config = _card(name)
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
