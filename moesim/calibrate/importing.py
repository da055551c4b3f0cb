"""One door to all importers: what a source is decides who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moesim.calibrate.importers.aiconfigurator import import_aiconfigurator
from moesim.calibrate.importers.layer_profile import import_layer_profile
from moesim.calibrate.importers.user_csv import import_csv
from moesim.calibrate.tables import MeasurementTable, read_table
from moesim.errors import InputError
from moesim.specs.model import ModelSpec

__all__ = ["import_table"]


def import_table(
    source: str | Path,
    *,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str | float] | None = None,
    time_unit: str = "s",
    model: ModelSpec | None = None,
    version: str = "",
    kinds: tuple[str, ...] | None = None,
    stacks: tuple[str, ...] | None = None,
    latest_only: bool = True,
) -> MeasurementTable:
    """Measurements from any source we know.

    - ``aiconfigurator`` (the installed package) or a folder that holds its ``systems/data``: needs `device`.
    - a folder with ``tp1/dense.csv`` or ``tp1/moe.csv`` inside (a vLLM layer profile): needs `model` and `device`.
    - a CSV with `columns` and `constants` given: a user's own table, times in `time_unit`.
    - any other ``.csv``, ``.csv.gz`` or ``.parquet``: a table of our schema, such as our own profile.

    Raises:
        InputError: none of these, or what the importer says.
        MissingExtraError: ``aiconfigurator`` is asked for and not installed.
    """
    path = Path(source)
    if str(source) in ("aiconfigurator", "aiconfigurator-core"):
        return import_aiconfigurator(None, _needed(device, "device"), kinds, stacks, latest_only)
    if path.is_dir():
        if any(path.glob("tp*/*.csv")):
            if model is None:
                raise InputError("a layer profile needs its model", file=str(path), field="model")
            return import_layer_profile(path, model, _needed(device, "device"), version)
        return import_aiconfigurator(path, _needed(device, "device"), kinds, stacks, latest_only)
    if columns:
        extra = {} if device is None else {"device": device}
        return import_csv(path, columns, {**extra, **(constants or {})}, time_unit)
    return read_table(path)


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise InputError(
            "this source needs a device", field=name, hint="name one of the catalog: h100_sxm, b200_sxm, ..."
        )
    return value
