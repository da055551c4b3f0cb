"""What a sweep says: its best case, its front, how much each input moves the answer, where a ratio crosses 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import SweepEngine
from moesim.study.flips import crossings
from moesim.study.sweep.axes import Column
from moesim.study.sweep.group import answer
from moesim.study.sweep.parts import GroupCases, Rules, is_quick
from moesim.study.sweep.paths import Variant, read_path, variant_of
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.tasks import numbers_of

__all__ = ["Effect", "Swing", "best_case", "crossing_lines", "effects", "front", "grid_of", "swings"]

Floats = NDArray[np.float64]
#: How far an input is moved down and up to see what it does: to 4/5 and 5/4 of it.
STEP = 1.25


@dataclass(frozen=True, slots=True)
class Effect:
    """An axis: the best objective that each of its values allows, and the worst of them over the best."""

    path: str
    values: tuple[Any, ...]
    best: tuple[float, ...]
    ratio: float


@dataclass(frozen=True, slots=True)
class Swing:
    """An input of the best case: the objective at 4/5 and 5/4 of it, over the objective as it is (None: cannot run)."""

    what: str
    low: float | None
    high: float | None

    @property
    def size(self) -> float:
        """The larger change, as a factor above 1."""
        return max((max(r, 1.0 / r) for r in (self.low, self.high) if r is not None and r > 0), default=1.0)


def best_case(result: SweepResult) -> int | None:
    """The case with the smallest objective; the first of equals; None where nothing runs.

    With a condition: of its middle value among those at which anything runs.
    """
    values = result.objective()
    condition = result.condition
    if condition is not None:
        runs = [code for code in range(len(condition.values)) if np.isfinite(values[condition.codes == code]).any()]
        if runs:
            values = np.where(condition.codes == runs[len(runs) // 2], values, np.nan)
    return int(np.nanargmin(values)) if np.isfinite(values).any() else None


def front(x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Points that no other point beats in both (larger is better); of equal points all count."""
    found = np.zeros(len(x), dtype=bool)
    rows = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    rows = rows[np.lexsort((-y[rows], -x[rows]))]
    best = -np.inf
    last: tuple[float, float] | None = None
    for i in rows:
        if y[i] > best or (float(x[i]), float(y[i])) == last:
            found[i], best, last = True, max(best, float(y[i])), (float(x[i]), float(y[i]))
    return found


def effects(result: SweepResult) -> list[Effect]:
    """Axes by how much fixing them to their worst value costs, the largest first; axes of one value are left out."""
    values, found = result.objective(), []
    for column in result.settings:
        if len(column.values) < 2 or column.path in result.condition_paths:
            continue
        best = np.asarray([_smallest_of(result, values, column.codes == code) for code in range(len(column.values))])
        known = best[np.isfinite(best)]
        if len(known) and (known > 0).all():
            found.append(Effect(column.path, column.values, tuple(best.tolist()), float(known.max() / known.min())))
        elif len(known) and (known < 0).all():
            found.append(Effect(column.path, column.values, tuple(best.tolist()), float(known.min() / known.max())))
    return sorted(found, key=lambda e: -e.ratio)


def _smallest_of(result: SweepResult, values: Floats, rows: NDArray[np.bool_]) -> float:
    """The best of some cases; with a condition, the geometric mean over its values of the best at each."""
    condition = result.condition
    if condition is None:
        return _smallest(values[rows])
    each = np.asarray([_smallest(values[rows & (condition.codes == c)]) for c in range(len(condition.values))])
    each = each[np.isfinite(each)]
    return float(np.exp(np.log(each).mean())) if len(each) else float("nan")


def _smallest(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.min()) if len(known) else float("nan")


def grid_of(
    result: SweepResult, x: Column, y: Column, inside: NDArray[np.bool_] | None = None
) -> tuple[Floats, NDArray[np.intp]]:
    """Of every pair of values the best objective over all other axes, [y, x], and the case it comes from (-1: none runs).

    Where none runs the case is the first of that pair, its objective NaN. `inside` marks the cases that count.
    """
    values = result.objective()
    best = np.full((len(y.values), len(x.values)), np.nan)
    case = np.full(best.shape, -1, dtype=np.intp)
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
    for i in order[::-1] if inside is None else order[::-1][inside[order[::-1]]]:
        best[y.codes[i], x.codes[i]], case[y.codes[i], x.codes[i]] = values[i], i
    return best, case


def crossing_lines(result: SweepResult, x: Column, y: Column, column: str) -> dict[Any, list[float]]:
    """For every value of `y` the values of `x` at which a ratio crosses 1 (the highest of each pair counts, its best design)."""
    if not all(isinstance(v, int | float) for v in x.values):
        return {}
    ratio = np.where(result.ok, result.number(column), np.nan)
    order = np.argsort(np.asarray(x.values, dtype=float))
    found = {}
    for code, value in enumerate(y.values):
        line: list[float | None] = []
        for place in order:
            rows = np.flatnonzero((y.codes == code) & (x.codes == place))
            known = ratio[rows][np.isfinite(ratio[rows])]
            r = float(known.max()) if len(known) else float("nan")
            line.append(r if np.isfinite(r) and r > 0 else None)
        found[value] = crossings([float(x.values[i]) for i in order], line)
    return found


def swings(result: SweepResult, case: int) -> list[Swing]:
    """What 4/5 and 5/4 of each other input does to the best case, in closed form, the largest first.

    Empty for simulated sweeps and for systems that the closed form over arrays cannot answer.
    """
    layout = result.layout
    if layout.engine is not SweepEngine.ANALYTIC or isinstance(layout.base, ServeScenarioSpec):
        return []
    if result.spec.report.objective.startswith(("loss", "other_loss", "usd_ratio", "tpot_ratio")):
        return []
    paths = {read_path(c.path, layout.base, layout.system): c.of(case) for c in layout.columns}
    variant = variant_of(layout.base, {p: v for p, v in paths.items() if not p.is_number})
    if not is_quick(variant, layout.system):
        return []
    numbers = numbers_of(
        variant, layout.system, {p: np.asarray([float(v)]) for p, v in paths.items() if p.is_number}, 1
    )  # fmt: skip
    for name, column in (
        ("n_routed_experts", "n_experts"), ("num_experts_per_tok", "top_k"), ("moe_intermediate_size", "expert_width"),
        ("concurrency", "concurrency"),
    ):  # fmt: skip
        solved = float(result.number(column)[case])
        if (name in numbers or layout.tasks[0].rules.targets) and np.isfinite(solved):
            numbers[name] = np.asarray([solved])
    numbers.pop("split", None)
    rules = Rules(seed=layout.tasks[0].rules.seed)
    base = _objective(result, variant, numbers, rules)
    found = []
    for what, change in _changes(variant, numbers).items():
        at = []
        for factor in (1.0 / STEP, STEP):
            other, values = change(factor)
            at.append(_objective(result, other, values, rules))
        low, high = (None if base is None or v is None else v / base for v in at)
        found.append(Swing(what, low, high))
    return sorted(found, key=lambda s: -s.size)


def _changes(variant: Variant, numbers: Mapping[str, Floats]) -> dict[str, Any]:
    def scaled(name: str) -> Any:
        return lambda f: (variant, {**numbers, name: np.maximum(1.0, np.round(numbers[name] * f))})

    return {
        "requests in flight": scaled("concurrency"),
        "input tokens": scaled("input_tokens"),
        "output tokens": scaled("output_tokens"),
        "scale-up links": lambda f: (replace(variant, up_scale=variant.up_scale * f), numbers),
        "NICs": lambda f: (replace(variant, nic_scale=variant.nic_scale * f), numbers),
    }


def _objective(result: SweepResult, variant: Variant, numbers: Mapping[str, Floats], rules: Rules) -> float | None:
    try:
        columns = answer(GroupCases(variant, result.layout.system, dict(numbers)), rules)
    except InputError:
        return None
    value = float(columns[result.spec.report.objective][0])
    return value if columns["outcome"][0] == "ok" and np.isfinite(value) else None
