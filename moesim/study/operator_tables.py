"""Reading layer times measured by vLLM's layer profile: a folder with ``dense.csv``, ``attention.csv``, ``per_sequence.csv``
and, for MoE, ``moe.csv``, times in microseconds.

The folder itself, its subfolder ``tpN``, or ``MODEL/tpN`` below it is used, whichever there is.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.cost.op_tables import AttentionTable, MoeTable, OperatorTables
from moesim.errors import InputError

__all__ = ["find_tables", "read_tables"]

Floats = NDArray[np.float64]
ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")


def find_tables(folder: str, model_names: tuple[str, ...], tp_size: int) -> Path:
    """The folder of one model and tensor split.

    Raises:
        InputError: no such folder, no model of this name in it, or no profile of this split.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError("no such folder", field="operator_tables", value=folder)
    if (root / "dense.csv").is_file():
        return root
    if not any(root.glob("tp*")):
        wanted = {_folded(name) for name in model_names}
        found = [d for d in sorted(root.iterdir()) if d.is_dir() and _folded(d.name) in wanted]
        if not found:
            found = [
                d for d in sorted(root.iterdir()) if d.is_dir() and any(_same(d.name, name) for name in model_names)
            ]
        if len(found) != 1:
            known = ", ".join(d.name for d in sorted(root.iterdir()) if d.is_dir())
            raise InputError("has no profile of this model", field="operator_tables", value=folder, allowed=known or None,
                             hint=f"looked for {model_names[0]}")  # fmt: skip
        root = found[0]
    split = root / f"tp{tp_size}"
    if not (split / "dense.csv").is_file():
        known = ", ".join(sorted(d.name for d in root.glob("tp*")))
        raise InputError(
            "has no profile of this split", field="operator_tables", value=str(split), allowed=known or None
        )
    return split


def read_tables(folder: Path) -> OperatorTables:
    """The tables of one folder; a ``moe.csv`` of ``tp1`` beside it serves where the split has none of its own.

    Raises:
        InputError: a file that is missing, or a column or number in it that is.
    """
    attention = _numbers(folder / "attention.csv", ATTENTION)
    attention[:, 4] *= 1e-6
    moe_file = next((f for f in (folder / "moe.csv", folder.parent / "tp1" / "moe.csv") if f.is_file()), None)
    moe = None
    if moe_file is not None:
        rows = _numbers(moe_file, ("tokens", "activated_experts", "time_us"))
        rows[:, 2] *= 1e-6
        moe = MoeTable.of(rows)
    return OperatorTables(
        source=f"operator tables {folder.parent.name}/{folder.name}", dense=_named(folder / "dense.csv", "tokens"),
        per_sequence=_named(folder / "per_sequence.csv", "sequences"), attention=AttentionTable.of(attention), moe=moe,
    )  # fmt: skip


def _rows(path: Path, columns: tuple[str, ...]) -> list[list[str]]:
    if not path.is_file():
        raise InputError("no such file", file=str(path), field="operator_tables")
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [c for c in columns if c not in (reader.fieldnames or [])]
        if missing:
            raise InputError("has no such column", file=str(path), value=missing[0], allowed=", ".join(columns))
        return [[row[c] for c in columns] for row in reader]


def _numbers(path: Path, columns: tuple[str, ...]) -> Floats:
    rows = _rows(path, columns)
    try:
        values = np.asarray(rows, dtype=float)
    except ValueError as error:
        raise InputError(f"holds something that is not a number: {error}", file=str(path)) from None
    if not len(values) or not np.isfinite(values).all() or (values < 0).any():
        raise InputError("must hold finite numbers that are not negative", file=str(path))
    return values


def _named(path: Path, by: str) -> dict[str, tuple[Floats, Floats]]:
    rows = _rows(path, ("layer", by, "time_us"))
    layers: dict[str, list[tuple[float, float]]] = {}
    for line, (layer, at, time_us) in enumerate(rows, start=2):
        try:
            layers.setdefault(layer, []).append((float(at), float(time_us) * 1e-6))
        except ValueError:
            raise InputError("is not a number", file=str(path), line=line, value=f"{at},{time_us}") from None
    return {name: (np.asarray(p)[:, 0], np.asarray(p)[:, 1]) for name, p in layers.items()}


def _folded(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _same(folder: str, name: str) -> bool:
    """A folder of a later release of the same model, such as ``Qwen3-30B-A3B-Instruct-2507``."""
    return _folded(folder).startswith(_folded(name) + "-")
