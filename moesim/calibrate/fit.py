"""From measured tables to calibrations: one fitted family per operator kind, formats and kernel, with held-out errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.calibrate.fit_errors import HeldOut, conformal_interval, cross_coverage, error_stats
from moesim.calibrate.fit_outcomes import FitResult, LeftOut, Mark, Marked, Reason, best_kernel
from moesim.calibrate.fit_params import (
    NoFiniteFitError,
    TooFewPointsError,
    fit_correction,
    fit_params,
    n_points_needed,
)
from moesim.calibrate.tables import FamilyRows, MeasurementTable, concat, shape_of
from moesim.cost.forms import Array, Form, Target, dominant, evaluate
from moesim.cost.forms_all import form_of
from moesim.cost.forms_calibration import Calibration, Family, FamilyKey
from moesim.errors import InputError
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.hardware import DeviceSpec

__all__ = ["FitSettings", "cross_validate", "fit_family", "fit_tables", "fit_with_errors", "target_of"]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How much data a family is fitted on, how many shapes are left out at a time, and the seed of every choice."""

    max_points: int = 5000
    n_folds: int = 6
    n_centres: int = 300
    max_points_for_params: int = 1500
    seed: int = 20260101


DEFAULT = FitSettings()


def target_of(key: FamilyKey, device: DeviceSpec, link_bytes_per_s: float = 0.0) -> Target:
    """The device's peaks for the arithmetic and storage of a family.

    Raises:
        InputError: a device whose number of compute units is not known.
    """
    if device.n_compute_units is None:
        raise InputError("device has no n_compute_units, which the forms need", field="device", value=device.name)
    act = Dtype(key.act_dtype)
    return Target(
        peak_flop_per_s=device.peak_flop_per_s.rate(act),
        memory_bytes_per_s=device.memory_bytes_per_s,
        n_compute_units=device.n_compute_units,
        link_bytes_per_s=link_bytes_per_s,
        weight_bytes=Storage(dtype=Dtype(key.dtype)).bytes_per_element,
        activation_bytes=Storage(dtype=act).bytes_per_element,
        kv_bytes=Storage(dtype=Dtype(key.kv_dtype or "bf16")).bytes_per_element,
    )


def fit_tables(
    tables: MeasurementTable | Iterable[MeasurementTable],
    device: DeviceSpec,
    link_bytes_per_s: float = 0.0,
    settings: FitSettings = DEFAULT,
    date: str = "",
    progress: Callable[[str], None] | None = None,
) -> FitResult:
    """One calibration per software stack and version in the tables, and what could not be fitted.

    Args:
        tables: measurements of one device; rows of the same family are fitted together.
        device: its specification (peaks, compute units).
        link_bytes_per_s: its scale-up bytes per second and direction; without it collectives are left out.
        settings: sizes and seed.
        date: when it was fitted, for the file.
        progress: called with a family's name before it is fitted.

    Raises:
        InputError: rows of another device, a device without compute units, or no family that can be fitted.
    """
    table = concat([tables] if isinstance(tables, MeasurementTable) else tables)
    by_stack: dict[tuple[str, str], list[tuple[FamilyRows, Family]]] = {}
    left_out: list[LeftOut] = []
    parts = list(table.families())
    for rows in parts:
        if rows.device != device.name:
            problem = "table holds another device"
            raise InputError(problem, field="device", value=rows.device, allowed=device.name)
    for rows in parts:
        if progress is not None:
            progress(rows.name)
        found = _fit_or_leave_out(rows, device, link_bytes_per_s, settings)
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            by_stack.setdefault((rows.stack, rows.version), []).append((rows, found))
    if not by_stack:
        first = left_out[0]
        raise InputError("no family can be fitted", value=first.n_points, hint=first.text)
    calibrations = [
        Calibration(
            device.name, stack, version, tuple(f for _, f in fitted), _sources(r for r, _ in fitted), date,
            moe_kernel=best_kernel([r for r, _ in fitted]),
        )
        for (stack, version), fitted in by_stack.items()
    ]  # fmt: skip
    marked = [mark for fitted in by_stack.values() for rows, family in fitted for mark in _marks(rows, family)]
    return FitResult(tuple(calibrations), tuple(left_out), tuple(marked))


def _fit_or_leave_out(
    rows: FamilyRows, device: DeviceSpec, link_bytes_per_s: float, settings: FitSettings
) -> Family | LeftOut:
    form, n = form_of(rows.key.kind, rows.key.kernel), len(rows.frame)
    if "message_bytes" in form.shape_columns and link_bytes_per_s <= 0.0:
        return LeftOut(rows.name, Reason.NO_LINK, n, "name a device with scale_up_link")
    try:
        return fit_family(rows, device, link_bytes_per_s, settings)
    except TooFewPointsError:
        return LeftOut(rows.name, Reason.TOO_FEW_POINTS, n, f"at least {n_points_needed(form)} are needed")
    except NoFiniteFitError:
        return LeftOut(rows.name, Reason.NO_FINITE_FIT, n, "check the table's units")


def _marks(rows: FamilyRows, family: Family) -> list[Marked]:
    marks = []
    if not family.is_converged:
        marks.append(Mark.NOT_CONVERGED)
    if family.held_out is None:
        marks.append(Mark.NO_HELD_OUT)
    if rows.groups.nunique() == len(rows.frame):
        marks.append(Mark.ONE_POINT_PER_SHAPE)
    return [Marked(rows.name, mark, len(rows.frame)) for mark in marks]


def _sources(parts: Iterable[FamilyRows]) -> str:
    return "; ".join(sorted({s.rsplit(", ", 1)[0] for rows in parts for s in rows.frame["source"].unique() if s}))


def fit_family(
    rows: FamilyRows, device: DeviceSpec, link_bytes_per_s: float = 0.0, settings: FitSettings = DEFAULT
) -> Family:
    """Fit one family and measure its error on left-out shapes.

    Raises:
        TooFewPointsError: too few points.
        NoFiniteFitError: a fit that finds no finite value.
        InputError: link bytes per second missing for a collective.
    """
    return fit_with_errors(rows, device, link_bytes_per_s, settings)[0]


def fit_with_errors(
    rows: FamilyRows, device: DeviceSpec, link_bytes_per_s: float = 0.0, settings: FitSettings = DEFAULT
) -> tuple[Family, HeldOut | None]:
    """`fit_family`, and the held-out points behind its errors (None where there was nothing to leave out)."""
    form, target = form_of(rows.key.kind, rows.key.kernel), target_of(rows.key, device, link_bytes_per_s)
    if "message_bytes" in form.shape_columns and link_bytes_per_s <= 0.0:
        raise InputError(
            "collectives need the link's bytes per second", field="link_bytes_per_s", value=link_bytes_per_s
        )
    sample = _sample(rows, settings)
    measured = sample.frame["measured_s"].to_numpy(dtype=np.float64)
    family = _fit(form, target, sample, measured, np.ones(len(measured), dtype=bool), settings)
    held_out = cross_validate(sample, target, settings)
    if held_out is not None:
        stats = error_stats(held_out, cross_coverage(held_out))
        family = replace(family, interval=conformal_interval(held_out), held_out=stats)
    shape_columns = [c for c in form.shape_columns if c in rows.frame]
    domain = {c: (float(rows.frame[c].min()), float(rows.frame[c].max())) for c in shape_columns}
    family = replace(family, n_points=len(rows.frame), n_groups=int(rows.groups.nunique()), domain=domain)
    return family, held_out


def cross_validate(rows: FamilyRows, target: Target, settings: FitSettings = DEFAULT) -> HeldOut | None:
    """Predict every row from a fit that saw no row of its shape; None where there is nothing to leave out.

    Whole shapes (`Form.group_columns`) are left out; of a family with a single shape, slices of it (local width and experts).
    """
    form = form_of(rows.key.kind, rows.key.kernel)
    labels, left_out = rows.groups, "shapes"
    if labels.nunique() < 2 and rows.key.kind == "moe":
        labels = rows.frame["inter_size"].astype(str) + "/" + rows.frame["n_local_experts"].astype(str)
        left_out = "slices of one shape"
    fold = _folds(labels.to_numpy(dtype=object), settings)
    measured = rows.frame["measured_s"].to_numpy(dtype=np.float64)
    n_needed = n_points_needed(form)
    log_ratio, which, distance = np.zeros(len(fold)), np.zeros(len(fold), dtype=np.int64), np.zeros(len(fold))
    for k in np.unique(fold):
        seen = fold != k
        if seen.sum() < n_needed:
            return None
        family = _fit(form, target, rows, measured, seen, settings)
        shape = shape_of(rows.key.kind, rows.frame[~seen])
        p = evaluate(form, family.params, shape, target, family.correction)
        log_ratio[~seen] = np.log(p.time_s / measured[~seen])
        which[~seen] = np.broadcast_to(dominant(p.terms), p.time_s.shape)
        distance[~seen] = p.distance
    return HeldOut(log_ratio, which, fold, distance, int(labels.nunique()), left_out)


def _fit(
    form: Form, target: Target, rows: FamilyRows, measured: Array, seen: NDArray[np.bool_], settings: FitSettings
) -> Family:
    shape, times = shape_of(rows.key.kind, rows.frame[seen]), measured[seen]
    few = np.flatnonzero(seen)
    if len(few) > settings.max_points_for_params:
        few = np.sort(np.random.default_rng(settings.seed).choice(few, settings.max_points_for_params, replace=False))
    fitted = fit_params(form, shape_of(rows.key.kind, rows.frame.iloc[few]), target, measured[few])
    plain = evaluate(form, fitted.params, shape, target)
    features = form.features(shape, fitted.params, target, plain.terms)
    features = np.broadcast_to(features, (*plain.physical_s.shape, features.shape[-1]))
    rng = np.random.default_rng(settings.seed)
    correction = fit_correction(form, features, np.log(times / plain.physical_s), rng, settings.n_centres)
    return Family(
        rows.key, fitted.params, target, len(times), 0, fitted.relative_sd, correction=correction,
        is_converged=fitted.converged,
    )  # fmt: skip


def _folds(labels: NDArray[np.object_], settings: FitSettings) -> NDArray[np.int64]:
    unique, index = np.unique(labels.astype(str), return_inverse=True)
    order = np.random.default_rng(settings.seed).permutation(len(unique))
    return np.asarray((order % min(settings.n_folds, max(2, len(unique))))[index], dtype=np.int64)


def _sample(rows: FamilyRows, settings: FitSettings) -> FamilyRows:
    n = len(rows.frame)
    if n <= settings.max_points:
        return rows
    keep = np.sort(np.random.default_rng(settings.seed).choice(n, settings.max_points, replace=False))
    return replace(rows, frame=rows.frame.iloc[keep], groups=rows.groups.iloc[keep])
