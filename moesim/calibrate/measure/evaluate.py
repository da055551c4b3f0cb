"""How well layers of a profile are predicted by a fit that never saw their shape, and the ratio of dense to MoE. No torch here.

Each shape is left out in turn, with its dense twins; the physical form of eager layers is fitted to the others and asked for it.
No correction is used, so what is reported is what eight readable parameters can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moesim.calibrate.fit import target_of
from moesim.calibrate.fit_params import fit_params
from moesim.calibrate.tables import TEXTS, FamilyRows, MeasurementTable, shape_of
from moesim.cost.forms import Array, Target, physical_time
from moesim.cost.forms_all import form_of
from moesim.errors import InputError
from moesim.specs.catalog import load_device
from moesim.specs.hardware import DeviceSpec

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ErrorRow", "ProfileErrors", "evaluate_profile", "predict_new"]


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Errors |predicted / measured - 1| on left-out shapes: median, mean, signed mean, 90th percentile."""

    what: str
    n: int
    n_shapes: int
    median_frac: float
    mean_frac: float
    bias_frac: float
    p90_frac: float
    within_10_percent_frac: float


@dataclass(frozen=True, slots=True)
class ProfileErrors:
    """Errors of layers by kernel, and of the time of a dense twin over that of the looped MoE layer."""

    layers: tuple[ErrorRow, ...]
    ratios: tuple[ErrorRow, ...]


def evaluate_profile(folder: Path) -> ProfileErrors:
    """Errors on left-out shapes from the tables of a profile's folder.

    Raises:
        InputError: tables or device.yaml missing, or too few shapes.
    """
    device, families = _read(folder)
    frames = {}
    for kernel in ("looped", "grouped", "padded", "dense"):
        if kernel in families:
            frames[kernel] = _left_out(families[kernel], target_of(families[kernel].key, device))
    return _report(frames)


def predict_new(fitted_on: Path, folder: Path) -> ProfileErrors:
    """Errors of all layers in `folder` by a fit to all of `fitted_on`: shapes and day both new to it.

    Raises:
        InputError: tables or device.yaml missing, or too few points.
    """
    device, known = _read(fitted_on)
    _, new = _read(folder)
    frames = {}
    for kernel in sorted(known.keys() & new.keys()):
        target = target_of(known[kernel].key, device)
        frame = new[kernel].frame
        predicted = _predict(known[kernel].frame, frame, target)
        frames[kernel] = frame.assign(predicted_s=predicted, base=frame["model_shape"].str.split(":").str[0])
    return _report(frames)


def _report(frames: Mapping[str, pd.DataFrame]) -> ProfileErrors:
    layers = tuple(_errors(k, f["predicted_s"] / f["measured_s"], f["base"].nunique()) for k, f in frames.items())
    ratios = []
    for twin in ("active", "total") if {"dense", "looped"} <= frames.keys() else ():
        both = _twins(frames["dense"], frames["looped"], twin)
        ratio = both["predicted_s_dense"] / both["predicted_s_moe"] * both["measured_s_moe"] / both["measured_s_dense"]
        ratios.append(_errors(f"dense of equal {twin} parameters / MoE", ratio, both["base"].nunique()))
    return ProfileErrors(layers, tuple(ratios))


def _read(folder: Path) -> tuple[DeviceSpec, Mapping[str, FamilyRows]]:
    import pandas as pd

    names = ("measurements.csv", "parts.csv", "device.yaml")
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise InputError(
            "not the folder of a profile", file=str(folder / missing[0]), hint="run calibrate profile first"
        )
    texts = dict.fromkeys(TEXTS, str)
    rows = pd.concat([pd.read_csv(folder / n, dtype=texts) for n in names[:2]], ignore_index=True)
    rows = rows[(rows["op_kind"] == "moe") & rows["n_assignments"].notna() & rows["inter_size"].notna()]
    families = MeasurementTable.of(rows, str(folder)).families()
    return load_device(str(folder / "device.yaml")), {f.key.kernel: f for f in families}


def _left_out(rows: FamilyRows, target: Target) -> pd.DataFrame:
    base = rows.frame["model_shape"].str.split(":").str[0]
    if base.nunique() < 3:
        raise InputError("too few shapes to leave one out", field="kernel", value=rows.key.kernel, allowed="3 or more")
    predicted = np.zeros(len(base))
    for shape in base.unique():
        out = (base == shape).to_numpy()
        predicted[out] = _predict(rows.frame[~out], rows.frame[out], target)
    return rows.frame.assign(predicted_s=predicted, base=base)


def _predict(seen: pd.DataFrame, asked: pd.DataFrame, target: Target) -> Array:
    form = form_of("moe", str(seen["kernel"].iloc[0]))
    measured = seen["measured_s"].to_numpy(dtype=np.float64)
    params = fit_params(form, shape_of("moe", seen), target, measured).params
    return physical_time(form.terms(shape_of("moe", asked), params, target), params.exponent)


def _twins(dense: pd.DataFrame, moe: pd.DataFrame, twin: str) -> pd.DataFrame:
    """Dense twins beside the MoE layers of the same shape and tokens (every load of them)."""
    columns = ["base", "n_tokens", "measured_s", "predicted_s"]
    chosen = dense[dense["model_shape"].str.endswith(f":{twin}")]
    return chosen[columns].merge(moe[columns], on=["base", "n_tokens"], suffixes=("_dense", "_moe"))


def _errors(what: str, ratio: pd.Series[float], n_shapes: int) -> ErrorRow:
    signed = ratio.to_numpy(dtype=np.float64) - 1.0
    size = np.abs(signed)
    return ErrorRow(
        what, len(size), n_shapes, float(np.median(size)), float(size.mean()), float(signed.mean()),
        float(np.quantile(size, 0.9)), float((size <= 0.1).mean()),
    )  # fmt: skip
