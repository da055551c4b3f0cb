"""The committed accuracy must not get worse; regenerate it with benchmarks/validation/regenerate.py and review the change."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import validate_sample as sample

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "validation"
#: How much a group's mean error may grow before it counts as worse.
MARGIN = {"TPOT": 0.01, "TTFT": 0.03}


def snapshot() -> list[dict[str, object]]:
    return json.loads((FOLDER / "accuracy.json").read_text())["left_out"]  # type: ignore[no-any-return]


@pytest.mark.skipif(not sample.SHARED.is_file(), reason=f"needs {sample.SHARED}")
def test_no_group_is_worse_than_the_snapshot() -> None:
    spec = importlib.util.spec_from_file_location("regenerate", FOLDER / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runs, is_moe = module.load_runs()
    projected = module.left_out(runs)
    errors = runs.log_measured - np.log(projected)
    now = {(a["name"], a["metric"]): a for a in module.snapshot(runs, is_moe, projected, errors)}
    known = snapshot()
    assert {(a["name"], a["metric"]) for a in known} == set(now)
    worse = [
        f"{a['name']} {a['metric']}: {a['mean_abs_frac']:.3f} -> {now[a['name'], a['metric']]['mean_abs_frac']:.3f}"
        for a in known
        if now[a["name"], a["metric"]]["mean_abs_frac"] > a["mean_abs_frac"] + MARGIN[str(a["metric"])]
    ]
    assert not worse


def test_snapshot_meets_the_targets_it_is_said_to_meet() -> None:
    of = {(a["name"], a["metric"]): a for a in snapshot()}
    tpot, ttft = of["all", "TPOT"], of["all", "TTFT"]
    assert tpot["n"] == ttft["n"] == 1646
    assert tpot["mean_abs_frac"] <= 0.10
    assert of["MoE", "TPOT"]["mean_abs_frac"] <= 0.11
    assert abs(tpot["bias_frac"]) <= 0.04
    assert ttft["mean_abs_frac"] <= 0.30
    assert 0.85 <= tpot["coverage_frac"] <= 0.95
    assert 0.85 <= ttft["coverage_frac"] <= 0.95
