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


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of operator: its parameters, the physical terms, and the features that a correction looks at.

    `shape_columns` are the columns of a measurement table that make its shape; `group_columns` say which rows are one shape
    to leave out together when the error of a fit is measured.
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

    def __call__(self, features: Array) -> tuple[Array, Array]:
        """Logarithmic correction and the distance to the nearest centre over `reach` (above 1: outside the domain)."""
        z = (features - self.mean) / self.scale
        flat = z.reshape(-1, z.shape[-1])
        log_factor, distance = np.empty(len(flat)), np.empty(len(flat))
        for start in range(0, len(flat), _CHUNK):
            part = slice(start, start + _CHUNK)
            squared = squared_distances(flat[part], self.centres)
            log_factor[part] = np.exp(squared * (-0.5 / self.length**2)) @ self.weights
            distance[part] = np.sqrt(squared.min(axis=1)) / self.reach
        fade = np.exp(-2.0 * np.maximum(distance - 1.0, 0.0) ** 2)
        log_factor = np.clip(log_factor, -self.limit, self.limit) * fade
        return log_factor.reshape(z.shape[:-1]), distance.reshape(z.shape[:-1])


_CHUNK = 20_000


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
        which = dominant(terms)
        rows = np.asarray([self.compute, self.memory, self.latency])
        return rows[which, 0], rows[which, 1]


def dominant(terms: Terms) -> NDArray[np.int64]:
    """0 compute, 1 memory (streaming included), 2 latency: the largest part of each point."""
    memory = terms.memory_s + terms.streaming_s
    return np.asarray(np.argmax(np.stack(np.broadcast_arrays(terms.compute_s, memory, terms.overhead_s)), axis=0))


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
    top = np.maximum(terms.compute_s, terms.memory_s)
    mixed = top * ((terms.compute_s / top) ** power + (terms.memory_s / top) ** power) ** (1.0 / power)
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
    physical = physical_time(terms, params.values()["power"])
    log_factor, distance = np.zeros(physical.shape), np.full(physical.shape, np.inf)
    if correction is not None:
        log_factor, distance = correction(form.features(shape, params, target, terms))
    time_s = physical * np.exp(log_factor)
    low, high = interval.bounds(terms) if interval is not None else (np.zeros(()), np.zeros(()))
    return Prediction(time_s, time_s * np.exp(low), time_s * np.exp(high), physical, terms, distance)


def stack_features(*columns: ArrayLike) -> Array:
    """Features as the last axis, broadcast against each other."""
    return np.stack(np.broadcast_arrays(*[np.asarray(c, dtype=np.float64) for c in columns]), axis=-1)
