"""The one tidy schema of measurements, and reading and writing it.

One row is one measured time of one operator on one device. Columns that every row has, then those of its kind; units are in the
names, sizes are per rank, times in seconds. See docs/calibration.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.cost.forms_all import FORMS, form_of
from moesim.cost.forms_calibration import FamilyKey
from moesim.errors import InputError
from moesim.ops import AttentionShape, CollectiveShape, GemmShape, MoeShape, Shape
from moesim.specs.dtypes import Dtype

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COMMON",
    "FAMILY",
    "NUMBERS",
    "TEXTS",
    "FamilyRows",
    "MeasurementTable",
    "concat",
    "read_table",
    "shape_of",
    "write_table",
]

FAMILY = ("op_kind", "dtype", "act_dtype", "kv_dtype", "kernel")
COMMON = ("op_kind", "device", "stack", "version", "dtype", "measured_s")
TEXTS = (*FAMILY, "device", "stack", "version", "model_shape", "source", "date")
NUMBERS = (
    "m", "n", "k",
    "n_tokens", "n_assignments", "n_experts_hit", "max_expert_tokens", "n_local_experts", "hidden_size", "inter_size", "top_k",
    "gated",
    "batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "qk_head_dim", "v_head_dim", "window", "is_mla",
    "n_ranks", "message_bytes",
    "measured_s", "spread_s",
)  # fmt: skip
_MAY_BE_ZERO = frozenset({"window", "is_mla", "gated", "spread_s"})
_DTYPES = frozenset(d.value for d in Dtype)


@dataclass(frozen=True, slots=True)
class FamilyRows:
    """Rows of one family on one device and stack, and the label of the shape that each belongs to."""

    device: str
    stack: str
    version: str
    key: FamilyKey
    frame: pd.DataFrame
    groups: pd.Series[str]

    @property
    def name(self) -> str:
        """Device, stack, version and family."""
        return f"{self.device}/{self.stack} {self.version}/{self.key.name}"


@dataclass(frozen=True, slots=True)
class MeasurementTable:
    """Measurements in the tidy schema; construct it with `MeasurementTable.of`, which checks."""

    frame: pd.DataFrame

    @classmethod
    def of(cls, frame: pd.DataFrame, file: str | None = None) -> MeasurementTable:
        """Check rows and fill optional columns.

        Raises:
            InputError: no rows, a column missing, an unknown operator kind or format, a time or size that is not positive.
        """
        return cls(_checked(frame.copy(), file))

    def __len__(self) -> int:
        return len(self.frame)

    def of_kinds(self, kinds: Sequence[str]) -> MeasurementTable:
        """Rows of these operator kinds; all if none is named.

        Raises:
            InputError: a kind that no row has.
        """
        there = sorted(set(self.frame["op_kind"]))
        for kind in kinds:
            if kind not in there:
                raise InputError("no rows of this kind", field="kind", value=kind, allowed=", ".join(there))
        return MeasurementTable(self.frame[self.frame["op_kind"].isin(kinds)]) if kinds else self

    def families(self) -> Iterator[FamilyRows]:
        """Rows apart by device, stack, version and family."""
        by = ["device", "stack", "version", *FAMILY]
        for values, rows in self.frame.groupby(by, sort=True, dropna=False):
            device, stack, version, *key = (str(v) for v in values)
            family_key = FamilyKey(*key)
            yield FamilyRows(device, stack, version, family_key, rows, _groups(rows, family_key.kind))


def _groups(rows: pd.DataFrame, kind: str) -> pd.Series[str]:
    columns = form_of(kind).group_columns
    label = rows[columns[0]].astype(str)
    for column in columns[1:]:
        label = label + "-" + rows[column].astype(str)
    return label


def _checked(frame: pd.DataFrame, file: str | None) -> pd.DataFrame:
    import pandas as pd

    missing = [c for c in COMMON if c not in frame.columns]
    if missing:
        raise InputError("table lacks a needed column", file=file, field=missing[0], allowed=", ".join(COMMON))
    if frame.empty:
        raise InputError("table has no rows", file=file)
    for column in TEXTS:
        default = frame["dtype"] if column == "act_dtype" else ""
        frame[column] = frame[column].fillna(default).astype(str) if column in frame.columns else default
    for column in NUMBERS:
        if column in frame.columns:
            frame[column] = pd.to_numeric(frame[column], errors="coerce")
        else:
            frame[column] = np.nan
    _check_words(frame, file)
    frame["gated"] = frame["gated"].fillna(1.0)
    for column in ("window", "is_mla"):
        frame[column] = frame[column].fillna(0.0)
    for kind in frame["op_kind"].unique():
        _check_numbers(frame[frame["op_kind"] == kind], kind, file)
    no_label = (frame["op_kind"] == "moe") & (frame["model_shape"] == "")
    if no_label.any():
        parts = frame.loc[no_label, ["hidden_size", "inter_size", "n_local_experts", "top_k"]].astype(int).astype(str)
        frame.loc[no_label, "model_shape"] = parts.agg("-".join, axis=1)
    return frame[[*TEXTS, *NUMBERS]].reset_index(drop=True)


def _check_words(frame: pd.DataFrame, file: str | None) -> None:
    for column, known in (("op_kind", frozenset(FORMS)), ("dtype", _DTYPES), ("act_dtype", _DTYPES)):
        bad = frame.loc[~frame[column].isin(known), column]
        if len(bad):
            line = int(bad.index[0]) + 2
            raise InputError("unknown word", file, line, column, bad.iloc[0], ", ".join(sorted(known)))


def _check_numbers(rows: pd.DataFrame, kind: str, file: str | None) -> None:
    for column in (*form_of(kind).shape_columns, "measured_s"):
        values = rows[column]
        bad = values.isna() | ~np.isfinite(values) | ((values < 0.0) if column in _MAY_BE_ZERO else (values <= 0.0))
        if bad.all() and values.isna().all():
            raise InputError(f"rows of kind {kind!r} need this column", file=file, field=column)
        if bad.any():
            at = int(values.index[bad][0])
            problem = "must be a number above zero" if column not in _MAY_BE_ZERO else "must be a number, not negative"
            raise InputError(problem, file=file, line=at + 2, field=column, value=float(values.loc[at]))


def shape_of(kind: str, rows: pd.DataFrame) -> Shape:
    """The shapes of table rows of one kind, as arrays in the operator's shape type."""

    def column(name: str) -> np.ndarray:
        return rows[name].to_numpy(dtype=np.float64)

    if kind == "gemm":
        return GemmShape(column("m"), column("n"), column("k"))
    if kind == "moe":
        pairs = column("n_assignments")
        return MoeShape(
            column("n_tokens"), pairs, pairs, column("n_experts_hit"), column("max_expert_tokens"), column("n_local_experts"),
            column("hidden_size"), column("inter_size"), column("top_k"), column("gated") > 0,  # type: ignore[arg-type]
        )  # fmt: skip
    if "attention" in kind:
        sizes = ("batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "qk_head_dim", "v_head_dim")
        b, q, kv, h, kvh, qk, v = (column(c) for c in sizes)
        window: Any = column("window")
        return AttentionShape(b, q, kv, h, kvh, qk, v, window, kind.startswith("mla"))
    return CollectiveShape(column("n_ranks"), column("message_bytes"))  # type: ignore[arg-type]


def concat(tables: Iterable[MeasurementTable]) -> MeasurementTable:
    """Several tables as one.

    Raises:
        InputError: no table.
    """
    import pandas as pd

    frames = [t.frame for t in tables]
    if not frames:
        raise InputError("no measurements to put together", hint="import at least one table")
    return MeasurementTable(pd.concat(frames, ignore_index=True))


def read_table(path: str | Path) -> MeasurementTable:
    """Read a table of the tidy schema from ``.csv``, ``.csv.gz`` or ``.parquet``.

    Raises:
        InputError: not there, not readable, or not in the schema.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise InputError("no such table", file=str(path))
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as a table: {error}", file=str(path)) from None
    return MeasurementTable.of(frame, str(path))


def write_table(table: MeasurementTable, path: str | Path) -> None:
    """Write a table as ``.csv``, ``.csv.gz`` or ``.parquet``; columns that no row uses are left out."""
    path = Path(path)
    used = table.frame.loc[:, [c for c in table.frame.columns if c in COMMON or _is_used(table.frame[c])]]
    if path.suffix == ".parquet":
        used.to_parquet(path, index=False)
    else:
        used.to_csv(path, index=False)


def _is_used(column: pd.Series[float]) -> bool:
    return bool((column.notna() & (column != "")).any())
