"""From axes to cases as columns: one index per axis and case, values once per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.specs.sweep import AxisSpec, LogRange, Range, SampleAxis, SampleSpec

__all__ = ["MOST_CASES", "Column", "expand"]

MOST_CASES = 5_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One path: its distinct values in order, and which of them each case has."""

    path: str
    values: tuple[Any, ...]
    codes: NDArray[np.int32]

    def of(self, case: int) -> Any:
        """The value of one case."""
        return self.values[self.codes[case]]

    def numbers(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Values of some cases as floats."""
        return np.asarray(self.values, dtype=float)[self.codes[rows]]


def expand(axes: Sequence[AxisSpec]) -> tuple[Column, ...]:
    """All cases: axes crossed, the first slowest.

    Raises:
        InputError: a path twice, zipped axes of unequal lengths, too many cases.
    """
    blocks = [_block(axis, f"axes.{i}") for i, axis in enumerate(axes)]
    paths = [path for block in blocks for path, _ in block]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(
                "two axes have the same path", field="axes", value=path, hint="join their values in one axis"
            )
    sizes = [len(block[0][1]) for block in blocks]
    n_cases = math.prod(sizes)
    if n_cases > MOST_CASES:
        raise InputError(
            "gives too many cases", field="axes", value=n_cases, allowed=f"up to {MOST_CASES}",
            hint="use fewer values or a sample",
        )  # fmt: skip
    columns = []
    outer, inner = 1, n_cases
    for block, size in zip(blocks, sizes, strict=True):
        inner //= size
        for path, values in block:
            keys = [_key(v) for v in values]
            place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
            distinct = tuple({key: _frozen(v) for key, v in zip(keys, values, strict=True)}.values())
            own = np.asarray([place[key] for key in keys], dtype=np.int32)
            columns.append(Column(path, distinct, np.tile(np.repeat(own, inner), outer)))
        outer *= size
    return tuple(columns)


def _block(axis: AxisSpec, where: str) -> list[tuple[str, list[Any]]]:
    """The paths that move together along one axis."""
    if axis.sample is not None:
        return _sampled(axis.sample, where)
    if axis.zip is not None:
        block = [(str(inner.path), _values(inner)) for inner in axis.zip]
        lengths = [len(values) for _, values in block]
        if len(set(lengths)) > 1:
            raise InputError("zipped axes have unequal lengths", field=f"{where}.zip", value=lengths)
        return block
    return [(str(axis.path), _values(axis))]


def _values(axis: AxisSpec) -> list[Any]:
    if axis.range is not None:
        return _range(axis.range)
    if axis.log_range is not None:
        return _log_range(axis.log_range)
    return list(axis.values or ())


def _range(r: Range) -> list[Any]:
    n = math.floor((r.stop - r.start) / r.step + 1e-9) + 1
    whole = all(float(x).is_integer() for x in (r.start, r.step))
    return [int(r.start + i * r.step) if whole else float(r.start + i * r.step) for i in range(n)]


def _log_range(r: LogRange) -> list[Any]:
    values = [float(v) for v in np.geomspace(r.start, r.stop, r.n)]
    return list(dict.fromkeys(round(v) for v in values)) if r.whole else values


def _sampled(spec: SampleSpec, where: str) -> list[tuple[str, list[Any]]]:
    """A scrambled Sobol sequence, drawn to the next power of two so that its balance holds, and cut."""
    from scipy.stats import qmc

    sampler = qmc.Sobol(len(spec.over), scramble=True, rng=np.random.default_rng(spec.seed))
    points = sampler.random_base2(max(0, math.ceil(math.log2(spec.n))))[: spec.n]
    return [(axis.path, [_placed(axis, float(u)) for u in points[:, i]]) for i, axis in enumerate(spec.over)]


def _placed(axis: SampleAxis, u: float) -> Any:
    if axis.values is not None:
        return axis.values[min(len(axis.values) - 1, int(u * len(axis.values)))]
    low, high = float(axis.low or 0.0), float(axis.high or 0.0)
    if axis.whole:
        low, high = low - 0.5 if not axis.log else low, high + 0.5 if not axis.log else high
    value = low * (high / low) ** u if axis.log else low + (high - low) * u
    return min(max(round(value), math.ceil(axis.low or 0)), math.floor(axis.high or 0)) if axis.whole else value


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _key(value: Any) -> tuple[str, Any]:
    """1 and 1.0 and True are different values."""
    return type(value).__name__, repr(sorted(value.items())) if isinstance(value, dict) else repr(value)
