"""Answer a task: what runs on a worker, wherever that is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CalibratedOps
from moesim.errors import InputError
from moesim.specs.hardware import Hardware
from moesim.specs.scenario import Basis, Engine
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import SweepEngine
from moesim.study.links import scaled_cost
from moesim.study.points import measure_point
from moesim.study.sweep.group import answer, answer_all
from moesim.study.sweep.parts import NUMBERS, WITH_ENDS, GroupCases, is_quick, system_parts
from moesim.study.sweep.paths import variant_of
from moesim.study.sweep.serving import serve_columns, serve_variant
from moesim.study.sweep.shapes import changed_model
from moesim.study.sweep.tasks import Group, Task, numbers_of
from moesim.study.sweep.twins import twin_columns
from moesim.study.systems import build_system
from moesim.study.uncertainty import Spread, quotient

__all__ = ["RATIOS", "Answer", "run_task"]

Columns = dict[str, Any]
#: Result columns of a sweep against another system: other / measured, above 1 where the measured one is better.
RATIOS = {"usd_ratio": "usd_per_million_output_tokens", "tpot_ratio": "tpot_s", "ttft_ratio": "ttft_s"}
_DIGITS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A task's result columns with the identities of its cases, or what was wrong with its input."""

    index: int
    ids: tuple[str, ...]
    columns: Columns
    error: str | None = None


def run_task(task: Task) -> Answer:
    """All cases of a task; an input error comes back as text, since it would not survive the way between processes."""
    try:
        parts = _groups(task)
    except InputError as error:
        return Answer(task.index, task.ids, {}, str(error))
    names = list(dict.fromkeys(name for part in parts for name in part))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return Answer(task.index, task.ids, {name: _rounded(values) for name, values in columns.items()})


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    """Twelve significant digits: what is left does not depend on how many cases were added up side by side."""
    if values.dtype == object:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(values))))
        scaled = np.round(values * scale) / scale
    return np.where(np.isfinite(scaled), scaled, values)


def _groups(task: Task) -> list[Columns]:
    """Columns of every group; those that arrays can answer go together."""
    base = task.base
    if isinstance(base, ServeScenarioSpec):
        return [_served(base, group, task.rules.seed) for group, _ in task.groups]
    wanted: list[tuple[int, GroupCases]] = []
    for i, (group, numbers) in enumerate(task.groups):
        if group.bad is None:
            variant = variant_of(base, group.settings)
            for system in (task.system, task.against):
                if isinstance(system, int):
                    own = numbers_of(variant, system, numbers, len(group.rows))
                    wanted.append((i, GroupCases(variant, system, own, is_other=system == task.against)))
    quick = [task.engine is SweepEngine.ANALYTIC and is_quick(cases.variant, cases.system) for _, cases in wanted]
    together = iter(answer_all([cases for (_, cases), q in zip(wanted, quick, strict=True) if q], task.rules))
    found: dict[int, list[Columns]] = {}
    for (i, cases), q in zip(wanted, quick, strict=True):
        found.setdefault(i, []).append(next(together) if q else _one_by_one(task, cases))
        if isinstance(task.against, Basis):
            found[i].append(twin_columns(cases, found[i][0], task.against, task.rules))
    return [_joined(task, group, found.get(i)) for i, (group, _) in enumerate(task.groups)]


def _served(base: ServeScenarioSpec, group: Group, seed: int) -> Columns:
    """Equal settings would give equal answers, so one run stands for all rows of a group."""
    if group.bad is not None:
        return _nothing(len(group.rows), "invalid configuration", group.bad, False)
    one = serve_columns(serve_variant(base, group.settings), seed)
    return {name: np.repeat(values, len(group.rows)) for name, values in one.items()}


def _joined(task: Task, group: Group, answers: list[Columns] | None) -> Columns:
    if answers is None:
        return _nothing(len(group.rows), "invalid configuration", str(group.bad), task.against is not None)
    out = answers[0]
    if task.against is not None:
        other = answers[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            out |= {name: other[column] / out[column] for name, column in RATIOS.items()}
            for name, column in RATIOS.items():
                spread = quotient(_spread(other, column), _spread(out, column))
                out[f"{name}_low"], out[f"{name}_high"] = spread.ends(out[name])
        out["against_usd_per_million_output_tokens"] = other["usd_per_million_output_tokens"]
        out["against_outcome"] = other["outcome"]
    return out


def _spread(columns: Columns, name: str) -> Spread:
    """The interval of a result column."""
    value, low, high = (columns[name + end] for end in ("", "_low", "_high"))
    return Spread(np.log(value / low), np.log(high / value))


def _nothing(n: int, outcome: str, reason: str, has_other: bool) -> Columns:
    names = [
        *NUMBERS,
        *(f"{name}{end}" for name in RATIOS if has_other for end in ("", "_low", "_high")),
        *(["against_usd_per_million_output_tokens"] if has_other else []),
    ]
    out: Columns = {name: np.full(n, np.nan) for name in names}
    out |= {"outcome": np.full(n, outcome, dtype=object), "reason": np.full(n, reason, dtype=object)}
    out["origin"] = out["interval_basis"] = np.full(n, None, dtype=object)
    return out | ({"against_outcome": np.full(n, None, dtype=object)} if has_other else {})


def _one_by_one(task: Task, cases: GroupCases) -> Columns:
    """Simulated passes, and systems that arrays cannot answer: sizes and memory by arrays, times case by case."""
    out = answer(cases, task.rules)
    engine = Engine.FLOW if task.engine is SweepEngine.FLOW else Engine.ANALYTIC
    parts = system_parts(cases.variant, cases.system)
    for i in np.flatnonzero(out["outcome"] == "ok"):
        _measure(cases, out, int(i), engine, parts.hardware, parts.calibration, task.rules.seed)
    return out


def _measure(
    cases: GroupCases, out: Columns, i: int, engine: Engine, hardware: Hardware, calibration: CalibratedOps | None, seed: int
) -> None:  # fmt: skip
    """One case by `measure_point`, its draws from the sweep's seed."""
    spec, variant = cases.spec, cases.variant
    model = system_parts(variant, cases.system).model
    if model.is_moe:
        names = (
            ("n_routed_experts", "n_experts"),
            ("num_experts_per_tok", "top_k"),
            ("moe_intermediate_size", "expert_width"),
        )
        ffn = model.moe_ffn
        now = {field: int(out[column][i]) for field, column in names}
        changed = {field: value for field, value in now.items() if value != getattr(ffn, field)}
        model = changed_model(model, changed) if changed else model
    price = variant.price_usd_per_device_h
    priced = hardware if price is None else hardware.model_copy(update={"price_usd_per_device_h": price})
    rng = np.random.default_rng(seed)
    system = build_system(spec, model, priced, calibration, rng)
    cost = scaled_cost(system.instance.cost, variant.up_scale, variant.nic_scale)
    if cost is not system.instance.cost:
        system = replace(system, instance=replace(system.instance, cost=cost))
    names_of = ("input_tokens", "output_tokens", "cached_prefix_tokens", "max_pass_tokens")
    workload = variant.scenario.workload.model_copy(update={name: int(cases.numbers[name][i]) for name in names_of})
    point = measure_point(system, priced, workload, int(out["concurrency"][i]), engine, rng, explain=False)
    if point.outcome != "ok":
        out["outcome"][i], out["reason"][i] = point.outcome, point.reason
    for name in NUMBERS:
        if hasattr(point, name) and name != "concurrency":
            value = getattr(point, name)
            out[name][i] = np.nan if value is None else value
    for name in WITH_ENDS:
        ends = point.intervals.get(name, (np.nan, np.nan))
        out[f"{name}_low"][i], out[f"{name}_high"][i] = ends
    out["interval_basis"][i] = point.interval_basis
    out["origin"][i] = point.origin.value
