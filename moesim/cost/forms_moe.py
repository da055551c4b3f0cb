"""Physical form of fused routed experts on one rank: gate and up product, activation, down product, combine.

Letters: A token-expert pairs on the rank, H experts hit, T tokens given to the kernel, D hidden size, F expert width on the
rank, S compute units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cost.forms import Array, Form, Parameters, Target, Terms, param, stack_features
from moesim.cost.forms_gemm import alignment, pad_to, wave_factor
from moesim.ops import MoeShape

__all__ = ["MOE", "MoeParams", "row_tiles"]

_ROWS = np.asarray([16.0, 64.0, 128.0])


@dataclass(frozen=True, slots=True)
class MoeParams(Parameters):
    """Parameters of `MOE`."""

    compute_frac: float = param(0.6, 0.01, 1.1, "", "part of peak flop/s with 128-row tiles, full device, deep k")
    tile_half: float = param(32.0, 0.5, 2000.0, "rows", "row tiles this small lose half of the compute rate")
    depth_half: float = param(
        300.0, 1.0, 1e4, "elements", "depth (D, then F) at which fixed work takes half of the time"
    )
    wave_frac: float = param(0.5, 1e-3, 1.0, "", "part of the last, unfilled wave over the compute units that is lost")
    padding_frac: float = param(0.5, 1e-3, 1.0, "", "part of the padding of D and F to whole tiles that is computed")
    memory_frac: float = param(0.8, 0.03, 1.3, "", "part of peak memory bytes/s while expert weights are read")
    bytes_half: float = param(3e6, 1e3, 1e9, "B", "bytes of weights at which half of that rate is reached")
    split_power: float = param(0.3, 1e-3, 1.0, "", "how badly few expert tiles fill the memory system (1: not at all)")
    local_streaming: float = param(
        1.0, 0.02, 30.0, "", "passes over permuted, intermediate and output rows of own pairs"
    )
    token_streaming: float = param(
        0.5, 1e-3, 20.0, "", "passes over the (K + 1) rows of every token given to the kernel"
    )
    overhead_s: float = param(15e-6, 1e-6, 5e-4, "s", "time of the empty layer")
    expert_s: float = param(1e-9, 1e-12, 1e-6, "s", "time per local expert, hit or not (sorting, pointers)")
    power: float = param(4.0, 1.0, 12.0, "", "exponent of the smooth maximum of compute and memory")


def row_tiles(n_assignments: Array, n_experts_hit: Array, max_expert_tokens: Array, rows: int | Array) -> Array:
    """Row tiles that the hit experts fill, from load statistics.

    Between equal loads, H ceil(A / H / rows), and exponentially distributed ones, H / (1 - exp(-rows H / A)), by the ratio of
    the hottest to the mean; never fewer than the hottest expert's own. Assumption on the spread of loads.

    >>> float(row_tiles(np.float64(256.0), np.float64(4.0), np.float64(64.0), 64))
    4.0
    """
    mean = n_assignments / n_experts_hit
    equal = n_experts_hit * np.ceil(np.round(mean, 6) / rows)
    spread = n_experts_hit / -np.expm1(-rows / mean)
    weight = np.clip(max_expert_tokens / mean - 1.0, 0.0, 1.0)
    mixed = (1.0 - weight) * equal + weight * spread
    return np.asarray(np.maximum(mixed, n_experts_hit - 1.0 + np.maximum(1.0, max_expert_tokens / rows)))


def _arrays(s: MoeShape) -> tuple[Array, ...]:
    pairs = np.maximum(np.asarray(s.n_assignments, dtype=np.float64), 1e-9)
    hit = np.maximum(np.asarray(s.n_experts_hit, dtype=np.float64), np.minimum(1.0, pairs))
    hottest = np.maximum(np.asarray(s.max_expert_tokens, dtype=np.float64), pairs / hit)
    return pairs, hit, hottest, np.asarray(s.hidden_size, dtype=np.float64), np.asarray(s.inter_size, dtype=np.float64)


def _terms(shape: MoeShape, p: MoeParams, target: Target) -> Terms:
    pairs, hit, hottest, d, f = _arrays(shape)
    up = np.where(np.asarray(shape.gated), 2.0, 1.0)
    units, part = target.n_compute_units, p.padding_frac
    n_up, n_down = _padded(up * f, 128, part), _padded(d, 256, part)
    k_up, k_down = _padded(d, 128, part), _padded(f, 128, part)
    # tile heights along a new first axis; the best one counts
    rows = _ROWS[(..., *(None,) * max(np.ndim(x) for x in (pairs, hit, hottest, d, f)))]
    tiles = row_tiles(pairs, hit, hottest, rows)
    reuse = (1.0 + p.tile_half / rows) / (1.0 + p.tile_half / 128.0)
    work = np.zeros(())
    for n, k, depth, columns in ((n_up, k_up, d, up * f), (n_down, k_down, f, d)):
        waves = wave_factor(tiles * np.ceil(columns / 128) / units, p.wave_frac)
        work = work + 2.0 * rows * tiles * n * k * (1.0 + p.depth_half / depth) * waves
    compute = np.asarray((work * reuse).min(axis=0) / (target.peak_flop_per_s * p.compute_frac))
    weights = hit * (up + 1.0) * d * f * target.weight_bytes
    streams = np.minimum(1.0, hit * np.ceil(up * f / 128) / units) ** p.split_power
    memory = (weights + p.bytes_half) / (target.memory_bytes_per_s * p.memory_frac * streams)
    own = pairs * (d * target.activation_bytes + 4.0 * up * f + f * target.activation_bytes + 4.0 * d)
    every = np.asarray(shape.n_tokens) * (np.asarray(shape.top_k) + 1.0) * d * 2.0
    streaming = (p.local_streaming * own + p.token_streaming * every) / target.memory_bytes_per_s
    return Terms(
        compute, memory, streaming, p.overhead_s + p.expert_s * np.asarray(shape.n_local_experts, dtype=np.float64)
    )


def _padded(size: Array, tile: int, part: float) -> Array:
    return (1.0 - part) * size + part * pad_to(size, tile)


def _features(shape: MoeShape, p: MoeParams, target: Target, t: Terms) -> Array:
    pairs, hit, hottest, d, f = _arrays(shape)
    up, log = np.where(np.asarray(shape.gated), 2.0, 1.0), np.log2
    tokens, top_k = np.maximum(np.asarray(shape.n_tokens, dtype=np.float64), 1e-9), np.asarray(shape.top_k)
    local = np.asarray(shape.n_local_experts, dtype=np.float64)
    waves = row_tiles(pairs, hit, hottest, 64) * np.ceil(up * f / 128) / target.n_compute_units
    return stack_features(
        log(pairs), log(hit), log(pairs / hit), log(hottest * hit / pairs), log(f), log(d), log(local), log(tokens), log(top_k),
        log(t.compute_s / t.memory_s), log(t.memory_s / t.overhead_s), log(t.compute_s / t.overhead_s),
        log(t.streaming_s / t.overhead_s), alignment(f, 256), alignment(d, 1024), up, log(waves), log(tokens * top_k / local),
    )  # fmt: skip


MOE = Form(
    kind="moe",
    params_type=MoeParams,
    terms=_terms,
    features=_features,
    feature_names=(
        "log pairs", "log experts hit", "log pairs per hit expert", "log hottest over mean", "log width", "log hidden",
        "log local experts", "log tokens", "log top-k", "log compute/memory", "log memory/overhead", "log compute/overhead",
        "log streaming/overhead", "alignment of width", "alignment of hidden", "up projections", "log waves",
        "log choices per local expert",
    ),
    shape_columns=(
        "n_tokens", "n_assignments", "n_experts_hit", "max_expert_tokens", "n_local_experts", "hidden_size", "inter_size",
        "top_k", "gated",
    ),
    group_columns=("model_shape",),
)  # fmt: skip
