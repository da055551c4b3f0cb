"""Import a user's CSV with a column mapping and stated time unit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.calibrate.tables import COMMON, NUMBERS, TEXTS, MeasurementTable
from moesim.errors import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TIME_UNITS", "import_csv"]

TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def import_csv(
    path: str | Path,
    columns: Mapping[str, str],
    constants: Mapping[str, str | float],
    time_unit: str = "s",
) -> MeasurementTable:
    """Measurements from any CSV.

    Args:
        path: the CSV, with a header.
        columns: our column name -> the CSV's column name, `measured_s` included.
        constants: our column name -> one value for every row (device, stack, op_kind, dtype ...).
        time_unit: unit of the time column: s, ms, us or ns.

    Raises:
        InputError: a file that cannot be read, an unknown unit or column, or rows that the schema refuses.
    """
    if time_unit not in TIME_UNITS:
        raise InputError("unknown time unit", field="time_unit", value=time_unit, allowed=", ".join(TIME_UNITS))
    known = (*TEXTS, *NUMBERS)
    for name in (*columns, *constants):
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean {' or '.join(close)}?" if close else None
            raise InputError("is not a column of the schema", field=name, allowed=", ".join(known), hint=hint)
    raw = read_csv(path)
    missing = [c for c in columns.values() if c not in raw.columns]
    if missing:
        raise InputError(
            "no such column in the CSV", str(path), 1, missing[0], allowed=", ".join(map(str, raw.columns))
        )
    frame = raw[list(columns.values())].rename(columns={theirs: ours for ours, theirs in columns.items()})
    frame = frame.assign(**{"version": "", **constants})
    if "measured_s" in frame.columns:
        frame["measured_s"] = _times(frame["measured_s"], str(path)) * TIME_UNITS[time_unit]
    unmapped = [c for c in COMMON if c not in frame.columns]
    if unmapped:
        raise InputError("needs a column or a constant", str(path), field=unmapped[0], hint="map it or give one value")
    if "source" not in frame.columns:
        frame["source"] = f"CSV {Path(path).name}"
    return MeasurementTable.of(frame, str(path))


def read_csv(path: str | Path) -> pd.DataFrame:
    """A CSV as it is.

    Raises:
        InputError: not there, empty, or not a CSV.
    """
    import pandas as pd

    if not Path(path).is_file():
        raise InputError("no such table", file=str(path))
    try:
        return pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as CSV: {error}", file=str(path)) from None


def _times(column: pd.Series[float], file: str) -> pd.Series[float]:
    import pandas as pd

    times = pd.to_numeric(column, errors="coerce")
    if times.isna().any():
        at = int(times.index[times.isna()][0])
        raise InputError("is not a number", file, at + 2, "measured_s", column.loc[at])
    return times
