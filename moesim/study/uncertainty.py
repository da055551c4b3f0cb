"""How the 90% interval of every result is made: which errors add, which compensate. Numbers and arrays of cases alike.

Widths are of logarithms (0.1 is about 10% either way), so that times, rates and prices are treated alike; ends need not be equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import ASSUMED_ERROR_FRAC, StepEstimate
from moesim.ops import EXCHANGES
from moesim.study.stack_files import Bands, shipped_bands

__all__ = [
    "ASSUMPTION_WIDTH",
    "OUTSIDE_WIDTH",
    "Basis",
    "Exposure",
    "Kinship",
    "Spread",
    "current_bands",
    "exposure_of",
    "quotient",
    "spread_of",
    "spreads_of",
    "verdict",
]

Num = float | NDArray[np.float64]

#: Added for time spent outside the tables' domain, and for time that only assumptions stand behind, in proportion. Assumptions.
OUTSIDE_WIDTH = 0.5
ASSUMPTION_WIDTH = 0.7
#: Added where a stack's parameters come from other GPUs. Between Hopper and Blackwell 0.1 was measured (bands of TPOT -0.22..0.16
#: when fitted on the other one); older and smaller devices are farther away (assumption).
LENT_WIDTH = 0.15
#: Added to the errors of exchanges where an instance spans scale-up domains: all serving runs were inside one. Whole passes of
#: published deployments on 4 to 12 nodes are 4 to 15% off (docs/fabric.md).
WIDE_WIDTH = 0.15
#: Added to TTFT where only kernels were measured: queueing, launches and clients are not in it. Assumption.
UNSERVED_WIDTH = 0.3
#: Added to joules: board power is published, its share in use is not measured. Assumption.
POWER_WIDTH = 0.25
#: Above this part of the time with no measurement behind it, a result is "assumption only".
MOST_ASSUMED = 0.5
#: Ratio below which nobody should choose by numbers that rest on assumptions.
TOO_CLOSE = 1.05


class Basis(StrEnum):
    """What stands behind an interval."""

    RUNS = "serving runs that no fit saw"
    LENT = "serving runs on other GPUs"
    KERNELS = "kernels that no fit saw"
    ASSUMPTION = "assumption only"


class Kinship(StrEnum):
    """What the two sides of a ratio have in common, on one device and stack."""

    STRANGERS = "different models"
    MODEL = "one model"
    SPLIT = "one model on one split"
    TWINS = "one model on one split under one load"


#: Part of the variance of log TPOT errors that two results share. Measured on the 1,646 runs with groups left out: errors of
#: different models on one system and backend do not correlate (-0.07), those of one model do, and more so on one split. Where
#: only routing or placement differ, nearly all is shared (assumption).
SHARED = {Kinship.STRANGERS: 0.0, Kinship.MODEL: 0.3, Kinship.SPLIT: 0.4, Kinship.TWINS: 0.9}
#: What the interval of a ratio between two models is wider by than quadrature says: the 90% quantile of |log error of the ratio|
#: over quadrature's width, of mixtures against dense models with both groups left out, the seven pairs of groups counting alike
#: (benchmarks/validation/intervals.py). A group errs in one direction, so two bands understate how far apart two groups may be.
STRANGER_FACTOR = 1.27


@dataclass(frozen=True, slots=True)
class Exposure:
    """How a pass is exposed to errors, as fractions of its time: numbers, or arrays of cases.

    `kernels` is the half-width from held-out residuals of its operators, taken as fully correlated in a pass (it cannot be too
    narrow); `links` that of expert exchanges and of spanning nodes, which serving runs do not contain. `assumed_frac` is what
    nothing measured, `outside_frac` lies outside the measured domain, `seeds` is what routing and arrivals scatter (half-width of
    the 90% interval of the logarithm).
    """

    kernels: Num = 0.0
    links: Num = 0.0
    assumed_frac: Num = 0.0
    outside_frac: Num = 0.0
    seeds: Num = 0.0

    def seeded(self, seeds: Num) -> Exposure:
        """The same with a scatter."""
        return Exposure(self.kernels, self.links, self.assumed_frac, self.outside_frac, seeds)


@dataclass(frozen=True, slots=True)
class Spread:
    """A 90% interval of log(true / predicted): from -`low` to `high`, both positive; nan is "assumption only"."""

    low: Num
    high: Num

    def widened(self, *extra: Num) -> Spread:
        """With independent errors on top, in quadrature."""
        return Spread(_hypot(self.low, *extra), _hypot(self.high, *extra))

    def inverse(self) -> Spread:
        """Of a rate, if this is of the time."""
        return Spread(self.high, self.low)

    def ends(self, value: Any) -> tuple[Any, Any]:
        """Around positive values.

        >>> [round(x, 2) for x in Spread(0.1, 0.2).ends(10.0)]
        [9.05, 12.21]
        """
        return value * _exp(-self.low), value * _exp(self.high)

    def interval(self, value: float | None) -> tuple[float, float] | None:
        """Around one value; None where there is none, or only assumptions stand behind it."""
        if value is None or math.isnan(float(self.low)):
            return None
        low, high = self.ends(value)
        return float(low), float(high)

    @property
    def half_frac(self) -> Num:
        """Half of the interval over the value, for where one number must do."""
        return 0.5 * (_exp(self.high) - _exp(-self.low))


def spread_of(basis: Basis, exposure: Exposure, bands: Bands, *, is_moe: bool, is_ttft: bool = False) -> Spread:
    """The interval of a time.

    Errors of whole runs contain the kernels' residuals, which therefore count only where no runs stand behind a result.
    Exchanges, time outside the measured domain or on assumptions, and scatter add in quadrature. Nan where most of the time was
    not measured.

    Args:
        basis: what stands behind the result.
        exposure: of the pass that most of the time is spent in.
        bands: errors of runs that no fit saw.
        is_moe: a mixture (TPOT's bands differ).
        is_ttft: a time to first token.

    >>> bands = Bands(tpot_moe=(-0.3, 0.3))
    >>> round(spread_of(Basis.RUNS, Exposure(seeds=0.4), bands, is_moe=True).low, 3)
    0.5
    """
    e = exposure
    extra = (OUTSIDE_WIDTH * e.outside_frac, e.seeds)
    if basis in (Basis.RUNS, Basis.LENT):
        low, high = bands.ttft_warm if is_ttft else bands.tpot(is_moe)
        lent = LENT_WIDTH if basis is Basis.LENT else 0.0
        found = Spread(-low, high).widened(*extra, e.links, ASSUMPTION_WIDTH * e.assumed_frac, lent)
    else:
        found = Spread(e.kernels, e.kernels).widened(*extra, UNSERVED_WIDTH if is_ttft else 0.0)
    if basis is Basis.ASSUMPTION:
        return Spread(found.low * math.nan, found.high * math.nan)
    known = _where(e.assumed_frac, MOST_ASSUMED)
    return Spread(found.low * known, found.high * known)


def exposure_of(estimate: StepEstimate, seeds: float = 0.0, *, is_wide: bool = False) -> Exposure:
    """The exposure of one pass in detail; `is_wide` where its instance spans scale-up domains."""
    total = max(estimate.time_s, 1e-30)
    errors = [ASSUMED_ERROR_FRAC if line.error_frac is None else line.error_frac for line in estimate.lines]
    each = [line.time_s * error / total for line, error in zip(estimate.lines, errors, strict=True)]
    return Exposure(
        kernels=float(sum(each)),
        links=math.hypot(
            sum(x for x, line in zip(each, estimate.lines, strict=True) if line.kind in EXCHANGES), WIDE_WIDTH * is_wide
        ),
        assumed_frac=float(sum(line.time_s for line in estimate.lines if line.error_frac is None) / total),
        outside_frac=float(estimate.extrapolated_frac), seeds=seeds,
    )  # fmt: skip


def spreads_of(
    basis: Basis, decode: Exposure, prefill: Exposure, *, is_moe: bool, bands: Bands | None = None
) -> dict[str, Spread]:
    """Intervals of all that a system is judged by, by the name of the result.

    Rates are the inverse of the time between tokens. Dollars take prices as given; joules add what is not known of the power.
    """
    bands = bands if bands is not None else current_bands()
    tpot = spread_of(basis, decode, bands, is_moe=is_moe)
    ttft = spread_of(basis, prefill, bands, is_moe=is_moe, is_ttft=True)
    rate = tpot.inverse()
    return {
        "ttft_s": ttft, "tpot_s": tpot, "decode_step_s": tpot, "output_tokens_per_s": rate,
        "output_tokens_per_s_per_device": rate, "output_tokens_per_s_per_user": rate,
        "energy_j_per_output_token": tpot.widened(POWER_WIDTH), "usd_per_million_output_tokens": tpot,
    }  # fmt: skip


def current_bands() -> Bands:
    """The shipped bands, or those in the current folder; read once for each."""
    return _bands_in(Path.cwd())


@lru_cache(maxsize=8)
def _bands_in(_: Path) -> Bands:
    return shipped_bands()


def quotient(top: Spread, bottom: Spread, kinship: Kinship = Kinship.STRANGERS) -> Spread:
    """The interval of top / bottom: f sqrt(t^2 + b^2 - 2 s t b), s the part of the variance that both share, f 1 within a model.

    >>> round(quotient(Spread(0.3, 0.3), Spread(0.4, 0.4)).low, 3)
    0.635
    """
    s, f = SHARED[kinship], STRANGER_FACTOR if kinship is Kinship.STRANGERS else 1.0

    def side(t: Num, b: Num) -> Num:
        squared = t * t + b * b - 2.0 * s * t * b
        return f * (math.sqrt(squared) if isinstance(squared, float) else np.sqrt(squared))

    return Spread(side(top.low, bottom.high), side(top.high, bottom.low))


def verdict(reference: str, other: str, ratio: float | None, spread: Spread | None) -> str:
    """Who is cheaper and by how much, with the interval; or that it is too close to call.

    Args:
        reference: name of the system whose advantage `ratio` is.
        other: name of the other one.
        ratio: cost of the other over that of the reference; None if either has none.
        spread: of the ratio; None or nan if only assumptions stand behind either.

    >>> verdict("MoE", "dense", 1.7, Spread(0.2, 0.2))
    'MoE is cheaper than dense, 1.70x [1.39, 2.08]'
    """
    if ratio is None:
        return "cannot be compared"
    better, worse, by = (reference, other, ratio) if ratio >= 1 else (other, reference, 1.0 / ratio)
    if spread is None or math.isnan(float(spread.low)):
        if by < TOO_CLOSE:
            return f"too close to call ({reference} against {other}, ratio {ratio:.2f}; assumption only)"
        return f"{better} is cheaper than {worse}, {by:.2f}x (assumption only)"
    low, high = (spread if ratio >= 1 else spread.inverse()).ends(by)
    if low < 1.0:
        return f"too close to call ({better} against {worse}, {by:.2f}x [{low:.2f}, {high:.2f}])"
    return f"{better} is cheaper than {worse}, {by:.2f}x [{low:.2f}, {high:.2f}]"


def _hypot(*parts: Num) -> Num:
    if all(isinstance(x, float) for x in parts):
        return math.hypot(*parts)
    return np.asarray(np.sqrt(sum(np.square(x) for x in parts)))


def _exp(x: Num) -> Num:
    return math.exp(x) if isinstance(x, float) else np.asarray(np.exp(x))


def _where(frac: Num, most: float) -> Num:
    """1 where there is no more of it, else nan."""
    if isinstance(frac, float):
        return 1.0 if frac <= most else math.nan
    return np.where(np.asarray(frac) <= most, 1.0, math.nan)
