"""Physical form of a dense matrix product [m, k] x [k, n].

Letters: m rows, n columns, k depth, S compute units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cost.forms import Array, Form, Parameters, Target, Terms, param, stack_features
from moesim.ops import GemmShape

__all__ = ["GEMM", "GemmParams", "alignment", "pad_to", "wave_factor"]

_TILES = ((16, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128))
_TILE_ROWS, _TILE_COLUMNS = np.asarray(_TILES, dtype=np.float64).T
_TILE_EDGES = 1.0 / _TILE_ROWS + 1.0 / _TILE_COLUMNS
_LARGEST = 1.0 / 256 + 1.0 / 128


@dataclass(frozen=True, slots=True)
class GemmParams(Parameters):
    """Parameters of `GEMM`."""

    compute_frac: float = param(0.7, 0.02, 1.1, "", "part of peak flop/s at the largest tile, full device, deep k")
    tile_half: float = param(32.0, 0.5, 500.0, "rows", "operand reuse: tiles this small lose half of the compute rate")
    depth_half: float = param(
        300.0, 1.0, 1e4, "elements", "depth k at which prologue and epilogue take half of the time"
    )
    wave_frac: float = param(0.5, 1e-3, 1.0, "", "part of the last, unfilled wave over the compute units that is lost")
    split_power: float = param(
        0.3, 1e-3, 1.0, "", "how badly fewer tiles than compute units fill the device (1: not at all)"
    )
    memory_frac: float = param(0.8, 0.03, 1.3, "", "part of peak memory bytes/s in large products")
    bytes_half: float = param(1e6, 1e3, 1e9, "B", "bytes moved at which half of that rate is reached")
    streaming: float = param(0.3, 1e-3, 30.0, "", "extra passes over input and output rows (quantisation, copies)")
    overhead_s: float = param(4e-6, 3e-7, 5e-4, "s", "time of an empty kernel")
    depth_s: float = param(1e-8, 1e-12, 2e-7, "s", "latency per 64 elements of depth")
    power: float = param(4.0, 1.0, 12.0, "", "exponent of the smooth maximum of compute and memory")


def _terms(shape: GemmShape, p: GemmParams, target: Target) -> Terms:
    m, n, k = (np.asarray(v, dtype=np.float64) for v in (shape.m, shape.n, shape.k))
    units, batch = target.n_compute_units, np.asarray(shape.n_batch, dtype=np.float64)
    rate = target.peak_flop_per_s * p.compute_frac
    by_tile = (..., *(None,) * max(np.ndim(x) for x in (m, n, k, batch)))
    rows, columns, reuse = _TILE_ROWS[by_tile], _TILE_COLUMNS[by_tile], 1.0 + p.tile_half * _TILE_EDGES[by_tile]
    tiles = batch * np.ceil(m / rows) * np.ceil(n / columns)
    flops = 2.0 * tiles * rows * columns * (k + p.depth_half)
    fill = np.minimum(1.0, tiles / units) ** -p.split_power
    waves = np.where(tiles > units, wave_factor(tiles / units, p.wave_frac), fill)
    compute = (flops * (reuse / (1.0 + p.tile_half * _LARGEST)) * waves).min(axis=0) / rate
    moved = batch * (n * k * target.weight_bytes + m * k * target.activation_bytes + m * n * 2.0)
    streams = np.minimum(1.0, batch * np.ceil(n / 64) * np.maximum(1.0, np.ceil(m / 128)) / units) ** p.split_power
    memory = (moved + p.bytes_half) / (target.memory_bytes_per_s * p.memory_frac * streams)
    streaming = p.streaming * batch * (m * k + m * n) * 2.0 / target.memory_bytes_per_s
    return Terms(compute, memory, streaming, p.overhead_s + p.depth_s * k / 64.0)


def _features(shape: GemmShape, p: GemmParams, target: Target, t: Terms) -> Array:
    m, n, k = (np.asarray(v, dtype=np.float64) for v in (shape.m, shape.n, shape.k))
    units, log = target.n_compute_units, np.log2

    def lost(rows: int, columns: int) -> Array:
        waves = np.ceil(m / rows) * np.ceil(n / columns) / units
        return np.asarray(np.where(waves > 1.0, 3.0 * log(np.ceil(waves) / waves), 0.0))

    return stack_features(
        log(m), log(n), log(k), log(t.compute_s / t.memory_s), log(t.memory_s / t.overhead_s),
        log(t.compute_s / t.overhead_s), log(pad_to(m, 128) / m), log(pad_to(m, 64) / m), alignment(m, 16),
        log(np.ceil(m / 128) * np.ceil(n / 128) / units), lost(128, 128), lost(128, 256), lost(256, 128), lost(64, 128),
        log(n * k),
    )  # fmt: skip


def pad_to(size: Array, tile: float) -> Array:
    """Size rounded up to whole tiles."""
    return np.asarray(np.ceil(size / tile) * tile)


def alignment(size: Array, limit: int) -> Array:
    """log2 of the largest power of two, up to `limit`, that divides the size."""
    return np.asarray(np.log2(np.gcd(np.maximum(1, np.round(size)).astype(np.int64), limit)))


def wave_factor(waves: Array, lost_frac: float) -> Array:
    """Time over the time without wave quantisation: whole waves against the waves that are needed."""
    return np.asarray((1.0 - lost_frac) + lost_frac * np.ceil(waves) / waves)


GEMM = Form(
    kind="gemm",
    params_type=GemmParams,
    terms=_terms,
    features=_features,
    feature_names=(
        "log m", "log n", "log k", "log compute/memory", "log memory/overhead", "log compute/overhead", "log padding 128",
        "log padding 64", "alignment of m", "log waves", "lost 128x128", "lost 128x256", "lost 256x128", "lost 64x128",
        "log n*k",
    ),
    shape_columns=("m", "n", "k"),
    group_columns=("n", "k"),
    length=2.0,
    ridge=1e-4,
)  # fmt: skip
