"""Hugging Face ``config.json`` fields to a `ModelSpec` (to be filled per architecture)."""
from __future__ import annotations
from collections.abc import Mapping
from typing import Any
from moesim.specs.model import ModelSpec
def import_config(config: Mapping[str, Any], name: str, hf_id: str | None = None) -> ModelSpec:
    raise ValueError("not yet")
