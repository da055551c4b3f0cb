"""From a sweep file to tasks: cases grouped by what they share, each with its identity, cut the same way whoever runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.specs.catalog import load_hardware
from moesim.specs.load import read_yaml
from moesim.specs.scenario import Basis, Engine, ScenarioSpec, SystemKind
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import ConstraintKind, SweepEngine, SweepSpec
from moesim.study.flow_settings import check_engine
from moesim.study.resolve import resolve_model
from moesim.study.sweep.axes import Column, expand
from moesim.study.sweep.constraints import resolve
from moesim.study.sweep.files import base_scenario, line_in
from moesim.study.sweep.identity import (
    calibration_identity,
    canonical,
    case_ids,
    fingerprint,
    group_key,
    shipped_calibrations,
)
from moesim.study.sweep.laws import law_of
from moesim.study.sweep.parts import Rules, check_base, is_quick, system_parts
from moesim.study.sweep.paths import Path, Variant, read_path, system_of, variant_of
from moesim.study.sweep.serving import read_serve_path, serve_base, serve_variant
from moesim.study.sweep.tasks import CHUNK, SLOW_CASES, Group, Layout, Packer

__all__ = ["make_layout"]


def make_layout(spec: SweepSpec, *, engine: SweepEngine | None = None, file: File | None = None) -> Layout:
    """Check a sweep against its base and lay out its cases.

    Raises:
        InputError: a base, path or value that is wrong, with the file's line where known.
    """
    try:
        return _make_layout(spec, engine or spec.engine, file)
    except InputError as error:
        if file is not None and error.file is None:
            data = read_yaml(file)
            error.at(file=str(file), line=line_in(data, error))
        raise


def _make_layout(spec: SweepSpec, engine: SweepEngine, file: File | None) -> Layout:
    if engine is SweepEngine.SERVING:
        return _served_layout(spec, file)
    base = base_scenario(spec, file)
    system = system_of(base, spec.system)
    against = _against(base, spec, system, engine)
    columns = expand(spec.axes)
    paths = [read_path(column.path, base, system) for column in columns]
    _check_numbers(columns, paths)
    if spec.law is not None:
        law_of(spec.law.name)
        if spec.law.other is not None:
            law_of(spec.law.other, "law.other")
    _check_law(spec, paths)
    check_base(Variant(base), system)
    model = system_parts(Variant(base), system).model
    targets = tuple(resolve(c, model) for c in spec.constraints)
    law, other = (None, None) if spec.law is None else (spec.law.name, spec.law.other)
    rules = Rules(targets, law, other, spec.seed)
    closed = Engine.ANALYTIC if engine is SweepEngine.ANALYTIC else Engine.FLOW
    for i in (system, against):
        if isinstance(i, int):
            check_engine(base.systems[i].flow, closed, f"systems.{i}.flow")
    _check_values(base, columns, paths, system, against, closed)
    return _laid_out(Layout(spec, engine, base, system, against, columns, (), ()), paths, rules)


def _against(base: ScenarioSpec, spec: SweepSpec, system: int, engine: SweepEngine) -> int | Basis | None:
    """The other system, or what a dense twin has in common with the one that is swept."""
    if spec.against is None:
        return None
    named = {s.name for s in base.systems}
    if spec.against in named or spec.against not in {b.value for b in Basis if b is not Basis.NAMED}:
        try:
            return system_of(base, spec.against, "against")
        except InputError as error:
            error.allowed = f"{error.allowed}, {', '.join(b.value for b in Basis if b is not Basis.NAMED)}"
            raise
    if engine is not SweepEngine.ANALYTIC:
        raise InputError("dense twins are made for engine analytic", field="against", value=spec.against)
    if base.systems[system].kind is not SystemKind.MOE:
        raise InputError("a dense twin needs a system with experts", field="against", value=spec.against)
    return Basis(spec.against)


def _served_layout(spec: SweepSpec, file: File | None) -> Layout:
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
    return _laid_out(Layout(spec, SweepEngine.SERVING, base, 0, None, columns, (), ()), paths, Rules(seed=spec.seed))


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
    base: ScenarioSpec, columns: Sequence[Column], paths: Sequence[Path], system: int, against: int | Basis | None,
    engine: Engine,
) -> None:  # fmt: skip
    """Every value once, the other axes at their first, so that a wrong one stops the sweep before it starts."""
    structural = [(c, p) for c, p in zip(columns, paths, strict=True) if not p.is_number]
    for column, _ in structural:
        for code in range(len(column.values)):
            case = int(np.flatnonzero(column.codes == code)[0])
            settings = {p: c.of(case) for c, p in structural}
            try:
                variant = variant_of(base, settings)
                for i in (system, against):
                    if isinstance(i, int):
                        system_parts(variant, i)
                        check_engine(variant.scenario.systems[i].flow, engine)
            except ValueError:
                continue


def _laid_out(layout: Layout, paths: Sequence[Path], rules: Rules) -> Layout:
    """Groups in order of their first case, cut into chunks, packed into tasks."""
    structural = [i for i, p in enumerate(paths) if not p.is_number]
    numeric = [i for i, p in enumerate(paths) if p.is_number]
    n = len(layout.columns[0].codes)
    code = np.zeros(n, dtype=np.int64)
    for i in structural:
        _, code = np.unique(code * len(layout.columns[i].values) + layout.columns[i].codes, return_inverse=True)
    order = np.argsort(code, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
    pieces.sort(key=lambda rows: int(rows[0]))
    texts = {i: [canonical(v) for v in layout.columns[i].values] for i in numeric}
    values = {i: np.asarray(layout.columns[i].values, dtype=float) for i in numeric}
    ids: list[str] = [""] * n
    packer = Packer(layout, rules)
    for rows in pieces:
        settings = {paths[i]: layout.columns[i].of(int(rows[0])) for i in structural}
        key, bad, quick = _identify(layout, rules, settings)
        codes = [layout.columns[i].codes[rows].tolist() for i in numeric]
        found = case_ids(key, [_name(paths[i]) for i in numeric], [texts[i] for i in numeric], codes)
        found = found or [key.hexdigest()[:24]] * len(rows)
        for row, own in zip(rows.tolist(), found, strict=True):
            ids[row] = own
        size = CHUNK if quick else SLOW_CASES
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            numbers = {paths[i]: values[i][layout.columns[i].codes[part]] for i in numeric}
            packer.add(Group(settings, part, bad), numbers, found[start : start + size], quick)
    return Layout(
        layout.spec, layout.engine, layout.base, layout.system, layout.against, layout.columns, tuple(ids), packer.done(),
    )  # fmt: skip


def _name(path: Path) -> str:
    return f"{path.root}.{'' if path.system is None else path.system}.{path.name}"


def _identify(layout: Layout, rules: Rules, settings: Mapping[Path, Any]) -> tuple[Any, str | None, bool]:
    """The hash of what a group shares, why it makes no sense if it does not, and whether arrays can answer it."""
    parts: dict[str, Any] = {
        "engine": layout.engine.value, "base": layout.base.model_copy(update={"title": "-", "description": ""}),
        "system": layout.system, "against": layout.against, "seed": rules.seed, "law": [rules.law, rules.other_law],
        "targets": [[t.kind.value, t.value, t.by.value, t.multiple_of, t.tolerance_frac] for t in rules.targets],
        "settings": {_name(path): value for path, value in settings.items()},
    }  # fmt: skip
    bad, quick = None, layout.engine is SweepEngine.ANALYTIC
    if isinstance(layout.base, ServeScenarioSpec):
        try:
            parts["inputs"] = _served_inputs(serve_variant(layout.base, settings))
        except (ValueError, InputError) as error:
            bad = str(error)
        return group_key(parts), bad, False
    try:
        variant = variant_of(layout.base, settings)
        for i in (layout.system, layout.against):
            if isinstance(i, int):
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
