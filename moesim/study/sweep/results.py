"""A sweep's answers as columns, in the order of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim._version import __version__
from moesim.specs.sweep import SweepSpec
from moesim.study.sweep.axes import Column
from moesim.study.sweep.store import Store
from moesim.study.sweep.task import Answer
from moesim.study.sweep.tasks import Layout
from moesim.study.sweep.words import settings_words

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SweepResult", "gather"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SweepResult:
    """All cases: `settings` as columns of the axes, `columns` of results; `outcome` is None for a case not answered yet."""

    name: str
    spec: SweepSpec
    engine: str
    layout: Layout
    settings: tuple[Column, ...]
    ids: tuple[str, ...]
    columns: Mapping[str, Any]
    interrupted: bool = False
    moesim_version: str = __version__

    @property
    def n_cases(self) -> int:
        """Cases of the sweep."""
        return len(self.ids)

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which cases have times."""
        return np.asarray(self.columns["outcome"] == "ok")

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which cases have an answer, an infeasible one included."""
        return np.asarray([o is not None for o in self.columns["outcome"]])

    def number(self, name: str) -> Floats:
        """A result column, or an axis with numbers as values, as floats; NaN where there is none.

        Raises:
            KeyError: no column and no axis of this name.
        """
        if name in self.columns:
            return np.asarray(self.columns[name], dtype=float)
        column = next((c for c in self.settings if c.path == name), None)
        if column is None:
            raise KeyError(name)
        return np.asarray(column.values, dtype=float)[column.codes]

    @property
    def condition_paths(self) -> tuple[str, ...]:
        """Axes that are met, not chosen."""
        named = self.spec.report.condition
        named = (named,) if isinstance(named, str) else named or ()
        return tuple(c.path for c in self.settings if c.path in named)

    @property
    def condition(self) -> Column | None:
        """What cases are compared within, if the report names any: the axis, or words for each meeting of several axes."""
        paths = self.condition_paths
        own = [c for c in self.settings if c.path in paths]
        if len(own) < 2:
            return own[0] if own else None
        code = np.zeros(self.n_cases, dtype=np.int64)
        for column in own:
            code = code * len(column.values) + column.codes
        _, first, codes = np.unique(code, return_index=True, return_inverse=True)
        values = tuple(settings_words({c.path: c.of(int(i)) for c in own}) for i in first)
        return Column("", values, codes.astype(np.int32))

    def named_condition(self, case: int) -> str:
        """The condition of a case in words."""
        return settings_words({c.path: c.of(case) for c in self.settings if c.path in self.condition_paths})

    def objective(self) -> Floats:
        """What the report optimises, smaller is better; NaN for cases without times.

        With a condition: how many times worse than the best case of the same condition.
        """
        values = np.where(self.ok, self.number(self.spec.report.objective), np.nan)
        condition = self.condition
        if condition is None:
            return -values if self.spec.report.maximise else values
        found = np.full(self.n_cases, np.nan)
        for code in range(len(condition.values)):
            own = condition.codes == code
            inside = values[own]
            if np.isfinite(inside).any():
                best = np.nanmax(inside) if self.spec.report.maximise else np.nanmin(inside)
                found[own] = best / inside if self.spec.report.maximise else inside / best
        return found

    def outcomes(self) -> dict[str, int]:
        """How many cases ended how, most frequent first."""
        words, counts = np.unique([str(o) for o in self.columns["outcome"]], return_counts=True)
        return dict(sorted(zip(words.tolist(), counts.tolist(), strict=True), key=lambda p: -p[1]))

    def configuration(self, case: int) -> dict[str, Any]:
        """The settings of one case, by path."""
        return {column.path: column.of(case) for column in self.settings}

    def to_frame(self) -> pd.DataFrame:
        """One row per case: identity, settings by path, results."""
        import pandas as pd

        data: dict[str, Any] = {"id": list(self.ids)}
        for column in self.settings:
            values = [_flat(v) for v in column.values]
            data[column.path] = np.asarray(values, dtype=None if _same_type(values) else object)[column.codes]
        data |= {name if name not in data else f"result.{name}": values for name, values in self.columns.items()}
        return pd.DataFrame(data)


def _flat(value: Any) -> Any:
    return str(value) if isinstance(value, tuple | dict) else value


def _same_type(values: Sequence[Any]) -> bool:
    return len({type(v) for v in values}) == 1


def gather(
    layout: Layout, name: str, store: Store | None, memory: Sequence[Answer], *, interrupted: bool
) -> SweepResult:
    """Answers from the store, or those in memory, in case order."""
    columns = store.columns(layout.ids) if store is not None else _in_order(layout.ids, memory)
    return SweepResult(
        name, layout.spec, layout.engine.value, layout, layout.columns, layout.ids, columns, interrupted=interrupted
    )  # fmt: skip


def _in_order(ids: Sequence[str], memory: Sequence[Answer]) -> Mapping[str, Any]:
    if not memory:
        return {"outcome": np.full(len(ids), None, dtype=object)}
    place = {key: i for i, key in enumerate(key for answer in memory for key in answer.ids)}
    rows = np.asarray([place.get(key, -1) for key in ids])
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for answer in memory for name in answer.columns):
        is_text = any(a.columns[name].dtype == object for a in memory if name in a.columns)
        empty: Any = None if is_text else np.nan
        parts = [
            a.columns[name] if name in a.columns else np.full(len(a.ids), empty, dtype=object if is_text else float)
            for a in memory
        ]
        values = np.concatenate(parts)
        found[name] = np.where(rows >= 0, values[rows], empty)
    return found
