"""Alias tables: many categorical distributions of one width, each sampled with one random word and two look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AliasTables", "build_alias"]

Floats = NDArray[np.float64]
Words = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class AliasTables:
    """Walker's alias method for `n_rows` distributions, padded to a power of two columns.

    A word's top `bits` bits pick a column, its other bits decide between the column's own value and its alias. The map
    from word to value is fixed, so equal words give equal values: that is what couples tokens and layers.
    """

    bits: int
    threshold: Words
    values: NDArray[np.int32]

    def split(self, n_parts: int) -> list[AliasTables]:
        """The rows in `n_parts` equal parts, as tables of their own."""
        return [
            AliasTables(self.bits, threshold, values)
            for threshold, values in zip(np.split(self.threshold, n_parts), np.split(self.values, n_parts), strict=True)
        ]

    def draw(self, words: Words, rows: NDArray[np.intp] | None = None) -> NDArray[np.int32]:
        """The values that the words stand for, in distribution `rows` (row 0 where None)."""
        shift = np.uint32(32 - self.bits)
        column = (words >> shift).astype(np.intp)
        if rows is not None:
            column += rows << self.bits
        own = (words & np.uint32((1 << (32 - self.bits)) - 1)) < self.threshold.take(column)
        column <<= 1
        column += own
        return self.values.take(column)


def build_alias(weights: Floats, values: NDArray[Any] | None = None) -> AliasTables:
    """Alias tables for rows of weights.

    Args:
        weights: [n_rows, width], not negative; each row has a positive sum.
        values: [n_rows, width], what each column stands for; its own index by default.

    Source: Walker 1977, Vose 1991; all rows are filled side by side.
    """
    n_rows, width = weights.shape
    bits = max(1, int(np.ceil(np.log2(max(width, 2)))))
    n_columns = 1 << bits
    scaled = np.zeros((n_rows, n_columns))
    scaled[:, :width] = weights / weights.sum(axis=1, keepdims=True) * n_columns
    names = np.zeros((n_rows, n_columns), np.int32)
    names[:, :width] = np.arange(width) if values is None else values
    keep, alias = _pair_off(scaled)
    unit = float(1 << (32 - bits))
    threshold = np.minimum(np.rint(keep * unit), unit - 1).astype(np.uint32)
    full = keep >= 1.0
    alias[full] = np.broadcast_to(np.arange(n_columns), alias.shape)[full]
    table = np.empty((n_rows, n_columns, 2), np.int32)
    table[..., 0] = np.take_along_axis(names, alias, axis=1)
    table[..., 1] = names
    return AliasTables(bits, threshold.ravel(), table.ravel())


def _pair_off(scaled: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Vose's pairing of under-full with over-full columns, one step for all rows at a time.

    Columns are taken in ascending order of weight: a small one is topped up from the current large one; a large one that
    falls below 1 becomes the next small one. Each step settles one column per row.
    """
    n_rows, n = scaled.shape
    order = np.argsort(scaled, axis=1, kind="stable")
    mass = np.take_along_axis(scaled, order, axis=1)
    keep, alias = np.ones_like(mass), np.tile(np.arange(n), (n_rows, 1))
    rows = np.arange(n_rows)
    large = np.full(n_rows, n - 1)
    small = np.zeros(n_rows, np.intp)
    held = np.full(n_rows, -1)  # a large column that has become small and goes next
    for _ in range(n):
        from_held = held >= 0
        current = np.where(from_held, held, small)
        busy = (current < large) | (from_held & (large >= small) & (large >= 0))
        busy &= (mass[rows, current] < 1.0) & (large > small - 1) & (current != large)
        if not busy.any():
            break
        r, c, g = rows[busy], current[busy], large[busy]
        keep[r, c] = mass[r, c]
        alias[r, c] = g
        mass[r, g] -= 1.0 - mass[r, c]
        small[busy & ~from_held] += 1
        held[busy] = -1
        sunk = mass[r, g] < 1.0
        held[r[sunk]] = g[sunk]
        large[r[sunk]] -= 1
    placed_keep, placed_alias = np.empty_like(keep), np.empty_like(alias)
    np.put_along_axis(placed_keep, order, keep, axis=1)
    np.put_along_axis(placed_alias, order, np.take_along_axis(order, alias, axis=1), axis=1)
    return placed_keep, placed_alias
