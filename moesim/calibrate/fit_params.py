"""Robust fits of one family: the physical form's parameters, then the correction that fades outside the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.cost.forms import Array, Correction, Form, Parameters, Target, physical_time, squared_distances
from moesim.errors import InputError
from moesim.ops import Shape

__all__ = ["FittedParams", "NoFiniteFitError", "TooFewPointsError", "fit_correction", "fit_params", "n_points_needed"]

_SOFT_L1_SCALE = 0.1
_MAX_EVALUATIONS = 80
_MORE_POINTS_THAN_PARAMETERS = 5


class TooFewPointsError(InputError):
    """A family with fewer points than parameters plus five."""


class NoFiniteFitError(InputError):
    """A family whose fit finds no finite error."""


def n_points_needed(form: Form) -> int:
    """Points that a fit of `form` needs: its parameters plus five."""
    return len(form.params_type.infos()) + _MORE_POINTS_THAN_PARAMETERS


@dataclass(frozen=True, slots=True)
class FittedParams:
    """Fitted parameters with relative standard deviations; `converged` is False where the fit ran out of evaluations."""

    params: Parameters
    relative_sd: dict[str, float]
    converged: bool


def fit_params(form: Form, shape: Shape, target: Target, measured_s: Array) -> FittedParams:
    """Least squares of log(physical / measured) over the logarithms of the parameters, with soft-l1 loss.

    Raises:
        TooFewPointsError: fewer points than parameters plus five.
        NoFiniteFitError: a fit that finds no finite value.
    """
    from scipy.optimize import least_squares

    infos = form.params_type.infos()
    needed = n_points_needed(form)
    if len(measured_s) < needed:
        raise TooFewPointsError(
            f"too few points to fit {form.kind!r}", value=len(measured_s), allowed=f"at least {needed}"
        )
    low = np.log([i.low for i in infos.values()])
    high = np.log([i.high for i in infos.values()])
    start = np.clip(np.log([i.start for i in infos.values()]), low + 1e-3, high - 1e-3)
    log_measured = np.log(measured_s)

    def residual(log_values: Array) -> Array:
        params = form.params_type(*np.exp(log_values))
        return np.asarray(np.log(physical_time(form.terms(shape, params, target), params.exponent)) - log_measured)

    found = least_squares(
        residual, start, bounds=(low, high), loss="soft_l1", f_scale=_SOFT_L1_SCALE, max_nfev=_MAX_EVALUATIONS
    )
    if not np.isfinite(found.cost):
        raise NoFiniteFitError(f"the fit of {form.kind!r} found no finite value", hint="check the table's units")
    values = np.exp(found.x)
    sd = _relative_sd(np.asarray(found.jac), np.asarray(found.fun))
    return FittedParams(form.params_type(*map(float, values)), dict(zip(infos, sd, strict=True)), found.status > 0)


def _relative_sd(jacobian: Array, residual: Array) -> list[float]:
    """Standard deviations of log parameters from J'J, a robust residual scale and a weak prior of a factor e^3.

    A value near 3 means that the data do not determine the parameter. Assumes: independent points, so it is a lower bound.
    """
    scale = max(1.4826 * float(np.median(np.abs(residual))), 1e-6)
    precision = jacobian.T @ jacobian / scale**2 + np.eye(jacobian.shape[1]) / 9.0
    return [float(v) for v in np.sqrt(np.diag(np.linalg.inv(precision)))]


def fit_correction(
    form: Form, features: Array, log_residual: Array, rng: np.random.Generator, n_centres: int = 200
) -> Correction | None:
    """Kernel ridge regression of log(measured / physical) on standardised features; None for fewer points than the form asks.

    Centres are drawn far from each other (k-means++ seeding) and rounded to what the file stores; three rounds of
    reweighting by 1 / sqrt(1 + (e / 0.1)^2) keep outliers from pulling.
    """
    n = len(log_residual)
    if n < form.correction_points:
        return None
    mean = features.mean(axis=0)
    scale = np.maximum(features.std(axis=0), 1e-3)
    z = (features - mean) / scale
    centres = _spread_points(z, min(n_centres, n // form.points_per_centre), rng).astype(np.float16).astype(np.float64)
    squared = squared_distances(z, centres)
    kernel = np.exp(squared * (-0.5 / form.length**2))
    penalty = np.exp(squared_distances(centres, centres) * (-0.5 / form.length**2))
    penalty = form.ridge * n * penalty + 1e-8 * n * np.eye(len(centres))
    robust = np.ones(n)
    weights: Array = np.zeros(len(centres))
    for _ in range(3):
        weighted = kernel * robust[:, None]
        weights = np.asarray(np.linalg.solve(weighted.T @ kernel + penalty, weighted.T @ log_residual))
        error = log_residual - kernel @ weights
        robust = 1.0 / np.sqrt(1.0 + (error / _SOFT_L1_SCALE) ** 2)
    fitted = kernel @ weights
    reach = 1.5 * float(np.quantile(np.sqrt(squared.min(axis=1)), 0.99))
    return Correction(
        mean=mean,
        scale=scale,
        centres=centres,
        weights=weights.astype(np.float32).astype(np.float64),
        length=form.length,
        reach=max(reach, 0.5),
        limit=max(0.05, float(np.quantile(np.abs(fitted), 0.999))),
    )


def _spread_points(z: Array, n_points: int, rng: np.random.Generator) -> Array:
    chosen: NDArray[np.int64] = np.empty(n_points, dtype=np.int64)
    chosen[0] = rng.integers(len(z))
    nearest: Array = np.asarray(((z - z[chosen[0]]) ** 2).sum(axis=1))
    for i in range(1, n_points):
        total = nearest.sum()
        if total <= 0.0:
            return z[chosen[:i]]
        chosen[i] = rng.choice(len(z), p=nearest / total)
        nearest = np.asarray(np.minimum(nearest, ((z - z[chosen[i]]) ** 2).sum(axis=1)))
    return z[chosen]
