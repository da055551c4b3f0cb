"""Fitted forms: what a calibration is made of. Pure values and numpy; fitting lives in `moesim.calibrate`.

Time of an operator: t = physical(shape; parameters) * exp(fade * correction(features)). The physical form is

    t = overhead + streaming + (compute^p + memory^p)^(1/p)

with named parameters that are fractions of the device's peaks. The correction is a small kernel regression on the logarithm of
measured over physical time; far from its points it fades to nothing, and what is left is the physical form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.ops import Shape

__all__ = [
    "Array",
    "Correction",
    "Form",
    "Interval",
    "ParamInfo",
    "Parameters",
    "Prediction",
    "Target",
    "Terms",
    "evaluate",
    "param",
    "physical_time",
    "stack_features",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """What a form runs on: the peaks of one device for one arithmetic, and stored bytes of an element of each operand."""

    peak_flop_per_s: float
    memory_bytes_per_s: float
    n_compute_units: int
    link_bytes_per_s: float = 0.0
    weight_bytes: float = 2.0
    activation_bytes: float = 2.0
    kv_bytes: float = 2.0


@dataclass(frozen=True, slots=True)
class Terms:
    """Parts of the physical time: two bounds that overlap, streaming that does not, and what does not depend on size."""

    compute_s: Array
    memory_s: Array
    streaming_s: Array
    overhead_s: Array


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """Start and bounds of a parameter in a fit, its unit ('' for a pure number) and what it means."""

    start: float
    low: float
    high: float
    unit: str
    meaning: str


def param(start: float, low: float, high: float, unit: str, meaning: str) -> Any:
    """A dataclass field that carries its `ParamInfo`."""
    return field(metadata={"info": ParamInfo(start, low, high, unit, meaning)})


@dataclass(frozen=True, slots=True)
class Parameters:
    """Base of the named parameters of a form; all are positive, and `power` is the exponent p of the smooth maximum."""

    @classmethod
    def infos(cls) -> dict[str, ParamInfo]:
        """Every parameter's start, bounds and meaning, in order."""
        return {f.name: f.metadata["info"] for f in fields(cls)}

    def values(self) -> dict[str, float]:
        """Parameters by name."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self)}

    @property
    def exponent(self) -> float:
        """`power`, which every form has."""
        return float(self.power)  # type: ignore[attr-defined]


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of operator: its parameters, the physical terms, and the features that a correction looks at.

    `shape_columns` are the columns of a measurement table that make its shape; `group_columns` say which rows are one shape
    to leave out together when the error of a fit is measured. A correction needs `correction_points` points and has a centre
    for every `points_per_centre` of them.
    """

    kind: str
    params_type: type[Parameters]
    terms: Callable[[Any, Any, Target], Terms]
    features: Callable[[Any, Any, Target, Terms], Array]
    feature_names: tuple[str, ...]
    shape_columns: tuple[str, ...]
    group_columns: tuple[str, ...]
    length: float = 3.0
    ridge: float = 3e-4
    correction_points: int = 60
    points_per_centre: int = 3

    def params_from(self, values: Mapping[str, float]) -> Parameters:
        """Parameters from their names."""
        return self.params_type(**{name: float(values[name]) for name in self.params_type.infos()})


@dataclass(frozen=True, slots=True)
class Correction:
    """Kernel regression of log(measured / physical) on standardised features, limited and faded outside its points.

    c(z) = sum_i w_i exp(-|z - z_i|^2 / (2 length^2)) with z = (features - mean) / scale, cut to +-`limit`; beyond `reach`
    (distance to the nearest centre) it is multiplied by exp(-2 (distance / reach - 1)^2).
    """

    mean: Array
    scale: Array
    centres: Array
    weights: Array
    length: float
    reach: float
    limit: float
    _exponents: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # -|z - c|^2 / (2 length^2) = z' basis + offset - |z|^2 / (2 length^2): one product of (z, |z|^2, 1) with one matrix
        basis = self.centres.T / self.length**2
        offset = (self.centres * self.centres).sum(axis=1) * (-0.5 / self.length**2)
        square = np.full(len(self.centres), -0.5 / self.length**2)
        object.__setattr__(self, "_exponents", np.vstack([basis, square, offset]))

    def __call__(self, features: Array) -> tuple[Array, Array]:
        """Logarithmic correction and the distance to the nearest centre over `reach` (above 1: outside the domain)."""
        z = ((features - self.mean) / self.scale).reshape(-1, features.shape[-1])
        rows = np.empty((len(z), z.shape[1] + 2))
        rows[:, :-2] = z
        np.einsum("ij,ij->i", z, z, out=rows[:, -2])
        rows[:, -1] = 1.0
        log_factor, nearest = np.empty(len(z)), np.empty(len(z))
        for start in range(0, len(z), _CHUNK):
            part = slice(start, start + _CHUNK)
            exponent = rows[part] @ self._exponents
            exponent.max(axis=1, out=nearest[part])
            np.matmul(np.exp(exponent, out=exponent), self.weights, out=log_factor[part])
        distance = np.sqrt(np.maximum(nearest * (-2.0 * self.length**2), 0.0)) / self.reach
        fade = np.exp(-2.0 * np.maximum(distance - 1.0, 0.0) ** 2)
        log_factor = np.clip(log_factor, -self.limit, self.limit) * fade
        return log_factor.reshape(features.shape[:-1]), distance.reshape(features.shape[:-1])


_CHUNK = 48  # rows whose kernel (300 centres) stays in a cache, and is below the size that BLAS splits over threads


def squared_distances(a: Array, b: Array) -> Array:
    """|a_i - b_j|^2 for rows of `a` and `b`."""
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.maximum(squared, 0.0))


@dataclass(frozen=True, slots=True)
class Interval:
    """90% interval of log(measured / predicted) by what the time is mostly spent on, from points left out of the fit."""

    compute: tuple[float, float]
    memory: tuple[float, float]
    latency: tuple[float, float]

    def bounds(self, terms: Terms) -> tuple[Array, Array]:
        """Lower and upper log factors, per point."""
        sides = np.asarray([self.compute, self.memory, self.latency]).T[:, dominant(terms)]
        return sides[0], sides[1]


def dominant(terms: Terms) -> NDArray[np.int64]:
    """0 compute, 1 memory (streaming included), 2 latency: the largest part of each point."""
    memory = terms.memory_s + terms.streaming_s
    not_compute = np.where(terms.overhead_s > memory, 2, 1)
    return np.where(np.maximum(memory, terms.overhead_s) > terms.compute_s, not_compute, 0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted times with their 90% interval; `distance` above 1 is outside the domain that was fitted."""

    time_s: Array
    lower_s: Array
    upper_s: Array
    physical_s: Array
    terms: Terms
    distance: Array


def physical_time(terms: Terms, power: float) -> Array:
    """t = overhead + streaming + (compute^p + memory^p)^(1/p)."""
    top, bottom = np.maximum(terms.compute_s, terms.memory_s), np.minimum(terms.compute_s, terms.memory_s)
    mixed = top * (1.0 + (bottom / top) ** power) ** (1.0 / power)
    return np.asarray(terms.overhead_s + terms.streaming_s + mixed)


def evaluate(
    form: Form,
    params: Parameters,
    shape: Shape,
    target: Target,
    correction: Correction | None = None,
    interval: Interval | None = None,
) -> Prediction:
    """Time of an operator: the physical form, corrected where the fit has points nearby."""
    terms = form.terms(shape, params, target)
    physical = physical_time(terms, params.exponent)
    log_factor, distance = np.zeros(physical.shape), np.full(physical.shape, np.inf)
    if correction is not None:
        log_factor, distance = correction(form.features(shape, params, target, terms))
    time_s = physical * np.exp(log_factor)
    low, high = interval.bounds(terms) if interval is not None else (np.zeros(()), np.zeros(()))
    return Prediction(time_s, time_s * np.exp(low), time_s * np.exp(high), physical, terms, distance)


def stack_features(*columns: ArrayLike) -> Array:
    """Features as the last axis, broadcast against each other."""
    arrays = [np.asarray(c) for c in columns]
    stacked = np.empty((*np.broadcast_shapes(*(a.shape for a in arrays)), len(arrays)))
    for i, values in enumerate(arrays):
        stacked[..., i] = values
    return stacked
