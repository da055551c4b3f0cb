"""Results on disk: one Parquet file per finished task, written beside and moved into place, found again by identity."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.errors import InputError
from moesim.study.sweep.task import Answer

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PARTS", "Store"]

PARTS = "cases"
TEXTS = ("outcome", "reason", "origin", "interval_basis", "against_outcome")


@dataclass(slots=True)
class Store:
    """Answers in a folder. Nothing is ever rewritten: parts are added, and of a case answered twice the last one counts."""

    folder: Path
    _done: set[str] = field(default_factory=set)
    _parts: list[Path] = field(default_factory=list)
    n_unreadable: int = 0

    @classmethod
    def open(cls, out_dir: Path) -> Store:
        """The store in `out_dir`, made if missing; parts that cannot be read are left alone and counted.

        Raises:
            InputError: `out_dir` is a file or cannot be written.
        """
        folder = out_dir / PARTS
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(
                "is a file where a directory is meant", file=str(out_dir), hint="name another with --out"
            ) from None
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror or error}", file=str(out_dir)) from None
        store = cls(folder)
        for left in folder.glob(".part-*"):
            left.unlink(missing_ok=True)
        for path in sorted(folder.glob("part-*.parquet")):
            table = _read(path, ["id"])
            if table is None:
                store.n_unreadable += 1
                continue
            store._done.update(table.column("id").to_pylist())
            store._parts.append(path)
        return store

    def has(self, ids: Sequence[str]) -> bool:
        """Whether all these cases are answered."""
        return self._done.issuperset(ids)

    def count(self, ids: Iterable[str]) -> int:
        """How many of these cases are answered."""
        return sum(i in self._done for i in ids)

    @property
    def n_answers(self) -> int:
        """Cases answered by this or any earlier sweep in the folder."""
        return len(self._done)

    def add(self, answer: Answer) -> None:
        """Write a task's answers so that they are there whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays: dict[str, Any] = {"id": pa.array(answer.ids, pa.string())}
        for name, values in answer.columns.items():
            if values.dtype == object:
                arrays[name] = pa.array(values.tolist(), pa.string())
            else:
                arrays[name] = pa.array(np.asarray(values, dtype=float), pa.float64())
        handle, name = tempfile.mkstemp(prefix=".part-", dir=self.folder)
        os.close(handle)
        pq.write_table(pa.table(arrays), name)
        path = self.folder / f"part-{answer.ids[0]}-{len(answer.ids)}.parquet"
        Path(name).replace(path)
        self._done.update(answer.ids)
        if path not in self._parts:
            self._parts.append(path)

    def columns(self, ids: Sequence[str]) -> Mapping[str, Any]:
        """Result columns of these cases in order; cases without an answer have outcome None."""
        import pyarrow as pa

        wanted = set(ids)
        tables = [t for t in (_read(path, None) for path in self._parts) if t is not None]
        tables = [t for t in tables if not wanted.isdisjoint(t.column("id").to_pylist())]
        if not tables:
            return {"outcome": np.full(len(ids), None, dtype=object)}
        whole: pa.Table = pa.concat_tables(tables, promote_options="default")
        place = {key: i for i, key in enumerate(whole.column("id").to_pylist())}
        rows = np.asarray([place.get(key, -1) for key in ids])
        found: dict[str, Any] = {}
        for name in whole.column_names:
            if name == "id":
                continue
            values = whole.column(name).to_numpy(zero_copy_only=False)
            if pa.types.is_string(whole.column(name).type):
                values = np.asarray([None if v is None else str(v) for v in values.tolist()], dtype=object)
                found[name] = np.where(rows >= 0, values[rows], None)
            else:
                found[name] = np.where(rows >= 0, np.asarray(values, dtype=float)[rows], np.nan)
        return found


def _read(path: Path, columns: list[str] | None) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException, KeyError):
        return None
