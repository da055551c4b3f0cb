"""A plan as data files: the result as JSON, its points and near misses as CSV."""

from __future__ import annotations

import json
from pathlib import Path

from moesim.study.files import write_csv, write_text
from moesim.study.plan.results import PlanResult

__all__ = ["write_plan"]


def write_plan(result: PlanResult, out: Path) -> None:
    """``plan.json``, ``points.csv`` and ``near_misses.csv`` into a folder, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    write_text(out / "plan.json", text)
    write_csv(out / "points.csv", result.rows())
    write_csv(out / "near_misses.csv", [miss.model_dump() for p in result.plans for miss in p.near_misses])
