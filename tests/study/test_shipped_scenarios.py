"""Every shipped scenario runs, and answers what it was written to ask."""

from __future__ import annotations

import pytest

from moesim.specs.base import Origin
from moesim.specs.catalog import names
from moesim.specs.scenario import Basis, Engine, SystemKind
from moesim.study.results import RunResult, SystemResult
from moesim.study.run import load_scenario, run_scenario

EXPECTED = {
    "mixtral-vs-llama-2-2xh100", "mixtral-vs-llama-2-8xh100", "deepseek-v3-vs-llama-3.1-8xh200",
    "deepseek-v3-vs-llama-3.1-16xh200", "gpt-oss-120b-vs-llama-3.1-70b-b200", "qwen3-30b-a3b-vs-qwen3-32b-2xrtxpro6000",
    "eight-experts-of-7b", "rumoured-gpt-4-class",
}  # fmt: skip
_RESULTS: dict[str, RunResult] = {}


def result_of(name: str) -> RunResult:
    if name not in _RESULTS:
        scenario, file = load_scenario(name)
        _RESULTS[name] = run_scenario(scenario, name=name, engine=Engine.ANALYTIC, file=file).result
    return _RESULTS[name]


def system(result: RunResult, name: str) -> SystemResult:
    return next(s for s in result.systems if s.name == name)


def test_the_scenarios_that_were_promised_are_shipped() -> None:
    assert set(names("scenario")) >= EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_scenario_answers_its_questions(name: str) -> None:
    result = result_of(name)
    scenario = result.scenario
    reference = scenario.reference.name
    for measured in result.systems:
        assert measured.points[0].outcome == "ok", f"{measured.name} does not run even with the fewest requests"
        assert len(measured.points) == len(scenario.workload.concurrency)
        assert {d.phase for d in measured.details} == {"prefill", "decode"}
        for point in measured.points:
            assert (point.tpot_s is None) == (point.outcome != "ok")
            assert point.outcome == "ok" or point.reason
    others = [s.name for s in result.systems if s.name != reference]
    assert {c.other for c in result.comparisons} == set(others)
    assert {f.axis for f in result.flips} == set(scenario.comparison.flips)
    assert {s.basis for s in result.systems} >= set(scenario.comparison.bases) - {Basis.NAMED}
    assert len(result.quality) == 2
    assert any(reference in line for line in result.headline)


def test_an_ensemble_of_eight_is_larger_than_the_moe_and_serves_a_mixed_batch_worse() -> None:
    result = result_of("eight-experts-of-7b")
    moe, ensemble = system(result, "MoE, 8 experts per layer"), system(result, "8 whole 7B models")
    assert ensemble.kind is SystemKind.ENSEMBLE
    # eight whole models repeat attention and embeddings that the MoE holds once
    assert ensemble.n_params > 1.2 * moe.n_params
    assert ensemble.n_active_params < moe.n_active_params
    alone = (moe.points[0].tpot_s, ensemble.points[0].tpot_s)
    mixed = (moe.points[-1].tpot_s, ensemble.points[-1].tpot_s)
    assert alone[1] < alone[0]  # type: ignore[operator]
    assert mixed[1] > mixed[0]  # type: ignore[operator]


def test_an_moe_costs_less_than_a_dense_model_of_its_size_at_every_load() -> None:
    result = result_of("qwen3-30b-a3b-vs-qwen3-32b-2xrtxpro6000")
    moe, dense = system(result, "Qwen3-30B-A3B"), system(result, "Qwen3-32B")
    for a, b in zip(moe.points, dense.points, strict=True):
        if a.outcome == b.outcome == "ok":
            assert a.tpot_s < b.tpot_s  # type: ignore[operator]
            assert a.ttft_s < b.ttft_s  # type: ignore[operator]


def test_the_rumoured_model_is_marked_as_an_assumption_throughout() -> None:
    result = result_of("rumoured-gpt-4-class")
    assert result.scenario.is_assumption
    assert "rumour" in result.notes[0].lower()
    rows = [row for row in result.inputs if row.what.startswith("model ")]
    assert rows
    assert all(row.origin is Origin.ASSUMPTION for row in rows)
    assert all(point.origin is Origin.ASSUMPTION for s in result.systems for point in s.points)
