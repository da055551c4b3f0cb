"""Hugging Face ``config.json`` fields to a `ModelSpec`: one module per family of architectures, and a registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.errors import InputError, nearest
from moesim.specs.hf import dense
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import Parts
from moesim.specs.hf.quant import read_storage
from moesim.specs.hf.registry import BUILDERS, REFUSED
from moesim.specs.hf.unread import expert_keys, refuse_unread
from moesim.specs.model import ModelSpec

__all__ = ["import_config"]

#: Where multimodal configs keep their language model.
_TEXT_KEYS = ("text_config", "language_config", "llm_config")


def import_config(config: Mapping[str, Any], name: str, hf_id: str | None = None) -> ModelSpec:
    """The architecture that a Hugging Face config describes.

    Of a multimodal config only the language model is read: weights of vision or audio towers are not counted.

    Raises:
        InputError: an architecture or a key that is not understood; an MoE is never read as a dense model.
    """
    fields = _language_model(config)
    parts = _build(fields)
    storage = read_storage(fields, parts.layers, parts.hidden_size)
    if parts.kv_cache is not None:
        storage = storage.model_copy(update={"kv_cache": parts.kv_cache})
    return ModelSpec(
        name=name,
        hf_id=hf_id,
        hidden_size=parts.hidden_size,
        vocab_size=parts.vocab_size,
        tie_word_embeddings=parts.tie_word_embeddings,
        max_position_embeddings=fields.optional_count("max_position_embeddings")
        or fields.optional_count("max_seq_len"),
        layers=parts.layers,
        mtp_layers=parts.mtp_layers,
        mtp_extra_params=parts.mtp_extra_params,
        other_params=parts.other_params,
        storage=storage,
        note=parts.note,
    )


def _language_model(config: Mapping[str, Any]) -> Fields:
    """The part of the config that holds the language model."""
    for key in _TEXT_KEYS:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            for stray in expert_keys(Fields(config)):
                raise InputError("stands beside the language model it should be in", field=stray, value=config[stray])
            return Fields(inner, key, config)
    return Fields(config)


def _build(fields: Fields) -> Parts:
    model_type = _model_type(fields)
    builder = BUILDERS.get(model_type)
    if builder is not None:
        parts = builder(fields)
        refuse_unread(fields)
        return parts
    if model_type in REFUSED:
        key, why = REFUSED[model_type]
        raise fields.refuse(key if key in fields.data else "model_type", why)
    experts = expert_keys(fields)
    if experts:
        raise _unknown(fields, f"is not known here, and {fields.name(experts[0])!r} says that this is an MoE")
    if not _looks_like_llama(fields):
        raise _unknown(fields, "is not known here")
    parts = dense.llama(fields)
    refuse_unread(fields, strict=True)
    return parts


def _model_type(fields: Fields) -> str:
    """The architecture's name; text models inside a multimodal config may leave it to the outer one."""
    given = fields.any("model_type")
    if given is None and fields.outer.get("model_type"):
        outer = str(fields.outer["model_type"])
        return f"{outer}_text" if f"{outer}_text" in BUILDERS else outer
    return str(given)


def _looks_like_llama(fields: Fields) -> bool:
    """True for a decoder with RMS norms and a gated SiLU block, the only shape taken on trust."""
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps")
    return all(fields.has(key) for key in needed) and fields.any("hidden_act") in ("silu", "swiglu")


def _unknown(fields: Fields, problem: str) -> InputError:
    value = fields.data.get("model_type")
    close = nearest(str(value), BUILDERS)
    hint = (
        f"closest: {', '.join(close)}"
        if close
        else f"{len(BUILDERS)} are known, among them llama, mixtral, deepseek_v3"
    )
    text = problem if value is not None else problem.replace("is not known here", "is missing")
    return InputError(text, field=fields.name("model_type"), value=value, hint=hint)
