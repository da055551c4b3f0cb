"""Which keys of a ``config.json`` an importer may leave unread."""

from __future__ import annotations

import re
from typing import Any

from moesim.errors import InputError
from moesim.specs.hf.fields import Fields

__all__ = ["expert_keys", "refuse_unread"]

#: Names that speak of experts, in any architecture.
_EXPERT_KEY = re.compile(
    r"expert|(^|_)moe(_|$)|moe_|router|routed|num_selects|gate_network|top_?k_(?!group)", re.IGNORECASE
)

#: Names that can change shapes, sizes or the layer plan.
_SHAPE_KEY = re.compile(
    r"expert|moe|rout|mtp|nextn|lora|^index|indexer|latent|attn|attention|heads?(_|$)|layer|hidden|intermediate|ffn|feed_forward|mlp"
    r"|_dims?(_|$)|_rank|_size|linear|mamba|ssm|conv|recurr|state|window|compress|group|shared|residual|sparse|bias|qk_norm"
    r"|gate|share|hash|engram|tie_|vocab|embd|n_layer|d_model|d_ff|kda|double",
    re.IGNORECASE,
)

#: Names that match but change no weight and no layer: initialisation, losses, dropout, generation, naming, numerics.
_HARMLESS = re.compile(
    r"dropout|pdrop|normalize_|_init|initializer|_loss|loss_|aux|jitter|noise|rope|rotary|norm_eps|epsilon|_token|token_|output_(hidden|attent|router)"
    r"|chunk_size_feed_forward|hidden_act|activation|act_fn|layerdrop|beam|ngram|return_dict|architectures|_scal|scale|scaling"
    r"|softcap|multiplier|temperature|layers?_norm_eps|layernorm_eps|scoring_func|score_func|topk_method|norm_topk_prob"
    r"|seq_aux|_dtype|renormalize|use_balance|expert_policy|before_dropping|relative_attention_max|pretraining_tp|^ep_size|max_window_layers|layer_norm_elementwise|original_max|_parallel"
    r"|interleave$|gate_lower_bound|expert_capacity|capacity_factor|drop_tokens|use_cache|attn_implementation|batch_size"
    r"|problem_type|n_positions|max_position|max_seq|tokenizer|fused|kernel|prefix|limit|router_type|alpha|beta|cache_dir|image_size"
    r"|patch_size|tie_encoder_decoder|use_bidirectional_attention|router_ignore|mrope|add_router_probs",
    re.IGNORECASE,
)
_NAMES = frozenset({"model_type", "dtype", "torch_dtype", "architectures", "quantization_config", "transformers_version",
                    "auto_map", "id2label", "label2id", "_name_or_path", "name", "vision_config", "audio_config",
                    "quantization"})  # fmt: skip


def expert_keys(fields: Fields) -> list[str]:
    """Keys that speak of experts and are set to something."""
    return [key for key, value in fields.data.items() if _EXPERT_KEY.search(key) and _is_set(value)]


def refuse_unread(fields: Fields, strict: bool = False) -> None:
    """Refuse a config in which a key that may shape the model was not read.

    `strict` (architectures read as plain dense ones) refuses every unread key that is not known to be harmless.

    Raises:
        InputError: naming the first such key.
    """
    for key, value in fields.data.items():
        if key in fields.read or key in _NAMES or not _is_set(value) or _HARMLESS.search(key):
            continue
        if strict or _SHAPE_KEY.search(key):
            model_type = fields.data.get("model_type")
            raise InputError(
                f"is not understood in a {model_type!r} config and may shape the model",
                field=fields.name(key), value=value, hint="remove it if it changes no weights",
            )  # fmt: skip


def _is_set(value: Any) -> bool:
    return not (value is None or value is False or value == 0 or value in ("", [], {}, ()))
