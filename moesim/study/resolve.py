"""The model of a system with its storage overrides; apart from `systems`, so that an estimate starts without the rest."""

from __future__ import annotations

from moesim.memory import with_weight_dtype
from moesim.specs.catalog import load_model
from moesim.specs.dtypes import Storage
from moesim.specs.model import ModelSpec
from moesim.specs.scenario import SystemSpec

__all__ = ["resolve_model"]


def resolve_model(spec: SystemSpec) -> ModelSpec:
    """The system's model with its storage overrides."""
    model = load_model(spec.model)
    if spec.weight_dtype is not None:
        model = with_weight_dtype(model, spec.weight_dtype)
    if spec.kv_dtype is not None:
        model = model.model_copy(
            update={"storage": model.storage.model_copy(update={"kv_cache": Storage(dtype=spec.kv_dtype)})}
        )
    return model
