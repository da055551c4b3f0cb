"""Labels say what numbers are: times to first token, peaks, memory at the load shown, passes that are absent."""

from __future__ import annotations

import pytest
from report_sample import sample_result

from moesim.cli.run import refused
from moesim.report.figures_cost import latency
from moesim.report.figures_ops import roofline
from moesim.report.markdown import render_markdown
from moesim.report.sections import build
from moesim.report.tables import focus_concurrency, operator_tables, results_table
from moesim.study.results import OperatorRow, RunResult, SystemResult


def _with_reference(result: RunResult, **update: object) -> RunResult:
    """The result with the first system that is simulated rank by rank changed."""
    index = next(i for i, s in enumerate(result.systems) if any(d.ranks is not None for d in s.details))
    systems = [s.model_copy(update=update) if i == index else s for i, s in enumerate(result.systems)]
    return result.model_copy(update={"systems": tuple(systems)})


def test_ttft_is_not_called_that_of_an_idle_system(result: RunResult) -> None:
    text = render_markdown(build(result))
    for wrong in ("does not queue", "unloaded", "idle system"):
        assert wrong not in text
    told = results_table(result, [focus_concurrency(result)], "answer", "caption").note
    assert "the pass under way and prompts that go first" in told
    drawn = latency(result)
    assert drawn is not None
    assert "the pass under way and prompts that go first" in drawn.caption


def _one_operator(result: RunResult, arithmetic: str | None) -> RunResult:
    row = OperatorRow(
        name="o_proj", group="attention", segment="moe", n_repeat=58, time_s=27.8e-3, hidden_s=0.0, bound="compute",
        flops=27.9e12, moved_bytes=1e9, origin="fitted", arithmetic=arithmetic,
    )  # fmt: skip
    system = next(s for s in result.systems if s.details)
    detail = system.details[0].model_copy(update={"operators": (row,), "time_s": 30e-3})
    return result.model_copy(update={"systems": (system.model_copy(update={"details": (detail,)}),)})


@pytest.mark.parametrize(
    ("arithmetic", "told"), [("fp8", "51% of fp8"), ("bf16", "102% of bf16"), (None, "102% of bf16")]
)
def test_the_share_of_peak_is_of_the_operators_own_arithmetic(
    result: RunResult, arithmetic: str | None, told: str
) -> None:
    changed = _one_operator(result.model_copy(update={"peak_flop_per_s": {"bf16": 989e12, "fp8": 1979e12}}), arithmetic)
    texts = [cell.text for cell in operator_tables(changed)[0].rows[0]]
    told = told.replace("102%", "101%")
    assert told in texts
    drawn = roofline(changed)
    assert drawn is not None
    share, name = told.split(" of ")
    assert f"{share} of the peak of {name}" in drawn.svg
    assert f"({name}) flop per byte" in drawn.alt


def test_one_load_is_told_once(result: RunResult) -> None:
    systems = tuple(s.model_copy(update={"points": s.points[:1]}) for s in result.systems)
    drawn = latency(result.model_copy(update={"systems": systems}))
    assert drawn is not None
    first = result.systems[0].points[0].concurrency
    assert drawn.alt.count(f"at {first}") == sum(s.points[0].tpot_s is not None for s in systems)


def test_an_absent_full_prefill_says_why(result: RunResult) -> None:
    absent = _with_reference(result, full_prefill=None, no_full_prefill="it has 9 tokens, more than fit")
    text = render_markdown(build(absent))
    assert "trace-prefill" not in text
    assert "is not shown: it has 9 tokens, more than fit" in text
    detail = next(d for s in result.systems for d in s.details if d.ranks is not None)
    there = render_markdown(build(_with_reference(result, full_prefill=detail)))
    assert "trace-prefill for the full prefill" in there
    assert "is not shown" not in there


def _refusing(system: SystemResult, reason: str) -> SystemResult:
    out = {"outcome": "out_of_memory", "reason": reason, "ttft_s": None, "tpot_s": None}
    return system.model_copy(update={"points": (*system.points[:1], system.points[-1].model_copy(update=out))})


def test_loads_that_do_not_fit_are_told_in_a_line() -> None:
    result = sample_result()
    fits = [s for s in result.systems if all(p.outcome == "ok" for p in s.points)]
    one, two = fits[:2] if len(fits) > 1 else (fits[0], fits[0].model_copy(update={"name": "other"}))
    most = f"{one.points[-1].concurrency:,}"
    same = result.model_copy(update={"systems": (_refusing(one, "9 GB short."), _refusing(two, "9 GB short."))})
    assert refused(same) == [f"! {one.name}, {two.name} with {most} in flight: out of memory (9 GB short)"]
    apart = result.model_copy(update={"systems": (_refusing(one, "9 GB short"), _refusing(two, "8 GB short"))})
    assert len(refused(apart)) == 2
    assert refused(result.model_copy(update={"systems": (one,)})) == []
