"""What a sweep is cut into: groups of cases that share all but numbers, packed into tasks in the same way whoever runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.specs.scenario import Basis, ScenarioSpec
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import SweepEngine, SweepSpec
from moesim.study.sweep.axes import Column
from moesim.study.sweep.parts import Rules
from moesim.study.sweep.paths import Path, Variant, workload_numbers

__all__ = ["Group", "Layout", "Packer", "Task", "numbers_of"]

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
    against: int | Basis | None
    rules: Rules
    groups: tuple[tuple[Group, Mapping[Path, NDArray[np.float64]]], ...]
    ids: tuple[str, ...]

    @property
    def n_cases(self) -> int:
        """Cases in it."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A sweep made ready: columns of settings, identities in case order, and tasks."""

    spec: SweepSpec
    engine: SweepEngine
    base: ScenarioSpec | ServeScenarioSpec
    system: int
    against: int | Basis | None
    columns: tuple[Column, ...]
    ids: tuple[str, ...]
    tasks: tuple[Task, ...]
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_cases(self) -> int:
        """Cases of the sweep."""
        return len(self.ids)


class Packer:
    """Fills tasks; what goes into one depends on the sweep alone, so that a resumed run meets the same tasks."""

    def __init__(self, layout: Layout, rules: Rules) -> None:
        self.layout, self.rules = layout, rules
        self.tasks: list[Task] = []
        self.groups: list[tuple[Group, Mapping[Path, NDArray[np.float64]]]] = []
        self.ids: list[str] = []

    def add(self, group: Group, numbers: Mapping[Path, NDArray[np.float64]], ids: Sequence[str], quick: bool) -> None:
        """One chunk."""
        most, n = (TASK_CASES if quick else 1 if self.layout.engine is SweepEngine.SERVING else SLOW_CASES), len(ids)
        if self.ids and (len(self.ids) + n > most or len(self.groups) >= TASK_GROUPS):
            self.close()
        self.groups.append((group, numbers))
        self.ids += ids

    def close(self) -> None:
        """End the task at hand."""
        p = self.layout
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
