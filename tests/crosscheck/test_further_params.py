"""Importers of further MoE decoders against `transformers`: its own default configs as it writes them, and small changes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from test_transformers_params import n_elements

from moesim.errors import InputError
from moesim.specs import hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

#: model_type: changes of the defaults.
CASES: dict[str, list[dict[str, Any]]] = {
    "afmoe": [{}, {"num_dense_layers": 3, "num_key_value_heads": 4}],
    "dots1": [{"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1}],
    "ernie4_5_moe": [{}, {"moe_layer_interval": 2, "moe_layer_start_index": 4, "tie_word_embeddings": False}],
    "exaone_moe": [{}, {"first_k_dense_replace": 2, "num_key_value_heads": 8}],
    "glm4_moe_lite": [{}, {"q_lora_rank": None}],
    "hy_v3": [{}, {"num_shared_experts": 2}],
    "mistral4": [{}, {"first_k_dense_replace": 2}],
    "solar_open": [{}, {"attention_bias": True}],
}


@pytest.mark.parametrize(("name", "changes"), [(name, changes) for name, all_ in CASES.items() for changes in all_])
def test_element_count_is_that_of_transformers(name, changes):
    try:
        config = transformers.AutoConfig.for_model(name, **changes)
    except (ValueError, KeyError) as error:
        pytest.skip(f"transformers {transformers.__version__} does not know {name}: {error}"[:120])
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    found = next(getattr(module, c) for c in dir(module) if c.endswith("ForCausalLM"))
    with torch.device("meta"):
        model = found(config)
        model.tie_weights()
    assert hf.import_config(config.to_dict(), name).n_params == n_elements(model)


HY3 = {
    "model_type": "hy_v3", "num_hidden_layers": 80, "num_nextn_predict_layers": 1, "hidden_size": 4096,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144, "qk_norm": True,
    "vocab_size": 120832, "intermediate_size": 13312, "first_k_dense_replace": 1, "num_experts": 192,
    "num_experts_per_tok": 8, "num_shared_experts": 1, "expert_hidden_dim": 1536, "moe_intermediate_size": 1536,
    "router_scaling_factor": 2.826, "tie_word_embeddings": False,
}  # fmt: skip


def test_hunyuan_3_as_its_makers_write_it():
    """tencent/Hy3: 295B total and 21B active are published; its MTP layer is counted apart."""
    model = hf.import_config(HY3, "hy3")
    assert model.n_params == pytest.approx(295e9, rel=0.01)
    assert model.n_active_params == pytest.approx(21e9, rel=0.03)
    assert len(model.mtp_layers) == 1
    with pytest.raises(InputError, match="disagrees"):
        hf.import_config({**HY3, "expert_hidden_dim": 1024}, "hy3")


def test_ernie_predicts_further_tokens_with_a_dense_layer():
    config = transformers.AutoConfig.for_model("ernie4_5_moe").to_dict() | {"num_nextn_predict_layers": 1}
    model = hf.import_config(config, "ernie")
    assert [layer.kind for layer in model.mtp_layers] == ["gqa+dense"]
    assert model.n_params == pytest.approx(21.8e9, rel=0.01)


def test_k_exaone_layers_by_its_own_list():
    config = transformers.AutoConfig.for_model("exaone_moe").to_dict()
    del config["mlp_layer_types"], config["first_k_dense_replace"], config["layer_types"]
    plan = [False, True] * 16
    own = {"is_moe_layer": plan, "first_last_k_dense_replace": 1, "sliding_window_pattern": "LLLG"}
    model = hf.import_config({**config, **own}, "k-exaone")
    assert model.moe_layers == tuple(range(1, 32, 2))
    full = [i for i, layer in enumerate(model.layers) if layer.attention.sliding_window is None]
    assert full == list(range(3, 32, 4))
