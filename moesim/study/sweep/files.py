"""Sweep files: found by name or path, their base, and the line that an error is about."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

from moesim.errors import InputError
from moesim.specs.catalog import path_of
from moesim.specs.load import line_of, read_yaml, validate
from moesim.specs.scenario import ScenarioSpec
from moesim.specs.sweep import SweepSpec
from moesim.study.run import load_scenario

__all__ = ["base_scenario", "line_in", "load_sweep"]


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


def base_scenario(spec: SweepSpec, file: File | None) -> ScenarioSpec:
    """The base: shipped, in a file (beside the sweep's, if not found otherwise), or inline."""
    if isinstance(spec.base, dict):
        return validate(ScenarioSpec, spec.base, None if file is None else str(file))
    beside = file.parent / spec.base if file is not None else None
    return load_scenario(str(beside) if beside is not None and beside.is_file() else spec.base)[0]


def line_in(data: Any, error: InputError) -> int | None:
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
