"""Many shapes through the fitted families of one kind at once: the price of an operator that several kernels could run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.cost.forms import Array, Prediction
from moesim.cost.result import OpCost
from moesim.ops import CollectiveShape, MoeShape, Shape
from moesim.specs.base import Origin

__all__ = ["Predicts", "identity", "is_scalar", "price_array", "price_quickest", "price_scalars"]

_SMALLEST_TO_SHARE = 256
_CHUNK = 8192


class Predicts(Protocol):
    """A fitted family, as pricing sees it."""

    @property
    def n_groups(self) -> int:
        """Shapes it was fitted on."""
        ...

    @property
    def interval(self) -> object | None:
        """Its interval, if one is known."""
        ...

    def predict(self, shape: Shape) -> Prediction:
        """Times of shapes."""
        ...


@dataclass(frozen=True, slots=True)
class _Prices:
    """Per point: time, its parts, half-width of the interval over the time, and whether it is outside the domain."""

    time_s: Array
    compute_s: Array
    memory_s: Array
    latency_s: Array
    half_width: Array
    has_interval: NDArray[np.bool_]
    is_outside: NDArray[np.bool_]


def is_scalar(shape: Shape) -> bool:
    """Whether all sizes are plain numbers."""
    try:
        hash(shape)
    except TypeError:
        return False
    return True


def identity(shape: Shape) -> tuple[Hashable, ...]:
    """Sizes by value, so that equal shapes with arrays in them are known as equal."""
    values = (getattr(shape, f.name) for f in fields(shape))
    return tuple((v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for v in values)


def price_scalars(families: Sequence[Predicts], shapes: Sequence[Shape]) -> list[OpCost]:
    """Costs of shapes of plain numbers, evaluated as one array."""
    prices = _price(families, _stacked(shapes))
    is_link = isinstance(shapes[0], CollectiveShape)
    columns = (getattr(prices, f.name).tolist() for f in fields(prices))
    costs = []
    for time, compute, memory, latency, half, is_known, is_outside in zip(*columns, strict=True):
        known = half if is_known else None
        if is_link:
            costs.append(OpCost(time, 0.0, 0.0, memory, latency, Origin.FITTED, known, is_outside))
        else:
            costs.append(OpCost(time, compute, memory, 0.0, latency, Origin.FITTED, known, is_outside))
    return costs


def price_array(families: Sequence[Predicts], shape: Shape) -> OpCost:
    """Cost of a shape with arrays in it; equal points are evaluated once."""
    small, inverse, size = _distinct(shape)
    prices = _price_in_chunks(families, small)

    def full(values: Array) -> Array:
        flat = values if inverse is None else values[inverse]
        return np.asarray(flat.reshape(size))

    is_link, memory, zero = isinstance(shape, CollectiveShape), full(prices.memory_s), 0.0
    return OpCost(
        time_s=full(prices.time_s),
        compute_s=zero if is_link else full(prices.compute_s),
        memory_s=zero if is_link else memory,
        link_s=memory if is_link else zero,
        latency_s=full(prices.latency_s),
        origin=Origin.FITTED,
        error_frac=full(prices.half_width) if prices.has_interval.all() else None,
        is_extrapolated=bool(prices.is_outside.any()),
        outside=full(prices.is_outside.astype(float)) if prices.is_outside.any() else 0.0,
    )


def price_quickest(families: Sequence[Predicts], shape: Shape, rest: OpCost) -> OpCost:
    """Cost of a shape with arrays in it, each point by the quickest family measured near it; elsewhere that of `rest`."""
    small, inverse, size = _distinct(shape)
    each = [_price_in_chunks((family,), small) for family in families]
    seconds = np.stack([np.where(p.is_outside, np.inf, p.time_s) for p in each])
    best, points = np.argmin(seconds, axis=0), np.arange(seconds.shape[1])

    def full(values: Array) -> Array:
        return np.asarray((values if inverse is None else values[inverse]).reshape(size))

    def picked(name: str) -> Array:
        return np.asarray(np.stack([getattr(p, name) for p in each])[best, points])

    nowhere = full(np.isinf(seconds.min(axis=0)))

    def merged(name: str, own: str) -> Array:
        values = full(picked(own))
        return np.where(nowhere, getattr(rest, name), values) if nowhere.any() else values

    known = bool(picked("has_interval").all()) and (rest.error_frac is not None or not nowhere.any())
    return OpCost(
        merged("time_s", "time_s"), merged("compute_s", "compute_s"), merged("memory_s", "memory_s"), 0.0,
        merged("latency_s", "latency_s"), Origin.FITTED, merged("error_frac", "half_width") if known else None,
        bool(nowhere.any()), nowhere.astype(float) if nowhere.any() else 0.0,
    )  # fmt: skip


def _price_in_chunks(families: Sequence[Predicts], shape: Shape) -> _Prices:
    """`_price` of long arrays, so many points at a time that intermediate results stay in a cache."""
    values = {f.name: getattr(shape, f.name) for f in fields(shape)}
    arrays = {name: v for name, v in values.items() if isinstance(v, np.ndarray)}
    n = max(len(v) for v in arrays.values())
    parts = [
        _price(families, _replaced(shape, {name: v[start : start + _CHUNK] for name, v in arrays.items()}))
        for start in range(0, n, _CHUNK)
    ]
    if len(parts) == 1:
        return parts[0]
    return _Prices(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_Prices)))


def _price(families: Sequence[Predicts], shape: Shape) -> _Prices:
    """Prices of a flat shape, each point by the family whose measured points lie nearest to it."""
    each = [_prices_of(f, f.predict(shape)) for f in families]
    if len(each) == 1:
        return each[0][0]
    score = [d * (1.0 + 1.0 / max(1, f.n_groups)) for f, (_, d) in zip(families, each, strict=True)]
    best = np.argmin(np.stack(score), axis=0)
    points = np.arange(len(best))
    names = [f.name for f in fields(_Prices)]
    return _Prices(*(np.stack([getattr(p, name) for p, _ in each])[best, points] for name in names))


def _prices_of(family: Predicts, p: Prediction) -> tuple[_Prices, Array]:
    t, size = p.terms, p.time_s.shape
    known = np.full(size, family.interval is not None)
    half = (p.upper_s - p.lower_s) / (2.0 * p.time_s)
    compute, memory, latency = (_at_size(x, size) for x in (t.compute_s, t.memory_s + t.streaming_s, t.overhead_s))
    return _Prices(p.time_s, compute, memory, latency, half, known, p.distance > 1.0), p.distance


def _at_size(values: Array, size: tuple[int, ...]) -> Array:
    return values if values.shape == size else np.broadcast_to(values, size)


def _stacked(shapes: Sequence[Shape]) -> Shape:
    """Shapes of plain numbers as one of flat arrays; `window` 0 stands for none, and what does not vary stays a number."""
    first = shapes[0]
    values: dict[str, Any] = {}
    for f in fields(first):
        column = [getattr(s, f.name) or 0 for s in shapes]
        values[f.name] = column[0] if f.name in ("is_mla", "stride") else np.asarray(column, dtype=np.float64)
    if isinstance(first, MoeShape):
        values["gated"] = values["gated"] > 0.0
    return type(first)(**values)


def _distinct(shape: Shape) -> tuple[Shape, NDArray[np.intp] | None, tuple[int, ...]]:
    """The shape's distinct points as a flat shape, where each point is among them, and the size of the arrays."""
    names = [f.name for f in fields(shape) if isinstance(getattr(shape, f.name), np.ndarray)]
    size = np.broadcast_shapes(*(getattr(shape, n).shape for n in names))
    if isinstance(shape, MoeShape):  # no form reads it
        shape = replace(shape, n_padded=0.0)
        names = [n for n in names if n != "n_padded"]
    flat: dict[str, Any] = {n: np.broadcast_to(getattr(shape, n), size).ravel() for n in names}
    n_points = int(np.prod(size))
    code: NDArray[np.intp] = np.zeros(n_points, dtype=np.intp)
    if n_points >= _SMALLEST_TO_SHARE:
        n_codes = 1
        for values in flat.values():
            if values.min() == values.max():
                continue
            own, inverse = np.unique(values, return_inverse=True)
            code = inverse if n_codes == 1 else np.unique(code * len(own) + inverse, return_inverse=True)[1]
            n_codes = int(code.max()) + 1
            if 2 * n_codes > n_points:
                break
        else:
            at = np.full(int(code.max()) + 1, -1, dtype=np.intp)
            at[code] = np.arange(n_points)
            flat = {n: v[at] for n, v in flat.items()}
            return _replaced(shape, flat), code, size
    return _replaced(shape, flat), None, size


def _replaced(shape: Shape, values: dict[str, Any]) -> Shape:
    return replace(shape, **values)
