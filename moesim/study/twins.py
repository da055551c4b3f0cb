"""Dense twins of an MoE: the same skeleton, with one block of another width where the experts were."""

from __future__ import annotations

from moesim.errors import InputError
from moesim.specs.model import DenseFfn, LayerSpec, ModelSpec, MoeFfn
from moesim.specs.scenario import Basis, QualityRule
from moesim.study.quality import dense_equivalent_params

__all__ = ["dense_twin"]

WIDTH_STEP = 128


def dense_twin(model: ModelSpec, basis: Basis, rule: QualityRule) -> ModelSpec:
    """A dense model that shares attention, depth, hidden size and vocabulary with `model`.

    The width of the blocks that replace experts is solved for the basis: equal active or total parameters, equal weight bytes
    (in the format of the attention weights), or the parameters that the quality rule asks for. Widths are multiples of 128.

    Raises:
        InputError: `model` has no experts, or the skeleton alone is larger than the target.
    """
    if not model.is_moe:
        raise InputError("a dense twin needs a model with experts", field="comparison.reference", value=model.name)
    storage = model.storage
    experts = storage.routed_experts
    if basis is Basis.EQUAL_ACTIVE:
        target = float(model.n_active_params)
    elif basis is Basis.EQUAL_TOTAL:
        target = float(model.n_params)
    elif basis is Basis.EQUAL_QUALITY:
        target = dense_equivalent_params(model, rule)
    else:
        experts = storage.attention
        target = _equal_bytes_params(model)
    width = _solve_width(model, target)
    layers = tuple(_dense_layer(layer, width) for layer in model.layers)
    update = {
        "name": f"{model.name}-{basis.value.replace('_', '-')}-dense",
        "hf_id": None,
        "layers": layers,
        "mtp_layers": (),
        "storage": storage.model_copy(update={"dense_ffn": experts}),
        "note": f"dense twin of {model.name}: {basis.value.replace('_', ' ')}",
    }
    return ModelSpec.model_validate(model.model_copy(update=update).model_dump())


def _dense_layer(layer: LayerSpec, width: int) -> LayerSpec:
    if not isinstance(layer.ffn, MoeFfn):
        return layer
    return layer.model_copy(update={"ffn": DenseFfn(intermediate_size=width, gated=layer.ffn.gated)})


def _moe_params(model: ModelSpec) -> float:
    return float(sum(layer.ffn.n_params(model.hidden_size) for layer in model.layers if isinstance(layer.ffn, MoeFfn)))


def _solve_width(model: ModelSpec, target: float) -> int:
    ffn = model.moe_ffn
    n_mats = 3 if ffn is not None and ffn.gated else 2
    room = target - (model.n_params - _moe_params(model))
    width = round(room / (n_mats * model.hidden_size * len(model.moe_layers)) / WIDTH_STEP) * WIDTH_STEP
    if width < WIDTH_STEP:
        raise InputError(
            f"no dense twin of {target / 1e9:.1f}B parameters: the layers without experts are larger already",
            field="comparison.bases", value=model.name,
        )  # fmt: skip
    return width


def _equal_bytes_params(model: ModelSpec) -> float:
    """Parameters whose bytes, with the twin's blocks stored like attention, equal the weight bytes of `model`."""
    s, moe = model.storage, 0.0
    for layer in model.layers:
        if isinstance(layer.ffn, MoeFfn):
            experts = layer.ffn.n_routed_experts * layer.ffn.expert_params(model.hidden_size)
            rest = layer.ffn.n_params(model.hidden_size) - experts
            moe += experts * s.routed_experts.bytes_per_element + rest * s.shared_experts.bytes_per_element
    return model.n_params - _moe_params(model) + moe / s.attention.bytes_per_element
