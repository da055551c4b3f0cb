"""Passes of one instance taken apart: by kind of operator what grows with size and what every call costs.

Letters: T new tokens of a rank, n decodes of a rank, c their mean context, q prompt tokens in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from moesim.cost.stack import n_launches
from moesim.lowering import Pass
from moesim.ops import COLLECTIVES, EXCHANGES, OpKind, Phase
from moesim.sim.serving.draws import token_axis
from moesim.specs.dtypes import Dtype
from moesim.study.instance import Instance

__all__ = ["N_PARTS", "Part", "StepTable", "step_table"]

Floats = NDArray[np.float64]
WIDE = (Dtype.BF16, Dtype.FP16, Dtype.FP32)
ATTENTION = (OpKind.ATTENTION_PREFILL, OpKind.ATTENTION_DECODE)


class Part(IntEnum):
    """A kind of work in a pass; `*_CALL` is the part of its time that does not depend on size.

    QUANTISE counts products that need their input quantised first (one second each).
    """

    GEMM = 0
    GEMM_CALL = 1
    EXPERTS = 2
    EXPERTS_CALL = 3
    ATTENTION = 4
    ATTENTION_CALL = 5
    ELEMENTWISE = 6
    ELEMENTWISE_CALL = 7
    COMM = 8
    COMM_CALL = 9
    QUANTISE = 10


N_PARTS = len(Part)


@dataclass(frozen=True, slots=True)
class StepTable:
    """Seconds by `Part` of the passes that one row's requests need.

    `decode` is [n, 2, parts] at counts `n_axis` and the two contexts of `c_axis`; `rest` is [T, parts] of passes that carry
    prompts, without attention, at `t_axis`; `per_pair` is [pieces, parts] of prompt attention over query-key pairs, by how many
    prompts share a pass, and `prefill_call` what such a pass's attention costs whatever its size. `n_kernels` are launched in it.
    """

    n_axis: Floats
    c_axis: Floats
    decode: Floats
    decode_attention: Floats
    t_axis: Floats
    rest: Floats
    piece_axis: Floats
    per_pair: Floats
    prefill_call: Floats
    n_kernels: float

    def decode_parts(self, n: Floats, c: Floats) -> Floats:
        """Parts of decode passes, [len(n), parts]."""
        return _at(self.n_axis, self.decode, n, (c - self.c_axis[0]) / (self.c_axis[1] - self.c_axis[0]))

    def mixed_parts(self, n: Floats, c: Floats, q: Floats, pairs: Floats, pieces: Floats) -> Floats:
        """Parts of passes of q prompt tokens in so many pieces with so many query-key pairs, and n decodes at context c."""
        rest = _between(self.t_axis, self.rest, q + n)
        weight = (c - self.c_axis[0]) / (self.c_axis[1] - self.c_axis[0])
        attention = _at(self.n_axis, self.decode_attention, np.maximum(n, 1.0), weight) * (n > 0)[:, None]
        prompt = _between(self.piece_axis, self.per_pair, pieces) * pairs[:, None] + self.prefill_call
        return np.asarray(rest + attention + prompt)


def step_table(
    instance: Instance,
    isl: float,
    osl: float,
    most_decodes: int,
    most_tokens: int,
    contained: frozenset[str] = frozenset(),
) -> StepTable:
    """Look every pass up that requests of mean lengths `isl` and `osl` need.

    Args:
        instance: model, split and costs.
        isl: mean prompt length.
        osl: mean output length.
        most_decodes: sequences of a rank.
        most_tokens: tokens of a rank's pass.
        contained: what contains small kernels that are then not launched (`Op.inside`).
    """
    dp = float(instance.parallel.dp_size)
    n_axis = _axis(1, max(2, most_decodes))
    t_axis = token_axis(max(8, min(int(isl), most_tokens) // 8), most_tokens)
    c_axis = np.asarray([0.8 * isl, isl + 1.1 * osl + 1.0])
    cells = [
        _parts(instance, Pass(Phase.DECODE, _grid(n_axis * dp), 1.0, float(c)), len(n_axis), contained) for c in c_axis
    ]
    decode = np.stack([a + b for a, b in cells], axis=1)
    attention = np.stack([b for _, b in cells], axis=1)
    rest = np.concatenate([_parts(instance, Pass(Phase.PREFILL, dp, float(t), 0.0), 1, contained)[0] for t in t_axis])
    pieces = np.asarray(
        sorted({1.0, 2.0, 4.0, 8.0, 16.0} & {float(k) for k in range(1, 1 + int(max(1, most_tokens // isl)))})
    )
    q = float(min(isl, most_tokens))
    prompts = np.concatenate([_parts(instance, Pass(Phase.PREFILL, dp * k, q, 0.0), 1, contained)[1] for k in pieces])
    call = np.zeros(N_PARTS)
    call[Part.ATTENTION_CALL] = prompts[0, Part.ATTENTION_CALL]
    per_pair = np.zeros_like(prompts)
    per_pair[:, Part.ATTENTION] = prompts[:, Part.ATTENTION] / (pieces * 0.5 * q * (q + 1.0))
    return StepTable(
        n_axis, c_axis, decode, attention, t_axis, rest, pieces, per_pair, call, _n_kernels(instance, dp, q)
    )  # fmt: skip


def _n_kernels(instance: Instance, dp: float, q: float) -> float:
    """Kernels of a pass with prompts, counted over its layers."""
    program = instance.program(Pass(Phase.PREFILL, dp, q, 0.0))
    return float(sum(segment.n_repeat * n_launches(op) for segment, op in program.ops()))


def _parts(instance: Instance, step: Pass, n_points: int, contained: frozenset[str]) -> tuple[Floats, Floats]:
    """Seconds by part of passes, [points, parts]: everything but attention kernels, and attention kernels."""
    totals = np.zeros((2, n_points, N_PARTS))
    program = instance.program(step)
    pairs = list(program.ops())
    for (segment, op), cost in zip(pairs, instance.cost.costs([op for _, op in pairs]), strict=True):
        part = _part_of(op.kind)
        seconds = _per_point(cost.time_s, n_points)
        call = np.minimum(_per_point(cost.latency_s, n_points), seconds)
        which = 1 if op.kind in ATTENTION else 0
        totals[which, :, part] += (seconds - call) * segment.n_repeat
        if op.inside not in contained:
            totals[which, :, part + 1] += call * segment.n_repeat
        if part == Part.GEMM and op.dtype not in WIDE:
            totals[0, :, Part.QUANTISE] += segment.n_repeat
    return totals[0], totals[1]


def _part_of(kind: OpKind) -> int:
    if kind is OpKind.GEMM:
        return Part.GEMM
    if kind is OpKind.GROUPED_GEMM:
        return Part.EXPERTS
    if kind in ATTENTION:
        return Part.ATTENTION
    return Part.COMM if kind in COLLECTIVES or kind in EXCHANGES else Part.ELEMENTWISE


def _per_point(seconds: object, n_points: int) -> Floats:
    """Slowest rank, mean over layers, at each point."""
    array = np.asarray(seconds, dtype=float)
    if array.ndim >= 3:
        array = array.max(axis=-1).mean(axis=-1)
    elif array.ndim == 2:
        array = np.asarray(array.max(axis=-1).mean(axis=-1))
    return np.broadcast_to(array, (n_points,))


def _grid(values: Floats) -> Floats:
    return np.asarray(values, dtype=float)[:, None, None]


def _axis(low: int, high: int) -> Floats:
    values, x = {float(low), float(high)}, float(low)
    while x < high:
        values |= {x, min(float(high), np.floor(1.5 * x))}
        x *= 2.0
    return np.asarray(sorted(values))


def _between(axis: Floats, table: Floats, x: Floats) -> Floats:
    """Rows of a table, linear between the points of its axis and beyond them from zero or in proportion."""
    i = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(0, len(axis) - 2))
    if len(axis) == 1:
        return np.broadcast_to(table[0], (len(x), table.shape[1]))
    w = np.clip((x - axis[i]) / (axis[i + 1] - axis[i]), 0.0, 2.0)[:, None]
    return np.asarray(table[i] * (1.0 - w) + table[i + 1] * w)


def _at(axis: Floats, table: Floats, x: Floats, weight: Floats) -> Floats:
    low, high = _between(axis, table[:, 0], x), _between(axis, table[:, 1], x)
    return np.asarray(low + (high - low) * np.clip(weight, -0.5, 2.0)[:, None])
