"""Importers of the architectures of 2026, rule by rule, what they refuse, and checkpoints of several formats."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hf_cards import imported

from moesim.errors import InputError, ParallelError
from moesim.specs import catalog, hf
from moesim.specs.dtypes import Dtype
from moesim.specs.hf.deepseek_v4 import hyper_params
from moesim.specs.hf.kimi import depth_sources
from moesim.specs.model import CompressedAttention, GqaAttention, LinearAttention, MlaAttention
from moesim.specs.parallel import ParallelSpec


def _kinds(name: str) -> dict[str, int]:
    return dict(Counter(layer.kind for layer in catalog.load_model(name).layers))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("deepseek-v4-flash", {"compressed/w128+moe": 2, "compressed/4+moe": 21, "compressed/128+moe": 20}),
        ("deepseek-v4-pro", {"compressed/128+moe": 31, "compressed/4+moe": 30}),
        ("kimi-k3", {"linear+dense": 1, "linear+moe": 68, "mla+moe": 24}),
        ("kimi-linear-48b-a3b", {"linear+dense": 1, "linear+moe": 19, "mla+moe": 7}),
        ("minimax-m3", {"gqa+dense": 3, "gqa/top2048+moe": 57}),
        ("nemotron-3-nano-30b-a3b", {"linear": 23, "moe": 23, "gqa": 6}),
        ("nemotron-3-super-120b-a12b", {"linear": 40, "moe": 40, "gqa": 8}),
        ("nemotron-3-ultra-550b-a55b", {"linear": 48, "moe": 48, "gqa": 12}),
        ("nemotron-h-56b", {"linear": 54, "dense": 54, "gqa": 10}),
        ("llama-3.3-nemotron-super-49b", {"gqa+dense": 49, "dense": 31}),
    ],
)
def test_layer_plans(name, kinds):
    assert _kinds(name) == kinds


# --- DeepSeek-V4


def test_v4_reads_ratios_or_the_names_that_transformers_writes():
    names = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    ratios = catalog.load_card("deepseek-v4-flash").config["compress_ratios"]
    named = imported("deepseek-v4-flash", compress_ratios="DROP", layer_types=[names[r] for r in ratios[:43]])
    assert named.layers == catalog.load_model("deepseek-v4-flash").layers
    hashed = ["hash_moe"] * 3 + ["moe"] * 40
    assert imported("deepseek-v4-flash", num_hash_layers="DROP", mlp_layer_types=hashed).layers == named.layers


def test_v4_hash_layers_have_no_score_correction_and_mtp_attends_to_its_window():
    model = catalog.load_model("deepseek-v4-flash")
    assert [layer.ffn.router_bias for layer in model.layers[:4]] == [False, False, False, True]
    (mtp,) = model.mtp_layers
    assert isinstance(mtp.attention, CompressedAttention)
    assert mtp.attention.compress_ratio is None
    assert {layer.residual_streams for layer in model.layers} == {4}
    assert hyper_params(4096, 4) == 24 * 4 * 4096 + 24 + 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"compress_ratios": [8] * 44}, "compress_ratios"),
        ({"compress_ratios": [4] * 40}, "compress_ratios"),
        ({"compress_ratios": "DROP"}, "compress_ratios"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"attention_bias": True}, "attention_bias"),
        ({"o_groups": 7}, "o_groups"),
        ({"compress_rates": {"compressed_sparse_attention": 2}}, "compress_rates"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
    ],
)
def test_v4_refuses_what_it_does_not_know(changes, field):
    with pytest.raises(InputError) as caught:
        imported("deepseek-v4-flash", **changes)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_v4_tensor_ranks_must_divide_the_groups_of_heads():
    model = catalog.load_model("deepseek-v4-flash")
    ParallelSpec(tp_size=8).check(model)
    with pytest.raises(ParallelError, match="groups of heads"):
        ParallelSpec(tp_size=16).check(model)


@pytest.mark.parametrize(
    ("expert", "extra", "stored", "activation"),
    [
        ("fp4", {}, Dtype.MXFP4, Dtype.FP8),
        ("fp8", {}, Dtype.FP8_BLOCK, Dtype.FP8),
        ("fp4", {"moe_quant_algo": "NVFP4"}, Dtype.NVFP4, Dtype.NVFP4),
    ],
)
def test_v4_experts_in_three_formats(expert, extra, stored, activation):
    quant = {**catalog.load_card("deepseek-v4-flash").config["quantization_config"], **extra}
    if extra:
        quant["quantized_layers"] = {
            f"layers.{i}.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in range(43)
        }
    storage = imported("deepseek-v4-flash", expert_dtype=expert, quantization_config=quant).storage
    assert (storage.routed_experts.dtype, storage.expert_activation) == (stored, activation)
    assert storage.attention.dtype is storage.shared_experts.dtype is Dtype.FP8_BLOCK
    assert storage.kv_cache.dtype is Dtype.FP8
    assert storage.kv_cache.bytes_per_element * 512 == 448 + 2 * 64 + 8


# --- Kimi


def test_k3_gates_at_full_rank_works_on_a_latent_and_attends_over_depth():
    model = catalog.load_model("kimi-k3")
    linear, full = model.layers[0].attention, model.layers[3].attention
    assert isinstance(linear, LinearAttention)
    assert isinstance(full, MlaAttention)
    d, inner = 7168, 96 * 128
    proj = 5 * d * inner + d * 128 + 128 * inner + d * 96  # q, k, v, gate, out; forget gate of low rank; beta
    assert linear.n_proj_params == proj
    assert linear.n_params(d) == proj + 3 * inner * 4 + inner + 96 + 128
    assert full.output_gate
    moe = model.moe_ffn
    assert moe is not None
    assert moe.expert_params(d) == 3 * 3584 * 3072
    assert moe.latent_params(d) == 2 * d * 3584
    assert model.layers[0].norm_params == 6 * d  # two norms, and a norm and a vector for each of two mixings
    assert model.layers[0].depth_sources == depth_sources(93, 12)
    assert catalog.load_model("kimi-linear-48b-a3b").layers[0].depth_sources == 0.0


def test_kda_layers_are_numbered_from_one_and_each_once():
    linear = dict(catalog.load_card("kimi-k3").config["linear_attn_config"])
    for wrong in ([*linear["kda_layers"], 4], linear["kda_layers"][1:], [*linear["kda_layers"], 94]):
        with pytest.raises(InputError, match="each layer once"):
            imported("kimi-k3", linear_attn_config={**linear, "kda_layers": wrong})


# --- MiniMax-M3


def test_m3_dispatch_by_its_own_keys_or_those_of_transformers():
    card = catalog.load_card("minimax-m3").config
    types = ["full_attention"] * 3 + ["minimax_m3_sparse"] * 57
    flat = {"index_n_heads": 4, "index_head_dim": 128, "index_block_size": 128, "index_topk_blocks": 16}
    other = imported("minimax-m3", sparse_attention_config="DROP", layer_types=types, **flat)
    assert other.layers == catalog.load_model("minimax-m3").layers
    off = {**card["sparse_attention_config"], "use_sparse_attention": False}
    plain = imported("minimax-m3", sparse_attention_config=off)
    assert all(isinstance(x.attention, GqaAttention) and x.attention.index_topk is None for x in plain.layers)


def test_m3_refuses_an_index_with_values_and_an_output_gate():
    sparse = catalog.load_card("minimax-m3").config["sparse_attention_config"]
    with pytest.raises(InputError, match="values of its own"):
        imported("minimax-m3", sparse_attention_config={**sparse, "sparse_disable_index_value": [0] * 60})
    with pytest.raises(InputError, match="attention_output_gate"):
        imported("minimax-m3", attention_output_gate=True)


def test_m3_inside_a_multimodal_config_that_names_only_the_outer_type():
    card = dict(catalog.load_card("minimax-m3").config)
    del card["model_type"]
    model = hf.import_config({"model_type": "minimax_m3_vl", "text_config": card}, "m3")
    assert model.n_params == catalog.load_model("minimax-m3").n_params


# --- Nemotron


def test_nemotron_pattern_as_letters_or_names():
    ultra = catalog.load_card("nemotron-3-ultra-550b-a55b").config
    letter = {"mamba": "M", "moe": "E", "attention": "*", "mlp": "-"}
    spelt = "".join(letter[kind] for kind in ultra["layers_block_type"])
    other = imported(
        "nemotron-3-ultra-550b-a55b", layers_block_type="DROP", mtp_layers_block_type="DROP",
        hybrid_override_pattern=spelt, mtp_hybrid_override_pattern="*E",
    )  # fmt: skip
    assert other == catalog.load_model("nemotron-3-ultra-550b-a55b").model_copy(
        update={"name": other.name, "hf_id": None}
    )
    assert [layer.kind for layer in other.mtp_layers] == ["gqa", "moe"]


def test_nemotron_experts_have_no_gate_and_a_shared_one_of_its_own_width():
    moe = catalog.load_model("nemotron-3-super-120b-a12b").moe_ffn
    assert moe is not None
    assert moe.expert_params(4096) == 2 * 1024 * 2688
    assert moe.shared_params(4096) == 2 * 4096 * 5376 + 2 * 4096 * 1024
    assert moe.router_params(4096) == 512 * (4096 + 1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"use_bias": True}, "use_bias"),
        ({"hybrid_override_pattern": "MX"}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": "DROP"}, "hybrid_override_pattern"),
        ({"num_hidden_layers": 51}, "num_hidden_layers"),
        ({"sliding_window": 128}, "sliding_window"),
    ],
)
def test_nemotron_refuses(changes, field):
    with pytest.raises(InputError) as caught:
        imported("nemotron-3-nano-30b-a3b", **changes)
    assert caught.value.field == field


def test_searched_llama_has_its_own_width_per_layer_and_may_lack_attention():
    model = catalog.load_model("llama-3.3-nemotron-super-49b")
    first, without = model.layers[0], next(x for x in model.layers if x.attention is None)
    assert isinstance(first.attention, GqaAttention)
    assert (first.attention.n_heads, first.attention.n_kv_heads) == (64, 8)
    assert first.ffn.intermediate_size == 14336  # 2.625 x 2/3 x 8192
    assert without.norm_params == 8192
    blocks = [dict(b) for b in catalog.load_card("llama-3.3-nemotron-super-49b").config["block_configs"]]
    blocks[5] = {"attention": {"n_heads_in_group": 8, "replace_with_linear": True}, "ffn": {"ffn_mult": 1.0}}
    with pytest.raises(InputError, match=r"block_configs\.5.*replace_with_linear"):
        imported("llama-3.3-nemotron-super-49b", block_configs=blocks)


# --- GLM-5.2 and Qwen3.6


def test_glm_layer_types_of_one_kind_and_an_index_every_fourth_layer():
    model = catalog.load_model("glm-5.2")
    has_index = [layer.attention.index_head_dim is not None for layer in model.layers]
    assert has_index[:8] == [True, True, True, False, False, False, True, False]
    with pytest.raises(InputError, match="layer_types"):
        imported("glm-5.2", layer_types=["full_attention"] * 78)


def test_qwen_output_gate_type():
    assert imported("qwen3.6-27b", output_gate_type="swish").layers == catalog.load_model("qwen3.5-27b").layers
    with pytest.raises(InputError, match="output_gate_type"):
        imported("qwen3.6-27b", output_gate_type="tanh")


# --- checkpoints of several formats

FP8 = {"num_bits": 8, "type": "float"}
FP4 = {"num_bits": 4, "type": "float", "group_size": 16}


def _names(*parts: str) -> list[str]:
    return [f"model.language_model.layers.{i}.{part}" for i, part in itertools.product(range(40), parts)]


MIXERS = _names("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj", "self_attn.q_proj",
                "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")  # fmt: skip


def test_groups_of_modules_with_a_format_each():
    groups = {
        "group_0": {"weights": FP8, "input_activations": FP8, "targets": MIXERS},
        "group_1": {"weights": FP4, "input_activations": FP4, "targets": ["lm_head", *_names("mlp.experts")]},
    }
    storage = imported(
        "qwen3.6-35b-a3b", quantization_config={"quant_method": "modelopt", "config_groups": groups}
    ).storage
    assert storage.attention.dtype is Dtype.FP8
    assert storage.routed_experts.dtype is storage.lm_head.dtype is Dtype.NVFP4
    assert storage.shared_experts.dtype is storage.embedding.dtype is Dtype.BF16
    assert (storage.activation, storage.expert_activation) == (Dtype.FP8, Dtype.NVFP4)


def test_a_format_for_each_module_comes_before_groups_and_may_be_weight_only():
    layers = {name: {"quant_algo": "FP8"} for name in MIXERS}
    layers |= {name: {"quant_algo": "W4A16_NVFP4", "group_size": 16} for name in _names("mlp.experts")}
    quant = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers,
             "config_groups": {"group_0": {"weights": FP4, "input_activations": FP4, "targets": ["Linear"]}}}  # fmt: skip
    storage = imported("qwen3.6-35b-a3b", quantization_config=quant).storage
    assert storage.routed_experts.dtype is Dtype.NVFP4
    assert storage.routed_experts.arithmetic is storage.expert_activation is Dtype.BF16
    assert storage.shared_experts.dtype is Dtype.BF16


def test_hf_quant_config_beside_the_config_counts():
    """ModelOpt writes it as a file of its own; its one key may be put into the config."""
    storage = imported(
        "nemotron-3-ultra-550b-a55b", quantization={"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}
    ).storage
    assert storage.attention.dtype is storage.routed_experts.dtype is storage.shared_experts.dtype is Dtype.NVFP4
    assert storage.kv_cache.dtype is Dtype.FP8


def test_nemotron_modules_by_the_names_of_its_checkpoints():
    parts = ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj")
    kept = [f"backbone.layers.{i}.mixer.{part}" for i in range(52) for part in parts]
    quant = {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", *kept]}
    storage = imported("nemotron-3-nano-30b-a3b", quantization=quant).storage
    assert storage.attention.dtype is Dtype.BF16
    assert storage.routed_experts.dtype is storage.shared_experts.dtype is Dtype.NVFP4


def test_mixers_count_by_their_weights():
    """Most of Nano's mixers by number of modules are its few attention layers' q, k, v and o and seven of Mamba's."""
    spec = imported("nemotron-3-nano-30b-a3b")
    mamba = [i for i, layer in enumerate(spec.layers) if isinstance(layer.attention, LinearAttention)]
    plain = [i for i, layer in enumerate(spec.layers) if isinstance(layer.attention, GqaAttention)]
    kept = [f"backbone.layers.{i}.mixer.{part}" for i in plain for part in ("q_proj", "k_proj", "v_proj", "o_proj")]
    kept += [f"backbone.layers.{i}.mixer.{part}" for i in mamba[:7] for part in ("in_proj", "out_proj")]
    modules = 4 * len(plain) + 2 * len(mamba)
    assert 2 * len(kept) > modules
    quant = {"quant_algo": "NVFP4", "exclude_modules": kept}
    storage = imported("nemotron-3-nano-30b-a3b", quantization=quant).storage
    assert storage.attention.dtype is Dtype.NVFP4


def test_m3_mixed_mxfp8_and_nvfp4():
    algorithms = {"self_attn.q_proj": "MXFP8", "self_attn.k_proj": "MXFP8", "self_attn.v_proj": "MXFP8",
                  "self_attn.o_proj": "MXFP8", "block_sparse_moe.shared_experts.up_proj": "MXFP8",
                  "block_sparse_moe.shared_experts.gate_proj": "MXFP8"}  # fmt: skip
    layers = {
        f"language_model.model.layers.{i}.{n}": {"quant_algo": a} for i in range(60) for n, a in algorithms.items()
    }
    for i, e, w in itertools.product(range(3, 60), (0,), ("w1", "w2", "w3")):
        layers[f"language_model.model.layers.{i}.block_sparse_moe.experts.{e}.{w}"] = {
            "quant_algo": "NVFP4",
            "group_size": 16,
        }
    quant = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    storage = imported("minimax-m3", quantization_config=quant).storage
    assert storage.attention.dtype is storage.shared_experts.dtype is Dtype.FP8_BLOCK
    assert storage.attention.bytes_per_element == 1 + 1 / 32
    assert storage.routed_experts.dtype is Dtype.NVFP4


def test_two_formats_for_all_layers_are_refused():
    groups = {"a": {"weights": FP8, "targets": ["Linear"]}, "b": {"weights": FP4, "targets": ["Linear"]}}
    with pytest.raises(InputError, match="several formats"):
        imported("qwen3.6-35b-a3b", quantization_config={"quant_method": "compressed-tensors", "config_groups": groups})


def test_gemma_4_experts_stand_beside_its_dense_block():
    """nvidia/Gemma-4-26B-A4B-NVFP4 leaves `mlp` and `self_attn` in 16 bits and converts the experts."""
    kept = [f"model.language_model.layers.{i}.{part}*" for i in range(30) for part in ("mlp", "router", "self_attn")]
    groups = {"group_0": {"weights": FP4, "input_activations": FP4, "targets": ["Linear"]}}
    quant = {"quant_method": "modelopt", "config_groups": groups, "ignore": ["lm_head", *kept]}
    storage = imported("gemma-4-26b-a4b", quantization_config=quant).storage
    assert storage.routed_experts.dtype is Dtype.NVFP4
    assert storage.attention.dtype is storage.dense_ffn.dtype is storage.shared_experts.dtype is Dtype.BF16
