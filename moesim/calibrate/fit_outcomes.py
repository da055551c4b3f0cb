"""What comes out of a fit: calibrations, families that were left out, and families that are marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from moesim.calibrate.tables import FamilyRows
from moesim.cost.forms_calibration import Calibration
from moesim.cost.forms_eager import EAGER_KERNELS

__all__ = ["FitResult", "LeftOut", "Mark", "Marked", "Reason", "best_kernel"]

#: Eager kernels between which the profile's fastest is chosen; the others need more memory, or are not a way to run any layer.
_CHOICES = ("looped", "grouped")
_SHAPE = ["model_shape", "n_tokens", "n_assignments", "n_experts_hit"]


class Reason(StrEnum):
    """Why a family of a table is not in the calibration."""

    TOO_FEW_POINTS = "too few points"
    NO_LINK = "the device's link is not known"
    NO_FINITE_FIT = "the fit found no finite error"


class Mark(StrEnum):
    """What to know about a family that is in the calibration."""

    NOT_CONVERGED = "the fit did not converge; its parameters are the best that were seen"
    NO_HELD_OUT = "too few shapes or points to leave any out: no error, no interval"
    ONE_POINT_PER_SHAPE = "one point per shape: a bad point cannot be told from a slow shape"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A family that was not fitted, with its number of points."""

    family: str
    reason: Reason
    n_points: int
    detail: str = ""

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.family}: {self.reason} ({self.n_points}); {self.detail}".rstrip("; ")


@dataclass(frozen=True, slots=True)
class Marked:
    """A family that was fitted and should be read with care."""

    family: str
    mark: Mark
    n_points: int

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.family}: {self.mark}"


@dataclass(frozen=True, slots=True)
class FitResult:
    """One calibration per software stack and version, families left out, and marks on those that were fitted."""

    calibrations: tuple[Calibration, ...]
    left_out: tuple[LeftOut, ...] = ()
    marked: tuple[Marked, ...] = ()


def best_kernel(parts: Sequence[FamilyRows]) -> str:
    """The eager kernel that a calibration answers with: the faster of looped and grouped on shapes that both ran.

    Compared by the median ratio of times. With one of them only, that one; with neither, the first of `EAGER_KERNELS` that was
    measured; the empty string where no eager layer was.
    """
    eager = {p.key.kernel: p.frame for p in parts if p.key.kind == "moe" and p.key.kernel in EAGER_KERNELS}
    frames = [eager[k].set_index(_SHAPE)["measured_s"] for k in _CHOICES if k in eager]
    if len(frames) == 2:
        both = (
            frames[0]
            .groupby(level=_SHAPE)
            .median()
            .to_frame("a")
            .join(frames[1].groupby(level=_SHAPE).median().rename("b"))
        )
        ratio = float(np.median((both["a"] / both["b"]).dropna())) if both["b"].notna().any() else 1.0
        return _CHOICES[0] if ratio <= 1.0 else _CHOICES[1]
    return next((k for k in EAGER_KERNELS if k in eager and k != "dense"), "")
