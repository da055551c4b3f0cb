"""Passes of a result that are known rank by rank, and what their figures share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.study.results import PhaseDetail, RankDetail, RunResult, SystemResult

if TYPE_CHECKING:
    from matplotlib.axis import Axis

__all__ = ["Seen", "seen_pass", "seen_passes", "whole_numbers"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A pass that is known rank by rank; `mark` tells its figures from those of the first such pass."""

    name: str
    mark: str
    system: SystemResult
    detail: PhaseDetail
    ranks: RankDetail


def seen_passes(result: RunResult) -> tuple[str, ...]:
    """Names of the passes that are known rank by rank."""
    return tuple(seen.name for seen in _all_seen(result))


def seen_pass(result: RunResult, name: str | None) -> Seen | None:
    """The pass of that name, the first by default; None if it is not known rank by rank."""
    return next((seen for seen in _all_seen(result) if name in (None, seen.name)), None)


def _all_seen(result: RunResult) -> list[Seen]:
    found: list[Seen] = []
    for system in result.systems:
        for name, detail in system.passes:
            if detail.ranks is not None:
                mark = f"-{name.replace(' ', '-')}" if found else ""
                found.append(Seen(name, mark, system, detail, detail.ranks))
    return found


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only: there is no rank between two."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
