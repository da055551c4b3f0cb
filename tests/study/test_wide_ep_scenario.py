"""The shipped scenario of wide expert parallelism: a slow GPU beside a healthy machine."""

from __future__ import annotations

import pytest

from moesim.specs.scenario import ScenarioSpec
from moesim.study.results import SystemResult
from moesim.study.run import Run, load_scenario, run_scenario


@pytest.fixture(scope="module")
def run() -> Run:
    """With short prompts, which are quick to draw."""
    scenario, _ = load_scenario("deepseek-v3-wide-ep")
    small = {"input_tokens": 256, "output_tokens": 64, "concurrency": [32 * 64], "max_pass_tokens": 256}
    return run_scenario(ScenarioSpec.model_validate({**scenario.model_dump(mode="json"), "workload": small}))


def _system(run: Run, name: str) -> SystemResult:
    return next(s for s in run.result.systems if s.name == name)


def test_the_slow_rank_is_seen_and_what_it_costs(run: Run) -> None:
    slow, healthy = _system(run, "slow GPU"), _system(run, "healthy")
    for name, detail in slow.passes:
        if detail.ranks is None:
            continue
        waits = [sum(row) for row in detail.ranks.wait_s]
        assert min(waits) == waits[3], name  # who waits for nobody is waited for
        found = {row.name: row for row in detail.what_if}
        assert found["no stragglers"].speedup > 1.15
        assert found["no stragglers"].slower_wait_s < 0.5 * detail.what_if[0].slower_wait_s
    assert [name for name, detail in slow.passes if detail.ranks is not None] == ["decode", "full prefill"]
    assert run.timeline is not None
    assert run.prefill_timeline is not None
    times = [s.points[0].tpot_s for s in (slow, healthy)]
    assert times[0] is not None
    assert times[1] is not None
    assert 1.1 < times[0] / times[1] < 1.35


def test_what_if_comes_back_to_the_healthy_machine(run: Run) -> None:
    slow, healthy = _system(run, "slow GPU"), _system(run, "healthy")
    without = {row.name: row for row in slow.details[0].what_if}["no stragglers"]
    assert healthy.details[0].gap is not None
    # other draws of the same load
    assert without.time_s == pytest.approx(healthy.details[0].gap.simulated_s, rel=0.02)
