"""Physical form of an MoE layer that runs its experts one after the other, as eager PyTorch does.

Letters: A token-expert pairs, H experts hit, E experts held, D hidden size, F expert width, T tokens.

    t = overhead + expert_s E + hit_s H + streaming + (compute^p + memory^p)^(1/p)

A loop has no waves and no tiles across experts; each expert that is hit costs its calls, its weights are read once, and its rows
are multiplied. With p near 1 reading and multiplying do not overlap (a core that streams weights through one product). A dense
layer is the case A = T, H = E = 1. The form of fused GPU kernels misses the cost per expert, so kernels in `EAGER_KERNELS`, which
`moesim calibrate profile` measures, use this one. `padded` runs every expert held, each with as many rows as the hottest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.cost.forms import Array, Parameters, Target, Terms, param, stack_features
from moesim.cost.forms_moe import MOE
from moesim.ops import MoeShape

__all__ = ["EAGER_KERNELS", "EAGER_MOE", "EAGER_PADDED_MOE", "EagerMoeParams"]

#: Eager kernels in the order in which one is taken where nothing says which is best. All time whole layers: router, permute,
#: experts and combine.
EAGER_KERNELS = ("looped", "grouped", "padded", "transformers", "user", "dense")


@dataclass(frozen=True, slots=True)
class EagerMoeParams(Parameters):
    """Parameters of `EAGER_MOE`."""

    compute_frac: float = param(0.8, 0.02, 2.0, "", "part of the peak flop/s that long products of many rows reach")
    depth_half: float = param(
        100.0, 1.0, 5e3, "elements", "depth (D, then F) at which fixed work takes half of the time"
    )
    memory_frac: float = param(0.5, 0.02, 2.0, "", "part of the peak memory bytes/s while weights are read")
    streaming: float = param(1.0, 1e-3, 50.0, "", "passes over the input, inner and output rows of all pairs")
    overhead_s: float = param(1e-4, 1e-6, 5e-3, "s", "time of a layer without rows")
    hit_s: float = param(3e-5, 1e-8, 2e-3, "s", "time per expert hit (its calls)")
    expert_s: float = param(1e-7, 1e-10, 1e-4, "s", "time per expert held, hit or not")
    power: float = param(1.5, 1.0, 12.0, "", "exponent of the smooth maximum of compute and memory; 1 is a sum")


def _terms(shape: MoeShape, p: EagerMoeParams, target: Target) -> Terms:
    pairs = np.maximum(np.asarray(shape.n_assignments, dtype=np.float64), 1e-9)
    hit = np.maximum(np.asarray(shape.n_experts_hit, dtype=np.float64), np.minimum(1.0, pairs))
    d, f = (np.asarray(v, dtype=np.float64) for v in (shape.hidden_size, shape.inter_size))
    up = np.where(np.asarray(shape.gated), 2.0, 1.0)
    cells = d * f * (up * (1.0 + p.depth_half / d) + (1.0 + p.depth_half / f))
    flops, weights = 2.0 * pairs * cells, hit * cells * target.weight_bytes
    rows = pairs * (2.0 * d + (up + 1.0) * f) * target.activation_bytes
    overhead = p.overhead_s + p.hit_s * hit + p.expert_s * np.asarray(shape.n_local_experts, dtype=np.float64)
    return Terms(
        np.asarray(flops / (target.peak_flop_per_s * p.compute_frac)),
        np.asarray(weights / (target.memory_bytes_per_s * p.memory_frac)),
        np.asarray(p.streaming * rows / target.memory_bytes_per_s),
        np.asarray(overhead),
    )


def _features(shape: MoeShape, p: EagerMoeParams, target: Target, t: Terms) -> Array:
    pairs, hit = (np.maximum(np.asarray(v, dtype=np.float64), 1e-9) for v in (shape.n_assignments, shape.n_experts_hit))
    hottest = np.maximum(np.asarray(shape.max_expert_tokens, dtype=np.float64), pairs / hit)
    log = np.log2
    return stack_features(
        log(pairs), log(hit), log(pairs / hit), log(hottest * hit / pairs), log(shape.inter_size), log(shape.hidden_size),
        log(shape.n_local_experts), log(t.compute_s / t.memory_s), log(t.memory_s / t.overhead_s),
    )  # fmt: skip


EAGER_MOE = replace(
    MOE,
    params_type=EagerMoeParams,
    terms=_terms,
    features=_features,
    feature_names=(
        "log pairs", "log experts hit", "log pairs per hit expert", "log hottest over mean", "log width", "log hidden",
        "log local experts", "log compute/memory", "log memory/overhead",
    ),
)  # fmt: skip


def _as_padded(shape: MoeShape) -> MoeShape:
    local = np.asarray(shape.n_local_experts, dtype=np.float64)
    pairs = local * np.asarray(shape.max_expert_tokens, dtype=np.float64)
    return replace(shape, n_assignments=pairs, n_padded=pairs, n_experts_hit=local)


def _padded_terms(shape: MoeShape, p: EagerMoeParams, target: Target) -> Terms:
    return _terms(_as_padded(shape), p, target)


def _padded_features(shape: MoeShape, p: EagerMoeParams, target: Target, t: Terms) -> Array:
    return _features(_as_padded(shape), p, target, t)


EAGER_PADDED_MOE = replace(EAGER_MOE, terms=_padded_terms, features=_padded_features)
