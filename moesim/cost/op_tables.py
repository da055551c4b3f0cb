"""Operator times measured layer by layer, looked up instead of modelled: dense layers by tokens, attention by (prefill chunk,
its context, decodes, their context), experts by (tokens, activated experts), head and sampler by sequences.

Between measured points the lookup is linear in every coordinate; beyond them it goes on with the last slope and says so.
Letters: T tokens, q prefill tokens of a pass, p context before them, n decodes, c their context, A activated experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

__all__ = ["AttentionTable", "Curve", "MoeTable", "OperatorTables", "add_curves"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Seconds at every whole number 0..N, from measured points; `measured_to` is the last measured one."""

    seconds: Floats
    measured_to: int

    @classmethod
    def of(cls, at: Sequence[float] | Floats, seconds: Sequence[float] | Floats, n: int) -> Curve:
        """The next measured point up, constant below the first, on with the mean slope of the upper half above the last.

        Kernels work in tiles, so a count between two measured ones costs what the upper one does.
        """
        x, y = np.asarray(at, dtype=float), np.asarray(seconds, dtype=float)
        order = np.argsort(x)
        x, y = x[order], y[order]
        n = max(n, int(x[-1]))
        whole = np.arange(n + 1, dtype=float)
        values = y[np.minimum(np.searchsorted(x, whole), len(x) - 1)]
        beyond = whole > x[-1]
        if beyond.any() and len(x) > 1:
            middle = int(np.searchsorted(x, x[-1] / 2))
            middle = min(middle, len(x) - 2)
            slope = max(0.0, (y[-1] - y[middle]) / (x[-1] - x[middle]))
            values[beyond] = y[-1] + slope * (whole[beyond] - x[-1])
        values[0] = 0.0
        return cls(values, int(x[-1]))


def add_curves(curves: Sequence[tuple[Curve, float]]) -> Curve:
    """Sum of curves times how often each is done; all must be equally long."""
    total = np.zeros_like(curves[0][0].seconds)
    for curve, times in curves:
        total += curve.seconds * times
    return Curve(total, min(curve.measured_to for curve, _ in curves))


@dataclass(frozen=True, slots=True, eq=False)
class AttentionTable:
    """Seconds of one layer's attention kernel on the grid (q, p, n, c).

    `mixed[q, p, n, c]` has q > 0 (n = 0 rows repeat the pure prefill along c); `decode[n, c]` is the pass without prefill.
    A batch in which contexts differ costs t(mean) + `skew` (t(max) - t(mean)).
    """

    q: Floats
    p: Floats
    n: Floats
    c: Floats
    mixed: Floats
    decode_n: Floats
    decode: Floats
    skew: float = 0.0

    @classmethod
    def of(cls, rows: Floats, skew: float = 0.0) -> AttentionTable:
        """From rows (q, p, n, c, seconds). Grids of several spacings are brought onto their union, filled linearly.

        Raises:
            InputError: no rows of pure decode or of prefill.
        """
        pure = rows[(rows[:, 0] == 0) & (rows[:, 2] > 0)]
        filled = rows[rows[:, 0] > 0]
        if not len(pure) or not len(filled):
            raise InputError("has no rows of decode alone or of prefill", field="attention.csv")
        c = np.unique(rows[rows[:, 2] > 0][:, 3])
        decode_n = np.unique(pure[:, 2])
        decode = np.stack([_row(pure[pure[:, 2] == n], 3, c) for n in decode_n])
        q, p, n_axis = np.unique(filled[:, 0]), np.unique(filled[:, 1]), np.unique(filled[:, 2])
        mixed = np.empty((len(q), len(p), len(n_axis), len(c)))
        for i, chunk in enumerate(q):
            of_chunk = filled[filled[:, 0] == chunk]
            for k, n in enumerate(n_axis):
                mixed[i, :, k, :] = _plane(of_chunk[of_chunk[:, 2] == n], p, c)
        _fill_between(mixed)
        return cls(q, p, n_axis, c, mixed, decode_n, decode, skew)

    def decode_row(self, n: float) -> Floats:
        """Seconds over the context axis `c` for n decodes and no prefill."""
        i, w = _place(self.decode_n, n)
        row: Floats = self.decode[i] * (1.0 - w) + self.decode[i + 1] * w
        return row

    def mixed_row(self, q: float, p: float, n: float) -> Floats:
        """Seconds over the context axis `c` for a prefill of q tokens after p, beside n decodes."""
        i, wi = _place(self.q, q)
        j, wj = _place(self.p, p)
        k, wk = _place(self.n, n)
        cell = self.mixed[i : i + 2, j : j + 2, k : k + 2, :].reshape(8, -1)
        low, high = (1.0 - wi) * (1.0 - wj), (1.0 - wi) * wj
        low_q, high_q = wi * (1.0 - wj), wi * wj
        rest = 1.0 - wk
        weights = (low * rest, low * wk, high * rest, high * wk, low_q * rest, low_q * wk, high_q * rest, high_q * wk)
        row: Floats = np.dot(weights, cell)
        return row


def at_contexts(axis: Floats, row: Floats, contexts: Floats) -> Floats:
    """A row over contexts read at `contexts`, which grow; above the axis the last slope goes on."""
    values = np.interp(contexts, axis, row)
    if contexts[-1] > axis[-1]:
        slope = (row[-1] - row[-2]) / (axis[-1] - axis[-2])
        values = values + np.maximum(contexts - axis[-1], 0.0) * slope
    return np.asarray(values)


@dataclass(frozen=True, slots=True, eq=False)
class MoeTable:
    """Seconds of one layer's router and routed experts for T tokens that activate A experts."""

    tokens: Floats
    activated: Floats
    seconds: Floats

    @classmethod
    def of(cls, rows: Floats) -> MoeTable:
        """From rows (T, A, seconds); cells that cannot occur (fewer tokens than experts need) are filled along T."""
        tokens, activated = np.unique(rows[:, 0]), np.unique(rows[:, 1])
        seconds = np.full((len(tokens), len(activated)), np.nan)
        seconds[np.searchsorted(tokens, rows[:, 0]), np.searchsorted(activated, rows[:, 1])] = rows[:, 2]
        for column in seconds.T:
            known = ~np.isnan(column)
            column[~known] = np.interp(tokens[~known], tokens[known], column[known])
        return cls(tokens, activated, seconds)

    def __call__(self, tokens: Floats | float, activated: Floats | float) -> Floats:
        """Bilinear; below the first activated count proportional to it, above the table with its last slope."""
        t, a = np.broadcast_arrays(np.asarray(tokens, dtype=float), np.asarray(activated, dtype=float))
        i, wi = _places(self.tokens, t)
        j, wj = _places(self.activated, np.maximum(a, self.activated[0]))
        s = self.seconds
        low = s[i, j] * (1.0 - wj) + s[i, j + 1] * wj
        high = s[i + 1, j] * (1.0 - wj) + s[i + 1, j + 1] * wj
        value = low * (1.0 - wi) + high * wi
        scale = np.where(a < self.activated[0], 0.5 + 0.5 * a / self.activated[0], 1.0)
        return np.asarray(value * scale)


@dataclass(frozen=True, slots=True, eq=False)
class OperatorTables:
    """Everything measured of one model on one device and tensor split, in seconds."""

    source: str
    dense: Mapping[str, tuple[Floats, Floats]]
    per_sequence: Mapping[str, tuple[Floats, Floats]]
    attention: AttentionTable
    moe: MoeTable | None = None

    def dense_curve(self, layer: str, n: int) -> Curve:
        """Seconds of one dense layer by tokens."""
        return Curve.of(*self.dense[layer], n)

    def sequence_curve(self, layer: str, n: int) -> Curve:
        """Seconds of the head or the sampler by sequences."""
        return Curve.of(*self.per_sequence[layer], n)


def _place(axis: Floats, x: float) -> tuple[int, float]:
    """Cell and weight of x on an axis; outside, the first cell's start or the last slope."""
    i = int(axis.searchsorted(x, side="right")) - 1
    i = min(max(i, 0), len(axis) - 2)
    return i, max(0.0, (x - axis[i]) / (axis[i + 1] - axis[i]))


def _places(axis: Floats, x: Floats) -> tuple[NDArray[np.intp], Floats]:
    i = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    return i, np.maximum(0.0, (x - axis[i]) / (axis[i + 1] - axis[i]))


def _row(rows: Floats, column: int, axis: Floats) -> Floats:
    order = np.argsort(rows[:, column])
    return np.asarray(np.interp(axis, rows[order, column], rows[order, 4]))


def _plane(rows: Floats, p: Floats, c: Floats) -> Floats:
    """[p, c] from the points of one (q, n); NaN where the points' own range of c or p does not reach."""
    if not rows[:, 3].any():
        return np.repeat(_row(rows, 1, p)[:, None], len(c), axis=1)
    known = {}
    for value in np.unique(rows[:, 1]):
        line = rows[rows[:, 1] == value]
        line = line[np.argsort(line[:, 3])]
        known[value] = np.interp(c, line[:, 3], line[:, 4], left=np.nan, right=np.nan)
    lines, at = np.stack(list(known.values())), np.asarray(list(known))
    plane = np.empty((len(p), len(c)))
    for j in range(len(c)):
        good = ~np.isnan(lines[:, j])
        plane[:, j] = np.interp(p, at[good], lines[good, j], left=np.nan, right=np.nan) if good.any() else np.nan
    return plane


def _fill_between(mixed: Floats) -> None:
    """Cells that one spacing of the grid leaves out, from the chunks around them."""
    index = np.arange(mixed.shape[0], dtype=float)
    flat = mixed.reshape(mixed.shape[0], -1)
    for column in flat.T:
        known = ~np.isnan(column)
        if known.all():
            continue
        if not known.any():
            raise InputError("has a context that no prefill chunk was measured at", field="attention.csv")
        column[~known] = np.interp(index[~known], index[known], column[known])
