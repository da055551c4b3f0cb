"""A plan as data files: the result as JSON, its points and near misses as CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from moesim.study.plan.results import PlanResult

__all__ = ["write_plan"]


def write_plan(result: PlanResult, out: Path) -> None:
    """``plan.json``, ``points.csv`` and ``near_misses.csv`` into a folder, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    (out / "plan.json").write_text(text, encoding="utf-8")
    _csv(out / "points.csv", result.rows())
    _csv(out / "near_misses.csv", [miss.model_dump() for p in result.plans for miss in p.near_misses])


def _csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
