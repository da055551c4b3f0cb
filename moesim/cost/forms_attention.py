"""Physical forms of attention scores and values: prefill (many queries per sequence) and decode (one).

Letters: b sequences, q new tokens, L keys, h query heads, g query heads per key head, S compute units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cost.forms import Array, Form, Parameters, Target, Terms, param, stack_features
from moesim.cost.forms_gemm import alignment, wave_factor
from moesim.ops import AttentionShape

__all__ = ["DECODE", "PREFILL", "DecodeParams", "PrefillParams", "keys_per_sequence"]

_ROWS = 128
_NO_WINDOW = 1e9
_MAX_PACKED_HEADS = 32  # query heads per key head that packed decode kernels take; beyond, other kernels run


@dataclass(frozen=True, slots=True)
class PrefillParams(Parameters):
    """Parameters of `PREFILL`."""

    compute_frac: float = param(0.6, 0.01, 1.1, "", "part of peak flop/s with long keys and a full device")
    keys_half: float = param(100.0, 1.0, 5e3, "keys", "mean keys per query at which fixed work takes half of the time")
    query_extra: float = param(
        16.0, 0.1, 500.0, "queries", "queries computed beyond those asked for, per head (tile padding)"
    )
    wave_frac: float = param(0.5, 1e-3, 1.0, "", "part of the last, unfilled wave over the compute units that is lost")
    memory_frac: float = param(0.7, 0.03, 1.3, "", "part of peak memory bytes/s")
    bytes_half: float = param(1e6, 1e3, 1e9, "B", "bytes moved at which half of that rate is reached")
    overhead_s: float = param(1e-5, 1e-6, 5e-4, "s", "time of an empty call")
    token_s: float = param(1e-10, 1e-14, 1e-7, "s", "time per new token (cache write, positions)")
    wave_s: float = param(1e-7, 1e-10, 2e-5, "s", "fixed time per wave of query tiles")
    power: float = param(3.0, 1.0, 12.0, "", "exponent of the smooth maximum of compute and memory")


@dataclass(frozen=True, slots=True)
class DecodeParams(Parameters):
    """Parameters of `DECODE`."""

    compute_frac: float = param(0.4, 0.003, 1.1, "", "part of peak flop/s with full query tiles")
    group_extra: float = param(
        16.0, 0.1, 200.0, "heads", "query heads computed beyond those of the key head (tile padding)"
    )
    memory_frac: float = param(0.8, 0.03, 1.3, "", "part of peak memory bytes/s while the cache is read")
    bytes_half: float = param(1e6, 1e3, 1e9, "B", "bytes of cache at which half of that rate is reached")
    split_power: float = param(0.2, 1e-3, 1.0, "", "how badly few key blocks fill the device (1: not at all)")
    overhead_s: float = param(1e-5, 1e-6, 5e-4, "s", "time of an empty call")
    wave_s: float = param(1e-6, 1e-9, 5e-5, "s", "fixed time per wave of (sequence, key head) blocks")
    sequence_s: float = param(1e-9, 1e-12, 1e-5, "s", "time per sequence (scheduling, merging)")
    power: float = param(3.0, 1.0, 12.0, "", "exponent of the smooth maximum of compute and memory")


def _numbers(s: AttentionShape) -> tuple[Array, ...]:
    values = (s.batch, s.q_len, s.kv_len, s.n_heads, s.n_kv_heads, s.qk_head_dim, s.v_head_dim)
    b, q, kv, h, kvh, qk, v = (np.asarray(x, dtype=np.float64) for x in values)
    window = np.asarray(_NO_WINDOW if s.window is None else s.window, dtype=np.float64)
    return b, q, kv, h, kvh, qk, v, np.where(window > 0, window, _NO_WINDOW)


def keys_per_sequence(q: Array, kv: Array, window: Array) -> Array:
    """Query-key pairs of one causal sequence: sum over its new tokens of min(keys before and at it, window).

    >>> float(keys_per_sequence(np.float64(4.0), np.float64(4.0), np.float64(1e9)))
    10.0
    """
    past = kv - q
    free = np.clip(window - past, 0.0, q)
    return np.asarray(free * past + free * (free + 1.0) / 2.0 + (q - free) * np.minimum(window, kv))


def _prefill_terms(shape: AttentionShape, p: PrefillParams, target: Target) -> Terms:
    b, q, kv, h, kvh, qk, v, window = _numbers(shape)
    waves = b * h * np.ceil(q / _ROWS) / target.n_compute_units
    mean_keys = keys_per_sequence(q, kv, window) / q
    flops = 2.0 * b * h * (q + p.query_extra) * (mean_keys + p.keys_half) * (qk + v)
    compute = flops * wave_factor(waves, p.wave_frac) / (target.peak_flop_per_s * p.compute_frac)
    kv_bytes = 2.0 if shape.is_mla else target.kv_bytes
    moved = b * q * h * (qk + v) * 2.0 + b * kv * kvh * (qk + v) * kv_bytes
    memory = (moved + p.bytes_half) / (target.memory_bytes_per_s * p.memory_frac)
    overhead = p.overhead_s + p.token_s * b * q + p.wave_s * waves
    return Terms(compute, memory, np.zeros(()), overhead)


def _prefill_features(shape: AttentionShape, p: PrefillParams, target: Target, t: Terms) -> Array:
    b, q, kv, h, kvh, qk, v, window = _numbers(shape)
    units, log = target.n_compute_units, np.log2
    waves, half_waves = b * h * np.ceil(q / _ROWS) / units, b * h * np.ceil(q / 64) / units
    mean_keys = keys_per_sequence(q, kv, window) / q
    return stack_features(
        log(b), log(q), log(kv), log(h), log(h / kvh), log(qk), log(mean_keys), log(t.compute_s / t.memory_s),
        log(t.compute_s / t.overhead_s), log(t.memory_s / t.overhead_s), log(waves),
        np.where(waves > 1.0, 3.0 * log(np.ceil(waves) / waves), 0.0), log(half_waves), window < kv, log(kvh * (qk + v)),
    )  # fmt: skip


def _decode_terms(shape: AttentionShape, p: DecodeParams, target: Target) -> Terms:
    b, q, kv, h, kvh, qk, v, window = _numbers(shape)
    keys, units = np.minimum(kv, window), target.n_compute_units
    rows = h / kvh * q + p.group_extra
    compute = 2.0 * b * kvh * rows * keys * (qk + v) / (target.peak_flop_per_s * p.compute_frac)
    row_width = qk if shape.is_mla else qk + v
    moved = b * keys * kvh * row_width * target.kv_bytes + b * q * h * (qk + v) * 2.0
    fill = np.minimum(1.0, b * kvh * np.ceil(keys / _ROWS) / units) ** p.split_power
    memory = (moved + p.bytes_half) / (target.memory_bytes_per_s * p.memory_frac * fill)
    overhead = p.overhead_s + p.wave_s * b * kvh / units + p.sequence_s * b
    return Terms(compute, memory, np.zeros(()), overhead)


def _decode_features(shape: AttentionShape, p: DecodeParams, target: Target, t: Terms) -> Array:
    b, q, kv, h, kvh, qk, v, window = _numbers(shape)
    keys, units, log = np.minimum(kv, window), target.n_compute_units, np.log2
    blocks, rows = b * kvh / units, b * kvh * np.ceil(keys / _ROWS) / units
    return stack_features(
        log(b), log(keys), log(kv), log(h), log(h / kvh * q), log(qk), log(t.compute_s / t.memory_s),
        log(t.compute_s / t.overhead_s), log(t.memory_s / t.overhead_s), log(rows), log(blocks),
        np.where(blocks > 1.0, 3.0 * log(np.ceil(blocks) / blocks), 0.0), window < kv, log(kvh * (qk + v)),
        alignment(h / kvh, 16), 2.0 * (h / kvh > _MAX_PACKED_HEADS),
    )  # fmt: skip


_COLUMNS = ("batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "qk_head_dim", "v_head_dim", "window", "is_mla")
_GROUPS = ("n_heads", "n_kv_heads", "qk_head_dim")

PREFILL = Form(
    kind="attention_prefill",
    params_type=PrefillParams,
    terms=_prefill_terms,
    features=_prefill_features,
    feature_names=(
        "log sequences", "log queries", "log keys", "log heads", "log heads per key head", "log head width", "log mean keys",
        "log compute/memory", "log compute/overhead", "log memory/overhead", "log waves", "lost wave", "log waves of 64",
        "window cuts", "log key row",
    ),
    shape_columns=_COLUMNS,
    group_columns=_GROUPS,
    ridge=1e-4,
)  # fmt: skip

DECODE = Form(
    kind="attention_decode",
    params_type=DecodeParams,
    terms=_decode_terms,
    features=_decode_features,
    feature_names=(
        "log sequences", "log keys read", "log keys", "log heads", "log query rows per key head", "log head width",
        "log compute/memory", "log compute/overhead", "log memory/overhead", "log key blocks", "log blocks", "lost wave",
        "window cuts", "log key row", "alignment of the group", "group above 32",
    ),
    shape_columns=_COLUMNS,
    group_columns=_GROUPS,
    ridge=1e-4,
)  # fmt: skip
