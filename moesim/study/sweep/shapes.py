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
from moesim.memory.count import Serving, rank_weights, stage_layers
from moesim.specs.hardware import Hardware
from moesim.specs.model import (
    CompressedAttention,
    DenseFfn,
    GqaAttention,
    LayerSpec,
    LinearAttention,
    MlaAttention,
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
    "without_experts",
]

Floats = NDArray[np.float64]
_SERVING = Serving(1.0, 1.0)


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
    """The model with arrays in its experts' fields, for lowering only: it cannot be hashed, validated or written.

    Routing in groups of experts is dropped where E or K vary, as there is no telling what the groups would be.
    """
    if not experts.varies:
        return model
    regroups = experts.n_routed is not None or experts.top_k is not None
    groups = []
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
    built.__dict__["layer_groups"] = tuple(groups)
    return built


def _with_ffn(layer: LayerSpec, ffn: Any) -> LayerSpec:
    return LayerSpec.model_construct(**{**{n: getattr(layer, n) for n in LayerSpec.model_fields}, "ffn": ffn})


def n_params_of(model: ModelSpec, experts: Experts) -> tuple[Floats, Floats]:
    """All parameters and those that one token goes through, as `ModelSpec` counts them."""
    d, total, active = float(model.hidden_size), float(model.n_params), float(model.n_active_params)
    totals: Any = total
    actives: Any = active
    for layer, n in model.layer_kinds:
        ffn = layer.ffn
        if isinstance(ffn, MoeFfn) and experts.varies:
            e, k, f = experts.of(ffn)
            one = expert_params(ffn, d, f)
            rest = e * (d + float(ffn.router_bias)) - ffn.router_params(model.hidden_size)
            totals = totals + n * (e * one + rest - ffn.n_routed_experts * ffn.expert_params(model.hidden_size))
            own = ffn.num_experts_per_tok * ffn.expert_params(model.hidden_size)
            actives = actives + n * (k * one + rest - own)
    return np.asarray(totals, dtype=float), np.asarray(actives, dtype=float)


def expert_params(ffn: MoeFfn, d: float, width: Any) -> Any:
    """Weights of one expert of any width."""
    n_in, rows = (2.0 if ffn.gated else 1.0), float(ffn.latent_size or d)
    return (n_in + 1.0) * rows * width + (n_in * width + rows if ffn.bias else 0.0)


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
    stages = stage_layers(len(model.layers), parallel.pp_size)
    sequences = np.ceil(batch / parallel.dp_size)
    fullest: Any = 0.0
    for i, stage in enumerate(stages):
        weights = _other_weights(model, parallel, stage, first=i == 0, last=i == len(stages) - 1)
        total = weights + _expert_bytes(model, parallel, experts, stage)
        total = total + sequences * _kv_bytes(model, parallel, context, stage)
        if i == len(stages) - 1:
            total = total + sequences * (model.vocab_size * 4.0)
        fullest = np.maximum(fullest, total)
    widest = 2.0 * model.hidden_size + model.residual_width + _widest(model, parallel, experts)
    fullest = fullest + max_pass_tokens / parallel.cp_size * widest * 2.0 + _buffers(model, parallel, experts, batch)
    reserve = _SERVING.reserve_bytes + _SERVING.reserve_frac * hardware.device.memory_bytes
    return np.asarray(fullest + reserve)


def _other_weights(model: ModelSpec, parallel: ParallelSpec, stage: range, *, first: bool, last: bool) -> float:
    """Bytes of everything but MoE blocks: each kind of layer counted once and multiplied; remembered with the model.

    Of the split only TP matters to them.
    """
    bare, inside = without_experts(model), set(stage)
    memory: dict[Any, float] = bare.__dict__.setdefault("_weights", {})
    key = (parallel.tp_size, stage.start, stage.stop, first, last)
    if key in memory:
        return memory[key]
    outside = rank_weights(bare, parallel, (), first=False, last=False).total
    total = rank_weights(bare, parallel, (), first=first, last=last).total
    for _, indices in model.layer_groups:
        n = len(inside.intersection(indices))
        if n:
            total += n * (rank_weights(bare, parallel, indices[:1], first=False, last=False).total - outside)
    memory[key] = total
    return total


def without_experts(model: ModelSpec) -> ModelSpec:
    """The model with nothing where its experts were; remembered with the model."""
    known = model.__dict__.get("_without_experts")
    if not isinstance(known, ModelSpec):
        known = model.__dict__["_without_experts"] = _without_experts(model)
    return known


def _without_experts(model: ModelSpec) -> ModelSpec:
    done = {id(layer): layer for layer in model.layers}
    for key, layer in done.items():
        if isinstance(layer.ffn, MoeFfn):
            done[key] = _with_ffn(layer, None)
    return fresh_model(model, layers=tuple(done[id(layer)] for layer in model.layers))


def _expert_bytes(model: ModelSpec, parallel: ParallelSpec, experts: Experts, stage: range) -> Any:
    s, d = model.storage, float(model.hidden_size)
    total: Any = 0.0
    inside = set(stage)
    for layer, indices in model.layer_groups:
        ffn, n = layer.ffn, len(inside.intersection(indices))
        if isinstance(ffn, MoeFfn) and n:
            e, _, f = experts.of(ffn)
            slots = (e + parallel.redundant_experts) / parallel.ep_size
            routed = slots * expert_params(ffn, d, f) / parallel.etp_size * s.routed_experts.bytes_per_element
            shared = (ffn.shared_params(model.hidden_size) + ffn.extra_params) / parallel.tp_size
            router = e * (d + float(ffn.router_bias)) * s.router.bytes_per_element
            total = total + n * (routed + shared * s.shared_experts.bytes_per_element + router)
    return total


def _kv_bytes(model: ModelSpec, parallel: ParallelSpec, context: Floats, stage: range) -> Any:
    element, inside = model.storage.kv_cache.bytes_per_element, set(stage)
    total: Any = 0.0
    for layer, indices in model.layer_groups:
        n = len(inside.intersection(indices))
        for a in (layer.attention, layer.cross_attention) if n else ():
            if isinstance(a, LinearAttention):
                total = total + n * (a.state_elements / parallel.tp_size * 4.0)
            elif isinstance(a, GqaAttention) and not a.reuses_kv:
                kept = context if a.sliding_window is None else np.minimum(context, a.sliding_window)
                heads = max(1.0, a.n_kv_heads / parallel.tp_size)
                width = heads * (a.head_dim + a.v_head_dim) + (a.index_head_dim or 0)
                total = total + n * _paged(kept / parallel.cp_size) * (width * element)
            elif isinstance(a, MlaAttention):
                total = total + n * _paged(context / parallel.cp_size) * (a.kv_elements_per_token() * element)
            elif isinstance(a, CompressedAttention):
                window = _paged(np.minimum(context, a.sliding_window)) * (a.head_dim * element)
                rows = _paged(context / parallel.cp_size) * a.kv_bytes_per_token(element)
                total = total + n * (window + rows + a.state_elements * 4.0)
    return total


def _paged(tokens: Any) -> Any:
    return np.ceil(tokens / _SERVING.kv_block_tokens) * float(_SERVING.kv_block_tokens)


def _widest(model: ModelSpec, parallel: ParallelSpec, experts: Experts) -> Any:
    widest: Any = 0.0
    for layer, _ in model.layer_kinds:
        ffn = layer.ffn
        if isinstance(ffn, DenseFfn):
            widest = np.maximum(widest, 3.0 * ffn.intermediate_size / parallel.tp_size)
        elif isinstance(ffn, MoeFfn):
            _, k, f = experts.of(ffn)
            pairs = k * parallel.dp_size / parallel.ep_size
            own = pairs * (ffn.row_width(model.hidden_size) + 3.0 * f / parallel.etp_size)
            widest = np.maximum(widest, own + 3.0 * ffn.shared_intermediate_size / parallel.tp_size)
    return widest


def _buffers(model: ModelSpec, parallel: ParallelSpec, experts: Experts, batch: Floats) -> Any:
    n_groups = sum(size > 1 for size in (parallel.tp_size, parallel.dp_size, parallel.pp_size, parallel.cp_size))
    buffers: Any = n_groups * 64.0 * 2**20
    if model.moe_ffn is not None and parallel.ep_size > 1 and parallel.dp_size * parallel.cp_size > 1:
        per_rank = np.minimum(128.0, np.maximum(1.0, batch / parallel.dp_size))
        buffers = (
            buffers + 2.0 * per_rank * experts.of(model.moe_ffn)[0] * model.moe_ffn.row_width(model.hidden_size) * 2.0
        )
    return buffers


def changed_model(model: ModelSpec, values: Mapping[str, int]) -> ModelSpec:
    """The model with other experts, as plain whole numbers."""
    regroups = {"n_group": 1, "topk_group": 1} if {"n_routed_experts", "num_experts_per_tok"} & set(values) else {}
    done = {id(layer): layer for layer in model.layers}
    for key, layer in done.items():
        if isinstance(layer.ffn, MoeFfn):
            done[key] = layer.model_copy(update={"ffn": layer.ffn.model_copy(update={**values, **regroups})})
    return fresh_model(model, layers=tuple(done[id(layer)] for layer in model.layers))
