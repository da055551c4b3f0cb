"""From a sweep file to tasks: cases grouped by what they share, each with its identity, cut the same way whoever runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.specs.catalog import load_hardware, path_of
from moesim.specs.load import line_of, read_yaml, validate
from moesim.specs.scenario import ScenarioSpec
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import ConstraintKind, SweepEngine, SweepSpec
from moesim.study.resolve import resolve_model
from moesim.study.run import load_scenario
from moesim.study.sweep.axes import Column, expand
from moesim.study.sweep.constraints import resolve
from moesim.study.sweep.group import Rules, is_quick, system_parts
from moesim.study.sweep.identity import (
    calibration_identity,
    canonical,
    case_ids,
    fingerprint,
    group_key,
    shipped_calibrations,
)
from moesim.study.sweep.laws import LAWS
from moesim.study.sweep.paths import Path, Variant, read_path, system_of, variant_of, workload_numbers
from moesim.study.sweep.serving import read_serve_path, serve_base, serve_variant

__all__ = ["Group", "Plan", "Task", "load_sweep", "make_plan"]

#: Cases in one array, and what one task holds at most.
CHUNK, TASK_CASES, TASK_GROUPS, SLOW_CASES = 8192, 8192, 32, 8


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Cases that share everything but numbers; `bad` says why none of them makes sense."""

    settings: Mapping[Path, Any]
    rows: NDArray[np.intp]
    bad: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A piece of work: parts of groups, with the numbers of their cases."""

    index: int
    engine: SweepEngine
    base: ScenarioSpec | ServeScenarioSpec
    system: int
    against: int | None
    rules: Rules
    groups: tuple[tuple[Group, Mapping[Path, NDArray[np.float64]]], ...]
    ids: tuple[str, ...]

    @property
    def n_cases(self) -> int:
        """Cases in it."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A sweep made ready: columns of settings, identities in case order, and tasks."""

    spec: SweepSpec
    engine: SweepEngine
    base: ScenarioSpec | ServeScenarioSpec
    system: int
    against: int | None
    columns: tuple[Column, ...]
    ids: tuple[str, ...]
    tasks: tuple[Task, ...]
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_cases(self) -> int:
        """Cases of the sweep."""
        return len(self.ids)


def load_sweep(name: str) -> tuple[SweepSpec, File]:
    """A sweep by shipped name or path.

    Raises:
        InputError: for the first thing wrong in it, with file, line and field.
    """
    path = File(name)
    if not path.is_file():
        shipped = path_of("scenario", "mixtral-vs-llama-2-8xh100").parent / "sweeps" / f"{name}.yaml"
        if shipped.is_file() and "/" not in name:
            path = shipped
        elif path.suffix not in (".yaml", ".yml"):
            known = sorted(p.stem for p in shipped.parent.glob("*.yaml"))
            raise InputError(
                "no sweep of this name", field="sweep", value=name, allowed=", ".join(known) or "a YAML file"
            )
    return validate(SweepSpec, read_yaml(path), str(path)), path


def make_plan(spec: SweepSpec, *, engine: SweepEngine | None = None, file: File | None = None) -> Plan:
    """Check a sweep against its base and lay out its cases.

    Raises:
        InputError: a base, path or value that is wrong, with the file's line where known.
    """
    try:
        return _make_plan(spec, engine or spec.engine, file)
    except InputError as error:
        if file is not None and error.file is None:
            data = read_yaml(file)
            error.at(file=str(file), line=_line(data, error))
        raise


def _line(data: Any, error: InputError) -> int | None:
    """The line of the axis or constraint that an error is about."""
    for i, axis in enumerate(data.get("axes", ())):
        inner = (
            [axis, *axis.get("zip", ()), *(axis.get("sample", {}) or {}).get("over", ())]
            if isinstance(axis, dict)
            else []
        )
        if any(isinstance(a, dict) and a.get("path") in (error.field, error.value) for a in inner):
            return line_of(data, ("axes", i))
    keys = (error.field or "").split(".")
    return line_of(data, tuple(int(k) if k.isdigit() else k for k in keys))


def base_scenario(spec: SweepSpec, file: File | None) -> ScenarioSpec:
    """The base: shipped, in a file (beside the sweep's, if not found otherwise), or inline."""
    if isinstance(spec.base, dict):
        return validate(ScenarioSpec, spec.base, None if file is None else str(file))
    beside = file.parent / spec.base if file is not None else None
    return load_scenario(str(beside) if beside is not None and beside.is_file() else spec.base)[0]


def _make_plan(spec: SweepSpec, engine: SweepEngine, file: File | None) -> Plan:
    if engine is SweepEngine.SERVING:
        return _served_plan(spec, file)
    base = base_scenario(spec, file)
    system = system_of(base, spec.system)
    against = None if spec.against is None else system_of(base, spec.against)
    columns = expand(spec.axes)
    paths = [read_path(column.path, base, system) for column in columns]
    _check_numbers(columns, paths)
    if spec.law is not None and spec.law.name not in LAWS:
        raise InputError("no such scaling law", field="law.name", value=spec.law.name, allowed=", ".join(LAWS))
    _check_law(spec, paths)
    model = system_parts(Variant(base), system).model
    targets = tuple(resolve(c, model) for c in spec.constraints)
    rules = Rules(targets, None if spec.law is None else spec.law.name, spec.seed)
    _check_values(base, columns, paths, system, against)
    return _laid_out(Plan(spec, engine, base, system, against, columns, (), ()), paths, rules)


def _served_plan(spec: SweepSpec, file: File | None) -> Plan:
    base = serve_base(spec, file)
    columns = expand(spec.axes)
    paths = [read_serve_path(column.path) for column in columns]
    for column in columns:
        for code in range(len(column.values)):
            case = int(np.flatnonzero(column.codes == code)[0])
            try:
                serve_variant(base, {p: c.of(case) for c, p in zip(columns, paths, strict=True)})
            except ValueError:
                continue
    return _laid_out(Plan(spec, SweepEngine.SERVING, base, 0, None, columns, (), ()), paths, Rules(seed=spec.seed))


def _check_law(spec: SweepSpec, paths: Sequence[Path]) -> None:
    given = any(c.kind is ConstraintKind.TRAINING_COMPUTE for c in spec.constraints)
    given = given or any(p.root == "training" for p in paths)
    if spec.law is not None and not given:
        raise InputError(
            "needs a training compute", field="law",
            hint="add the constraint fixed_training_compute or the axis training.compute_flop",
        )  # fmt: skip


def _check_numbers(columns: Sequence[Column], paths: Sequence[Path]) -> None:
    for column, path in zip(columns, paths, strict=True):
        if not path.is_number:
            continue
        for value in column.values:
            small = 0 if path.name == "cached_prefix_tokens" else 1
            whole = isinstance(value, int) or path.root == "training"
            fits = isinstance(value, int | float) and not isinstance(value, bool) and whole and small <= value <= 1e30
            if not fits:
                raise InputError(f"must be a whole number, {small} or more", field=path.text, value=value)


def _check_values(
    base: ScenarioSpec, columns: Sequence[Column], paths: Sequence[Path], system: int, against: int | None
) -> None:
    """Every value once, the other axes at their first, so that a wrong one stops the sweep before it starts."""
    structural = [(c, p) for c, p in zip(columns, paths, strict=True) if not p.is_number]
    for column, _ in structural:
        for code in range(len(column.values)):
            case = int(np.flatnonzero(column.codes == code)[0])
            settings = {p: c.of(case) for c, p in structural}
            try:
                variant = variant_of(base, settings)
                for i in (system, against):
                    if i is not None:
                        system_parts(variant, i)
            except ValueError:
                continue


def _laid_out(plan: Plan, paths: Sequence[Path], rules: Rules) -> Plan:
    """Groups in order of their first case, cut into chunks, packed into tasks."""
    structural = [i for i, p in enumerate(paths) if not p.is_number]
    numeric = [i for i, p in enumerate(paths) if p.is_number]
    n = len(plan.columns[0].codes)
    code = np.zeros(n, dtype=np.int64)
    for i in structural:
        _, code = np.unique(code * len(plan.columns[i].values) + plan.columns[i].codes, return_inverse=True)
    order = np.argsort(code, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
    pieces.sort(key=lambda rows: int(rows[0]))
    texts = {i: [canonical(v) for v in plan.columns[i].values] for i in numeric}
    values = {i: np.asarray(plan.columns[i].values, dtype=float) for i in numeric}
    ids: list[str] = [""] * n
    packer = _Packer(plan, rules)
    for rows in pieces:
        settings = {paths[i]: plan.columns[i].of(int(rows[0])) for i in structural}
        key, bad, quick = _identify(plan, rules, settings)
        codes = [plan.columns[i].codes[rows].tolist() for i in numeric]
        found = case_ids(key, [_name(paths[i]) for i in numeric], [texts[i] for i in numeric], codes)
        found = found or [key.hexdigest()[:24]] * len(rows)
        for row, own in zip(rows.tolist(), found, strict=True):
            ids[row] = own
        size = CHUNK if quick else SLOW_CASES
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            numbers = {paths[i]: values[i][plan.columns[i].codes[part]] for i in numeric}
            packer.add(Group(settings, part, bad), numbers, found[start : start + size], quick)
    return Plan(
        plan.spec, plan.engine, plan.base, plan.system, plan.against, plan.columns, tuple(ids), packer.done(),
    )  # fmt: skip


def _name(path: Path) -> str:
    return f"{path.root}.{'' if path.system is None else path.system}.{path.name}"


def _identify(plan: Plan, rules: Rules, settings: Mapping[Path, Any]) -> tuple[Any, str | None, bool]:
    """The hash of what a group shares, why it makes no sense if it does not, and whether arrays can answer it."""
    parts: dict[str, Any] = {
        "engine": plan.engine.value, "base": plan.base.model_copy(update={"title": "-", "description": ""}),
        "system": plan.system, "against": plan.against, "seed": rules.seed, "law": rules.law,
        "targets": [[t.kind.value, t.value, t.by.value, t.multiple_of, t.tolerance_frac] for t in rules.targets],
        "settings": {_name(path): value for path, value in settings.items()},
    }  # fmt: skip
    bad, quick = None, plan.engine is SweepEngine.ANALYTIC
    if isinstance(plan.base, ServeScenarioSpec):
        try:
            parts["inputs"] = _served_inputs(serve_variant(plan.base, settings))
        except (ValueError, InputError) as error:
            bad = str(error)
        return group_key(parts), bad, False
    try:
        variant = variant_of(plan.base, settings)
        for i in (plan.system, plan.against):
            if i is not None:
                found = system_parts(variant, i)
                parts[f"inputs {i}"] = [
                    fingerprint(found.hardware), fingerprint(found.model), calibration_identity(found.calibration)
                ]  # fmt: skip
                quick = quick and is_quick(variant, i)
    except ValueError as error:
        bad = str(error)
    except InputError as error:
        bad = str(error)
    return group_key(parts), bad, quick


def _served_inputs(variant: ServeScenarioSpec) -> list[str]:
    hardware = load_hardware(variant.hardware, variant.n_devices)
    return [fingerprint(hardware), fingerprint(resolve_model(variant.system)), shipped_calibrations()]


class _Packer:
    """Fills tasks; what goes into one depends on the sweep alone, so that a resumed run meets the same tasks."""

    def __init__(self, plan: Plan, rules: Rules) -> None:
        self.plan, self.rules = plan, rules
        self.tasks: list[Task] = []
        self.groups: list[tuple[Group, Mapping[Path, NDArray[np.float64]]]] = []
        self.ids: list[str] = []

    def add(self, group: Group, numbers: Mapping[Path, NDArray[np.float64]], ids: Sequence[str], quick: bool) -> None:
        """One chunk."""
        most, n = (TASK_CASES if quick else 1 if self.plan.engine is SweepEngine.SERVING else SLOW_CASES), len(ids)
        if self.ids and (len(self.ids) + n > most or len(self.groups) >= TASK_GROUPS):
            self.close()
        self.groups.append((group, numbers))
        self.ids += ids

    def close(self) -> None:
        """End the task at hand."""
        p = self.plan
        self.tasks.append(
            Task(
                len(self.tasks), p.engine, p.base, p.system, p.against, self.rules, tuple(self.groups), tuple(self.ids)
            )
        )
        self.groups, self.ids = [], []

    def done(self) -> tuple[Task, ...]:
        """All tasks."""
        if self.ids:
            self.close()
        return tuple(self.tasks)


def numbers_of(variant: Variant, system: int, numbers: Mapping[Path, NDArray[np.float64]], n: int) -> dict[str, Any]:
    """The numbers of a system's cases: the scenario's own where no axis says otherwise."""
    found = {name: np.full(n, value) for name, value in workload_numbers(variant.scenario.workload).items()}
    for path, values in numbers.items():
        if path.root != "model" or path.system == system:
            found[path.name] = values
    return found
