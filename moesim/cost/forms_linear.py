"""Physical forms of linear attention's state kernel: gated delta rule, Kimi delta attention, Mamba-2's scan.

Prefill works through chunks of tokens, and each chunk waits for the state of the one before; decode reads the state of every
sequence and writes it back. Letters: b sequences, q new tokens, h value heads, k key heads, d_k and d_v head widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cost.forms import Array, Form, Parameters, Target, Terms, param, stack_features
from moesim.ops import AttentionShape

__all__ = ["LINEAR_DECODE", "LINEAR_PREFILL", "LinearDecodeParams", "LinearPrefillParams"]

_CHUNK = 64
_STATE_BYTES = 4.0


@dataclass(frozen=True, slots=True)
class LinearPrefillParams(Parameters):
    """Parameters of `LINEAR_PREFILL`."""

    compute_frac: float = param(0.2, 0.003, 1.1, "", "part of peak flop/s within chunks")
    memory_frac: float = param(0.3, 0.01, 1.3, "", "part of peak memory bytes/s")
    passes: float = param(3.0, 0.5, 30.0, "", "times that queries, keys, values and outputs go through memory")
    overhead_s: float = param(2e-5, 1e-6, 5e-4, "s", "time of an empty call, all of its kernels")
    chunk_s: float = param(1e-6, 1e-9, 1e-4, "s", "time from one chunk's state to the next's")
    block_s: float = param(1e-6, 1e-10, 1e-4, "s", "time of one head's chunk on a compute unit beyond its arithmetic")
    sequence_s: float = param(1e-8, 1e-12, 1e-4, "s", "time per sequence")
    power: float = param(3.0, 1.0, 12.0, "", "exponent of the smooth maximum of compute and memory")


@dataclass(frozen=True, slots=True)
class LinearDecodeParams(Parameters):
    """Parameters of `LINEAR_DECODE`."""

    compute_frac: float = param(0.02, 0.0003, 1.1, "", "part of peak flop/s")
    memory_frac: float = param(0.7, 0.03, 1.3, "", "part of peak memory bytes/s while states are read and written")
    bytes_half: float = param(1e6, 1e3, 1e9, "B", "bytes of state at which half of that rate is reached")
    overhead_s: float = param(4e-6, 5e-7, 5e-4, "s", "time of an empty call")
    block_s: float = param(1e-7, 1e-10, 1e-4, "s", "fixed time per wave of (sequence, head) blocks")
    power: float = param(3.0, 1.0, 12.0, "", "exponent of the smooth maximum of compute and memory")


def _numbers(s: AttentionShape) -> tuple[Array, ...]:
    values = (s.batch, s.q_len, s.n_heads, s.n_kv_heads, s.qk_head_dim, s.v_head_dim)
    b, q, h, kh, dk, dv = (np.asarray(x, dtype=np.float64) for x in values)
    return b, q, h, kh, dk, dv


def _prefill_terms(shape: AttentionShape, p: LinearPrefillParams, target: Target) -> Terms:
    b, q, h, kh, dk, dv = _numbers(shape)
    chunks = np.ceil(q / _CHUNK)
    per_chunk = 2.0 * _CHUNK * (_CHUNK * (2.0 * dk + 2.0 * dv) + 3.0 * dk * dv)
    compute = b * h * chunks * per_chunk / (target.peak_flop_per_s * p.compute_frac)
    moved = b * q * (2.0 * kh * dk + 2.0 * h * dv) * 2.0 * p.passes + 2.0 * b * h * dk * dv * _STATE_BYTES
    memory = moved / (target.memory_bytes_per_s * p.memory_frac)
    waves = np.maximum(1.0, b * h / target.n_compute_units)
    serial = chunks * p.chunk_s + waves * chunks * p.block_s
    return Terms(compute, memory, serial, p.overhead_s + p.sequence_s * b)


def _prefill_features(shape: AttentionShape, p: LinearPrefillParams, target: Target, t: Terms) -> Array:
    b, q, h, kh, dk, dv = _numbers(shape)
    log = np.log2
    return stack_features(
        log(b), log(q), log(h), log(h / kh), log(dk * dv), log(b * h * np.ceil(q / _CHUNK) / target.n_compute_units),
        log(b * h / target.n_compute_units), log(t.compute_s / t.overhead_s), log(t.memory_s / t.overhead_s),
    )  # fmt: skip


def _decode_terms(shape: AttentionShape, p: LinearDecodeParams, target: Target) -> Terms:
    b, q, h, kh, dk, dv = _numbers(shape)
    state = b * h * dk * dv
    compute = 8.0 * state * q / (target.peak_flop_per_s * p.compute_frac)
    moved = 2.0 * state * _STATE_BYTES + b * q * (2.0 * kh * dk + 2.0 * h * dv) * 2.0
    memory = (moved + p.bytes_half) / (target.memory_bytes_per_s * p.memory_frac)
    return Terms(compute, memory, np.zeros(()), p.overhead_s + p.block_s * b * h / target.n_compute_units)


def _decode_features(shape: AttentionShape, p: LinearDecodeParams, target: Target, t: Terms) -> Array:
    b, q, h, kh, dk, dv = _numbers(shape)
    log = np.log2
    blocks = b * h / target.n_compute_units
    return stack_features(
        log(b), log(q), log(h), log(h / kh), log(dk * dv), log(blocks),
        np.where(blocks > 1.0, 3.0 * log(np.ceil(blocks) / blocks), 0.0), log(t.memory_s / t.overhead_s),
    )  # fmt: skip


_COLUMNS = ("batch", "q_len", "n_heads", "n_kv_heads", "qk_head_dim", "v_head_dim")
_GROUPS = ("n_heads", "n_kv_heads", "qk_head_dim", "v_head_dim")

LINEAR_PREFILL = Form(
    kind="linear_attention_prefill",
    params_type=LinearPrefillParams,
    terms=_prefill_terms,
    features=_prefill_features,
    feature_names=(
        "log sequences", "log queries", "log heads", "log heads per key head", "log state of a head", "log waves of chunks",
        "log waves", "log compute/overhead", "log memory/overhead",
    ),
    shape_columns=_COLUMNS,
    group_columns=_GROUPS,
)  # fmt: skip

LINEAR_DECODE = Form(
    kind="linear_attention_decode",
    params_type=LinearDecodeParams,
    terms=_decode_terms,
    features=_decode_features,
    feature_names=(
        "log sequences", "log queries", "log heads", "log heads per key head", "log state of a head", "log blocks", "lost wave",
        "log memory/overhead",
    ),
    shape_columns=_COLUMNS,
    group_columns=_GROUPS,
)  # fmt: skip
