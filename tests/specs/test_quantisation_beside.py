"""ModelOpt's checkpoints: a `config.json` that says nothing of quantisation, and `hf_quant_config.json` beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import InputError
from moesim.specs.catalog import load_card, load_model

QUANTISATION = {
    "quant_algo": "NVFP4",
    "kv_cache_quant_algo": "FP8",
    "group_size": 16,
    "exclude_modules": ["lm_head", "model.layers.*.self_attn*", "model.layers.*.mlp.gate"],
}


def folder(path: Path, quantisation: Any, **changes: Any) -> Path:
    path.mkdir()
    config = {**load_card("qwen3-30b-a3b").config, **changes}
    (path / "config.json").write_text(json.dumps(config))
    (path / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": quantisation}, indent=1))
    return path


def formats(path: Path) -> tuple[str, str, str]:
    storage = load_model(str(path)).storage
    return storage.attention.dtype.value, storage.routed_experts.dtype.value, storage.kv_cache.dtype.value


def test_a_file_of_quantisation_beside_the_config_counts(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", QUANTISATION)
    assert formats(path) == formats(path / "config.json") == ("bf16", "nvfp4", "fp8")


def test_what_the_config_says_of_quantisation_holds(tmp_path: Path) -> None:
    own = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert formats(folder(tmp_path / "a", QUANTISATION, quantization_config=own)) == ("fp8_block", "fp8_block", "bf16")


def test_a_config_of_another_name_stands_alone(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", QUANTISATION)
    (path / "config.json").rename(path / "other.json")
    assert formats(path / "other.json") == ("bf16", "bf16", "bf16")


@pytest.mark.parametrize("wrong", [{**QUANTISATION, "quant_algo": "FP3"}, ["NVFP4"]])
def test_what_is_wrong_in_it_is_placed_there(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"hf_quant_config\.json.*quantization") as caught:
        load_model(str(folder(tmp_path / "a", wrong)))
    assert caught.value.file == str(tmp_path / "a" / "hf_quant_config.json")
    assert (caught.value.field or "").startswith("quantization")
