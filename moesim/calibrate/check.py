"""Projected against measured: how far a calibration is from a table, group by group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from moesim.calibrate.tables import FamilyRows, MeasurementTable, shape_of
from moesim.cost.forms import Prediction
from moesim.cost.forms_calibration import Calibration, Family
from moesim.errors import InputError

__all__ = ["CheckReport", "CheckRow", "check"]


@dataclass(frozen=True, slots=True)
class CheckRow:
    """Errors of one group of rows: |projected / measured - 1| and its signed mean, and how many intervals cover."""

    group: str
    n: int
    n_shapes: int
    median_frac: float
    mean_frac: float
    bias_frac: float
    p90_frac: float
    coverage_frac: float
    n_outside_domain: int
    family: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Rows per group, the table's rows outside the domain of the fit, and groups that the calibration knows nothing on."""

    calibration: str
    rows: tuple[CheckRow, ...]
    outside_rows: tuple[int, ...]
    unknown_groups: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def check(
    calibration: Calibration, table: MeasurementTable, progress: Callable[[str], None] | None = None
) -> CheckReport:
    """Compare a calibration with measurements of its device.

    A group uses its own family where the calibration has it (same kind, formats and kernel), else the nearest of its kind and
    format.

    Raises:
        InputError: the table is of another device.
    """
    rows: list[CheckRow] = []
    outside: list[int] = []
    unknown: list[str] = []
    for part in table.families():
        if part.device != calibration.device:
            problem = "calibration and table are of different devices"
            raise InputError(problem, field="device", value=part.device, allowed=calibration.device)
        if progress is not None:
            progress(part.name)
        found = _predict(calibration, part)
        if found is None:
            unknown.append(part.name)
            continue
        family, prediction = found
        rows.append(_row(part, family, prediction))
        outside += [int(i) for i in part.frame.index.to_numpy()[prediction.distance > 1.0]]
    return CheckReport(calibration.name, tuple(rows), tuple(sorted(outside)), tuple(unknown))


def _predict(calibration: Calibration, part: FamilyRows) -> tuple[Family, Prediction] | None:
    shape = shape_of(part.key.kind, part.frame)
    for family in calibration.families:
        if family.key == part.key:
            return family, family.predict(shape)
    return calibration.nearest(part.key.kind, part.key.dtype, shape, part.key.kv_dtype)


def _row(part: FamilyRows, family: Family, p: Prediction) -> CheckRow:
    measured = part.frame["measured_s"].to_numpy(dtype=np.float64)
    signed = p.time_s / measured - 1.0
    size = np.abs(signed)
    inside = (p.lower_s <= measured) & (measured <= p.upper_s)
    return CheckRow(
        group=part.name,
        n=len(measured),
        n_shapes=int(part.groups.nunique()),
        median_frac=float(np.median(size)),
        mean_frac=float(size.mean()),
        bias_frac=float(signed.mean()),
        p90_frac=float(np.quantile(size, 0.9)),
        coverage_frac=float(inside.mean()),
        n_outside_domain=int((p.distance > 1.0).sum()),
        family=family.key.name,
    )
