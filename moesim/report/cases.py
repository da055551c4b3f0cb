"""Cases that a reader can point at, filter and sort: the data that the script of an explorer page reads."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from moesim.report.document import Document

__all__ = ["Case", "Cases", "Column", "marked_cases"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table; settings come first in tooltips and can be filtered by where they have few values."""

    key: str
    label: str
    is_setting: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A row; `number` is what marks of drawings name, `why` says what is wrong where `is_good` is false."""

    number: int
    is_good: bool
    values: tuple[Any, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Cases:
    """The rows that a page holds, of `n_all`; numbers are in the units that the labels name.

    `good_words` and `bad_words` name the two halves in the filter; `sort` is the column to begin with; `rest` says how the rows
    were chosen where they are not all, and `file` holds all of them.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Case, ...]
    n_all: int
    sort: int | None
    is_descending: bool
    noun: str = "cases"
    good_words: str = "that run"
    bad_words: str = "that do not run"
    why_words: str = "why not"
    rest: str = ""
    file: str = "results.csv"

    def as_json(self) -> str:
        """JSON that may stand inside a script element."""
        rows = [[r.number, int(r.is_good), *map(_plain, r.values), r.why] for r in self.rows]
        columns = [{"key": c.key, "label": c.label, "setting": c.is_setting} for c in self.columns]
        data = {"columns": columns, "rows": rows, "n": self.n_all, "name": self.name, "descending": self.is_descending,
                "sort": self.sort, "why": self.why_words}  # fmt: skip
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def marked_cases(document: Document) -> list[int]:
    """Numbers of the cases that marks of the drawings stand for."""
    return sorted({int(i) for f in document.figures() for i in re.findall(r'data-i="(\d+)"', f.svg)})


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if isinstance(value, int | str | bool) or value is None else str(value)
