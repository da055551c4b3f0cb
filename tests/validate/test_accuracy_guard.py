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


#: Both stacks of one model and device: on one of them the common parameters are good already, and ten runs gain less.
OWN_GROUPS = tuple(f"openai/gpt-oss-120b on b200_sxm {stack}" for stack in ("vllm", "trtllm"))


@pytest.mark.skipif(not sample.SHARED.is_file(), reason=f"needs {sample.SHARED}")
def test_ten_runs_halve_the_error_of_an_unseen_stack() -> None:
    # neither the group nor any run of its backend was seen: the common parameters, then ten runs of the group on top of them
    from moesim.study.validate.fit import fit_all, fit_one
    from moesim.study.validate.own_runs import OWN_WIDTH

    spec = importlib.util.spec_from_file_location("regenerate", FOLDER / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runs, _ = module.load_runs()
    system = np.asarray([r.group for r in runs.rows])
    backend = np.asarray([r.backend for r in runs.rows])
    rng = np.random.default_rng(0)
    before, after = [], []
    for name in OWN_GROUPS:
        own = np.flatnonzero(np.asarray([f"{r.group} {r.backend}" == name for r in runs.rows]))
        unseen = (backend != backend[own[0]]) & (system != system[own[0]])
        prior = fit_all(runs.at(np.flatnonzero(unseen)))["default"]
        for _ in range(2):
            ten = rng.choice(own, 10, replace=False)
            rest = runs.at(np.setdiff1d(own, ten))
            measured = np.exp(rest.log_measured)
            fitted = fit_one(runs.at(ten), prior, OWN_WIDTH)
            before.append(np.abs(rest.batch.predict(prior) / measured - 1.0)[:, 1].mean())
            after.append(np.abs(rest.batch.predict(fitted) / measured - 1.0)[:, 1].mean())
    assert np.mean(after) < 0.5 * np.mean(before)
