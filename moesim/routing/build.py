"""From what a user states to a router model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.families import dirichlet_weights, lognormal_weights, relabelled, zipf_weights
from moesim.routing.presets import load_preset
from moesim.routing.router import RouterModel
from moesim.specs.base import Origin
from moesim.specs.routing import RouterFamily, RoutingSpec

__all__ = ["DEFAULT_SEED", "build_router"]

DEFAULT_SEED = 20240704


def build_router(
    spec: RoutingSpec,
    n_layers: int,
    n_experts: int,
    top_k: int,
    n_group: int = 1,
    topk_group: int = 1,
    rng: np.random.Generator | None = None,
) -> RouterModel:
    """The router model of a spec for a model with L MoE layers, E routed experts and top-K.

    Args:
        spec: family and its parameters.
        n_layers: L, MoE layers only.
        n_experts: E, routed experts.
        top_k: K.
        n_group: groups of experts (1: no limit).
        topk_group: groups a token may use.
        rng: decides which experts are hot in which layer; a fixed seed by default.

    Raises:
        InputError: sizes that do not fit each other or the spec.
        CatalogError: no such preset.
        TraceError: a recorded trace that does not fit the model.
    """
    _check_sizes(n_layers, n_experts, top_k, n_group, topk_group)
    rng = np.random.default_rng(DEFAULT_SEED) if rng is None else rng
    if spec.domain is not None and spec.family not in (RouterFamily.PRESET, RouterFamily.TRACE):
        raise InputError("belongs to a preset or a trace", field="routing.domain", value=spec.domain)
    if spec.family is RouterFamily.PRESET:
        return _from_preset(spec, n_layers, n_experts, top_k, n_group, topk_group, rng)
    if spec.family is RouterFamily.TRACE:
        return _from_trace(spec, n_layers, n_experts, top_k)
    weights = _family_weights(spec, n_layers, n_experts, top_k, rng)
    return RouterModel(
        n_layers=n_layers,
        n_experts=n_experts,
        top_k=top_k,
        weights=weights[None],
        domain_shares=np.ones(1),
        n_group=n_group,
        topk_group=topk_group,
        repeat_prob=np.array([spec.temporal_repeat or 0.0]),
        layer_coupling=np.array([[spec.layer_coupling or 0.0]]),
        is_balanced=spec.family is RouterFamily.BALANCED,
        origin=Origin.ASSUMPTION,
        source=_describe(spec),
    )


def _from_preset(
    spec: RoutingSpec,
    n_layers: int,
    n_experts: int,
    top_k: int,
    n_group: int,
    topk_group: int,
    rng: np.random.Generator,
) -> RouterModel:
    preset = load_preset(spec.preset or "")
    index = preset.domain_index(spec.domain)
    weights = preset.weights(n_layers, n_experts, top_k, rng)
    names = preset.domain_names
    if index is not None:
        weights, names = weights[[index]], (names[index],)
    repeat, joint = preset.repeat_of(n_layers, spec.domain)
    coupling = preset.coupling_of(n_layers, top_k)
    if spec.temporal_repeat is not None:
        repeat = np.full(n_layers, spec.temporal_repeat)
    if spec.layer_coupling is not None:
        coupling = np.full((n_layers, top_k), spec.layer_coupling)
    same = (n_layers, n_experts, top_k) == (preset.n_layers, preset.n_experts, preset.top_k)
    how = (
        "fitted"
        if same
        else f"fitted to another size, L{preset.n_layers} E{preset.n_experts} K{preset.top_k}; resampled"
    )
    return RouterModel(
        n_layers=n_layers,
        n_experts=n_experts,
        top_k=top_k,
        weights=weights,
        domain_shares=np.full(len(names), 1 / len(names)),
        n_group=n_group,
        topk_group=topk_group,
        domain_names=names,
        repeat_prob=repeat,
        repeat_joint_frac=joint,
        layer_coupling=coupling,
        pass_jitter=preset.pass_jitter or 0.0,
        prompt_dispersion=preset.prompt_dispersion or 0.0,
        origin=Origin.FITTED if same else Origin.ASSUMPTION,
        source=f"router preset {preset.name} ({how})",
    )


def _from_trace(spec: RoutingSpec, n_layers: int, n_experts: int, top_k: int) -> RouterModel:
    from moesim.routing.trace import read_trace

    trace = read_trace(Path(spec.trace or "").expanduser(), n_layers, n_experts, top_k)
    return trace.router(spec.domain)


def _family_weights(
    spec: RoutingSpec, n_layers: int, n_experts: int, top_k: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    skew = spec.skew if spec.skew is not None else 1.0
    match spec.family:
        case RouterFamily.ZIPF:
            return relabelled(zipf_weights(n_experts, skew), n_layers, rng)
        case RouterFamily.LOGNORMAL:
            return relabelled(lognormal_weights(n_experts, skew), n_layers, rng)
        case RouterFamily.DIRICHLET:
            return dirichlet_weights(n_layers, n_experts, skew, rng)
        case RouterFamily.POPULARITY:
            return relabelled(_given_weights(spec, n_experts, top_k), n_layers, rng)
        case _:
            return np.full((n_layers, n_experts), 1.0 / n_experts)


def _given_weights(spec: RoutingSpec, n_experts: int, top_k: int) -> NDArray[np.float64]:
    given = np.asarray(spec.popularity or (), dtype=np.float64)
    if len(given) != n_experts:
        raise InputError("must list one weight per routed expert", field="routing.popularity",
                         value=f"{len(given)} weights", allowed=f"{n_experts} weights")  # fmt: skip
    if (given > 0).sum() < top_k:
        raise InputError("fewer experts of positive weight than the top-k", field="routing.popularity",
                         value=int((given > 0).sum()), allowed=f"at least {top_k}")  # fmt: skip
    weights: NDArray[np.float64] = given / given.sum()
    return weights


def _check_sizes(n_layers: int, n_experts: int, top_k: int, n_group: int, topk_group: int) -> None:
    if n_layers < 1:
        raise InputError("a router needs at least one MoE layer", field="n_layers", value=n_layers)
    if not 1 <= n_experts <= np.iinfo(np.int16).max:
        raise InputError("number of experts", field="n_experts", value=n_experts, allowed="1..32767")
    if not 1 <= top_k <= n_experts:
        raise InputError("top-k cannot be more than the experts", field="top_k", value=top_k, allowed=f"1..{n_experts}")
    if not 1 <= topk_group <= n_group <= 16 or n_experts % n_group:
        raise InputError("groups must divide the experts, at most 16, with topk_group of them in use", field="n_group",
                         value=f"n_group {n_group}, topk_group {topk_group}", allowed="a divisor of n_experts")  # fmt: skip
    if topk_group * (n_experts // n_group) < top_k:
        raise InputError("the groups in use hold fewer experts than the top-k", field="topk_group", value=topk_group)


def _describe(spec: RoutingSpec) -> str:
    skew = "" if spec.skew is None else f", skew {spec.skew:g}"
    return f"{spec.family.value}{skew} (assumption)"
