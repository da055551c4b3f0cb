"""Figures that others published and nothing was fitted to: how far off predictions are, by group (docs/fabric.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

#: Group and the median and worst error that the page states, rounded up.
STATED = {
    "one-sided combine, 128 tokens and more": (0.11, 0.15),
    "one-sided dispatch, 128 tokens and more": (0.33, 0.45),
    "DeepEP normal, gb200_nvl72, 8 ranks": (0.13, 0.25),
    "DeepEP normal, gb200_nvl72, 16 ranks": (0.08, 0.15),
    "DeepEP normal, b200_x8_nodes, 8 ranks": (0.07, 0.25),
    "H20 low_latency": (0.08, 0.22),
    "H20 normal": (0.03, 0.05),
    "all-reduce, 72 GPUs": (0.33, 0.46),
    "MI300X, one link": (0.12, 0.12),
    "Gaudi 3, HCCL": (0.36, 0.38),
}


@pytest.fixture(scope="module")
def errors() -> dict[str, list[float]]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    try:
        from fabric_published import published_figures
    finally:
        sys.path.pop(0)
    found: dict[str, list[float]] = {}
    for row in published_figures():
        found.setdefault(row.group, []).append(abs(row.predicted / row.measured - 1))
    return found


@pytest.mark.parametrize("group", STATED)
def test_errors_are_what_the_page_says(errors: dict[str, list[float]], group: str) -> None:
    median, worst = STATED[group]
    assert np.median(errors[group]) <= median
    assert max(errors[group]) <= worst
