"""A second way to the same numbers: models that `transformers` builds from a card's config, and PyTorch's flop counter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from moesim.specs import catalog, hf
from moesim.specs.model import DenseFfn, GqaAttention, LayerSpec, MlaAttention, ModelSpec, MoeFfn

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

#: Architectures that `transformers` does not have; of Kimi-K3 it has the delta attention and the latent one alone.
NOT_IN_TRANSFORMERS = {"arctic", "deepseek-moe-16b", "glam-64b-64e", "grok-1", "hunyuan-large", "kimi-k3",
                       "llama-3.3-nemotron-super-49b"}  # fmt: skip
#: Left out for time only: 2048 experts are built one by one (20 s), and switch-base-128 is the same class.
SLOW = {"switch-c-2048"}
#: Same shapes as another card in the list, stored otherwise.
SAME = {name for name in catalog.names("model") if name.endswith("-fp8")} | {
    "deepseek-r1", "kimi-k2.5", "kimi-k2.6", "kimi-k2.7-code", "minimax-m2.5", "minimax-m2.7", "glm-5.1", "glm-5.3",
}  # fmt: skip
NAMES = [name for name in catalog.names("model") if name not in NOT_IN_TRANSFORMERS | SLOW | SAME]

#: Kimi-K2 is a DeepSeek-V3 under another name, MiMo-7B a Qwen2.
SPELLED = {"kimi_k2": "deepseek_v3", "mimo": "qwen2", "minimax_m3": "minimax_m3_vl_text"}


def build(config: dict[str, Any], device: str = "meta", **changes: Any) -> Any:
    """The model of a config; on the meta device it has shapes and no memory."""
    config = {k: v for k, v in config.items() if k != "quantization_config"} | changes
    model_type = SPELLED.get(config["model_type"], config["model_type"])
    del config["model_type"]
    if model_type == "dbrx":
        config["attn_config"] = {**config["attn_config"], "rope_theta": 500000.0}
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        parsed = transformers.AutoConfig.for_model(model_type, **config)
        auto = transformers.AutoModelForSeq2SeqLM if parsed.is_encoder_decoder else transformers.AutoModelForCausalLM
        model = auto.from_config(parsed)
        model.tie_weights()
    return model


def n_elements(model: Any) -> int:
    """Parameters, tied ones once, and the routers' correction bias, which is stored but a buffer in `transformers`."""
    parameters = {id(p): p.numel() for p in model.parameters()}
    bias = sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return sum(parameters.values()) + bias


@pytest.mark.parametrize("name", NAMES)
def test_element_count_is_that_of_transformers(name):
    card = catalog.load_card(name)
    try:
        model = build(card.config)
    except (ValueError, KeyError) as error:  # an older transformers may not know it
        pytest.skip(f"transformers {transformers.__version__} does not build {name}: {error}"[:120])
    assert card.model_spec().n_params == n_elements(model)


def test_layers_that_share_an_index_have_none():
    """GLM-5.2 has an index in every fourth layer only."""
    config = {**catalog.load_card("glm-5").config, "indexer_types": ["full", "full", "full"] + ["shared"] * 75}
    spec = hf.import_config(config, "glm-5.2")
    try:
        model = build(config)
    except (ValueError, KeyError, TypeError) as error:
        pytest.skip(f"transformers {transformers.__version__} does not build it: {error}"[:120])
    assert spec.n_params < catalog.load_model("glm-5").n_params
    assert spec.n_params == n_elements(model)


SMALL = {"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 32, "num_attention_heads": 4, "torch_dtype": "float32",
         "max_position_embeddings": 128}  # fmt: skip
GQA = {"num_key_value_heads": 2, "head_dim": 16}
FLOP_CASES = {
    "llama": {"model_type": "llama", **SMALL, **GQA, "intermediate_size": 96},
    "mixtral": {"model_type": "mixtral", **SMALL, **GQA, "intermediate_size": 96, "num_local_experts": 4,
                "num_experts_per_tok": 2},
    "qwen3_moe": {"model_type": "qwen3_moe", **SMALL, **GQA, "intermediate_size": 96, "moe_intermediate_size": 48,
                  "num_experts": 8, "num_experts_per_tok": 3, "decoder_sparse_step": 1},
    "deepseek_v3": {"model_type": "deepseek_v3", **SMALL, "num_key_value_heads": 4, "intermediate_size": 96,
                    "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
                    "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": 24, "kv_lora_rank": 16,
                    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 12},
}  # fmt: skip


def active_matmul_params(layer: LayerSpec, hidden: int) -> int:
    """Weights of a layer that one token is multiplied with: all active ones less norms and biases."""
    attention, ffn = layer.attention, layer.ffn
    assert isinstance(attention, GqaAttention | MlaAttention)
    assert isinstance(ffn, DenseFfn | MoeFfn)
    found = layer.n_active_params(hidden) - layer.norm_params - attention.extra_params
    if isinstance(attention, MlaAttention):
        found -= (attention.q_lora_rank or 0) + attention.kv_lora_rank
    if isinstance(ffn, MoeFfn) and ffn.router_bias:
        found -= ffn.n_routed_experts
    return found


def attention_flops(layer: LayerSpec, n_tokens: int) -> int:
    """Scores and weighted values over the whole square, as the eager code computes them: 2 T^2 H (qk + v)."""
    attention = layer.attention
    if isinstance(attention, MlaAttention):
        return 2 * n_tokens**2 * attention.n_heads * (attention.qk_head_dim + attention.v_head_dim)
    assert isinstance(attention, GqaAttention)
    return 2 * n_tokens**2 * attention.n_heads * (attention.head_dim + attention.v_head_dim)


def expected_flops(spec: ModelSpec, n_tokens: int) -> int:
    """One pass over one layer and the head."""
    (layer,) = spec.layers
    linear = 2 * n_tokens * (active_matmul_params(layer, spec.hidden_size) + spec.lm_head_params)
    return linear + attention_flops(layer, n_tokens)


@pytest.mark.parametrize("name", FLOP_CASES)
def test_flops_are_those_that_pytorch_counts(name):
    from torch.utils.flop_counter import FlopCounterMode

    n_tokens = 24
    spec = hf.import_config(FLOP_CASES[name], name)
    torch.manual_seed(0)
    model = build(FLOP_CASES[name], device="cpu", attn_implementation="eager", experts_implementation="eager")
    model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(n_tokens).reshape(1, n_tokens) % 32, use_cache=False)
    assert counter.get_total_flops() == expected_flops(spec, n_tokens)
