"""Models whose experts differ from case to case, as one model with arrays in it; parameters, checks and memory of all at once.

Letters: E experts, K top-k, F expert width, D hidden size. Arrays have one entry per case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ParallelError
from moesim.memory.count import Serving, fullest_bytes, rank_weights
from moesim.specs.hardware import Hardware
from moesim.specs.model import (
    LayerSpec,
    ModelSpec,
    MoeFfn,
)
from moesim.specs.parallel import ParallelSpec
from moesim.study.sweep.paths import fresh_model

__all__ = [
    "Experts",
    "array_model",
    "changed_model",
    "check_splits",
    "memory_of",
    "n_params_of",
    "structural_check",
    "weight_bytes",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Experts:
    """E, K and F of every case; None keeps each layer's own (a model may have layers of several kinds)."""

    n_routed: Floats | None = None
    top_k: Floats | None = None
    width: Floats | None = None

    def of(self, ffn: MoeFfn) -> tuple[Any, Any, Any]:
        """E, K and F of one block, as arrays where they vary and floats where they do not."""
        e = float(ffn.n_routed_experts) if self.n_routed is None else self.n_routed
        k = float(ffn.num_experts_per_tok) if self.top_k is None else self.top_k
        return e, k, float(ffn.moe_intermediate_size) if self.width is None else self.width

    def take(self, rows: Any) -> Experts:
        """Those of some cases."""
        return Experts(*(None if x is None else x[rows] for x in (self.n_routed, self.top_k, self.width)))

    @property
    def varies(self) -> bool:
        """Whether any of the three is given."""
        return any(x is not None for x in (self.n_routed, self.top_k, self.width))


def array_model(model: ModelSpec, experts: Experts) -> ModelSpec:
    """The model with arrays in its experts' fields, for lowering and counting only: it cannot be hashed, validated or written.

    Routing in groups of experts is dropped where E or K vary, as there is no telling what the groups would be.
    """
    if not experts.varies:
        return model
    regroups = experts.n_routed is not None or experts.top_k is not None
    groups: list[tuple[LayerSpec, tuple[int, ...]]] = []
    for layer, indices in model.layer_groups:
        ffn = layer.ffn
        if isinstance(ffn, MoeFfn):
            e, k, f = experts.of(ffn)
            values = {name: getattr(ffn, name) for name in MoeFfn.model_fields}
            values |= {"n_routed_experts": e, "num_experts_per_tok": k, "moe_intermediate_size": f}
            values |= {"n_group": 1, "topk_group": 1} if regroups else {}
            layer = _with_ffn(layer, MoeFfn.model_construct(**values))
        groups.append((layer, indices))
    built = fresh_model(model)
    blocks = (layer.ffn for layer, _ in groups)
    # all that counting and lowering look at, besides what does not depend on experts
    built.__dict__["layer_groups"] = tuple(groups)
    built.__dict__["layer_kinds"] = tuple((layer, len(indices)) for layer, indices in groups)
    built.__dict__["moe_ffn"] = next((ffn for ffn in blocks if isinstance(ffn, MoeFfn)), None)
    return built


def _with_ffn(layer: LayerSpec, ffn: Any) -> LayerSpec:
    return LayerSpec.model_construct(**{**{n: getattr(layer, n) for n in LayerSpec.model_fields}, "ffn": ffn})


def n_params_of(model: ModelSpec, experts: Experts) -> tuple[Floats, Floats]:
    """All parameters and those that one token goes through, as `ModelSpec` counts them."""
    built = array_model(model, experts)
    return np.asarray(built.n_params, dtype=float), np.asarray(built.n_active_params, dtype=float)


def structural_check(model: ModelSpec, parallel: ParallelSpec, hardware: Hardware) -> str | None:
    """What is wrong with the split whatever the experts are, in words; None if nothing. Remembered with the model."""
    n_ranks, n_devices = parallel.n_ranks, hardware.n_devices
    if n_ranks > n_devices or n_devices % n_ranks:
        return (
            f"{parallel.label} needs {n_ranks} devices per instance, which do not fill the {n_devices} of the hardware"
        )
    known: dict[tuple[int, ...], str | None] = model.__dict__.setdefault("_split_checks", {})
    key = (parallel.tp_size, parallel.n_stage_ranks, parallel.ep_size, parallel.pp_size, parallel.redundant_experts)
    if key not in known:
        known[key] = _split_check(model, parallel)
    return known[key]


def _split_check(model: ModelSpec, parallel: ParallelSpec) -> str | None:
    try:
        parallel.check(_divisible(model, parallel))
    except ParallelError as error:
        return error.problem
    return None


def _divisible(model: ModelSpec, parallel: ParallelSpec) -> ModelSpec:
    """The model with experts that any split divides, so that only the rest of it is checked."""
    if not model.is_moe or parallel.n_stage_ranks % parallel.ep_size:
        return model
    kinds = []
    for layer, n_layers in model.layer_kinds:
        ffn = layer.ffn
        if isinstance(ffn, MoeFfn):
            n = parallel.ep_size * (1 + parallel.redundant_experts) - parallel.redundant_experts
            ffn = ffn.model_copy(update={"n_routed_experts": max(1, n), "moe_intermediate_size": parallel.etp_size})
            layer = _with_ffn(layer, ffn)
        kinds.append((layer, n_layers))
    built = fresh_model(model)
    built.__dict__["layer_kinds"] = tuple(kinds)  # what a check looks at, besides the depth
    return built


def check_splits(model: ModelSpec, parallel: ParallelSpec, experts: Experts, n: int) -> list[str | None]:
    """For each case what is wrong with its experts, alone or on this split; None if nothing."""
    found: list[str | None] = [None] * n
    for layer, _ in model.layer_kinds:
        ffn = layer.ffn
        if not isinstance(ffn, MoeFfn):
            continue
        e, k, f = (np.broadcast_to(x, (n,)) for x in experts.of(ffn))
        slots = e + parallel.redundant_experts
        ep, etp = parallel.ep_size, parallel.etp_size
        checks = (
            (k > e, "top-k {k:g} is more than the {e:g} experts"),
            (k < 1, "top-k {k:g} is less than 1"),
            (np.abs(f - np.round(f)) > 1e-9, "expert width {f:g} is no whole number"),
            (f < 1, "expert width {f:g} is less than 1"),
            (slots % ep != 0, f"ep_size {ep} does not divide the {{slots:g}} expert slots"),
            (f % etp != 0, f"{etp} ranks that slice experts do not divide the expert width {{f:g}}"),
        )
        for wrong, words in checks:
            for i in np.flatnonzero(wrong):
                found[i] = found[i] or words.format(e=e[i], k=k[i], f=f[i], slots=slots[i])
    return found


def memory_of(
    model: ModelSpec, parallel: ParallelSpec, hardware: Hardware, experts: Experts, batch: Floats, context: Floats,
    max_pass_tokens: Floats,
) -> Floats:  # fmt: skip
    """Bytes of the fullest rank of the fullest stage for every case, as `moesim.memory` counts them (one model per slot)."""
    serving: Any = Serving(batch, context, max_pass_tokens)  # type: ignore[arg-type]  # arrays of cases
    return np.asarray(fullest_bytes(array_model(model, experts), parallel, serving, hardware.device.memory_bytes))


def weight_bytes(model: ModelSpec, experts: Experts) -> Floats:
    """Bytes of all weights, each once."""
    n = range(len(model.layers))
    return np.asarray(
        rank_weights(array_model(model, experts), ParallelSpec(), n, first=True, last=True).total, dtype=float
    )


def changed_model(model: ModelSpec, values: Mapping[str, int]) -> ModelSpec:
    """The model with other experts, as plain whole numbers."""
    regroups = {"n_group": 1, "topk_group": 1} if {"n_routed_experts", "num_experts_per_tok"} & set(values) else {}
    done = {id(layer): layer for layer in model.layers}
    for key, layer in done.items():
        if isinstance(layer.ffn, MoeFfn):
            done[key] = layer.model_copy(update={"ffn": layer.ffn.model_copy(update={**values, **regroups})})
    return fresh_model(model, layers=tuple(done[id(layer)] for layer in model.layers))
