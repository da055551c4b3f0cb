"""Configs of the catalogue with some keys changed, and their import."""

from __future__ import annotations

from typing import Any

from moesim.specs import catalog, hf
from moesim.specs.model import ModelSpec


def card_config(name: str, **changes: Any) -> dict[str, Any]:
    config = {**catalog.load_card(name).config, **changes}
    return {key: value for key, value in config.items() if value != "DROP"}


def imported(name: str, **changes: Any) -> ModelSpec:
    return hf.import_config(card_config(name, **changes), name)


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float"}


def config_groups(weights: dict[str, Any], inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": weights, "input_activations": inputs}}, **more}  # fmt: skip
