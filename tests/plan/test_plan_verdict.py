"""What the simulation refutes is said first, and what it bears out is recommended."""

import pytest

from moesim.study.plan import PlanSpec, plan
from moesim.study.plan import verify as verifying
from moesim.study.plan.run import plan as run_plan
from moesim.study.plan.search import best_of, search
from moesim.study.plan.verify import eased, verify

SPEC = PlanSpec(model="olmoe-1b-7b", hardware=("hgx_h100",), n_devices=2, input_tokens=256, output_tokens=64, ttft_s=0.3,
                tpot_s=0.02, max_batch=32, n_confirm=2)  # fmt: skip


@pytest.fixture
def simulated(monkeypatch):
    """Makes the simulation find what a test says: TPOT over its goal, by what the split and batch are."""
    real = verifying.confirm

    def install(tpot_over_goal):
        def confirm(ground, points, progress=lambda what, done: None):
            found = []
            for p, c in zip(points, real(ground, points, progress), strict=True):
                over = tpot_over_goal(p)
                found.append(c.model_copy(update={"tpot_s": over * SPEC.tpot_s, "meets_goals": over <= 1.0}))
            return found

        monkeypatch.setattr(verifying, "confirm", confirm)

    return install


@pytest.fixture(scope="module")
def found():
    return search(SPEC, "hgx_h100")


def test_none_that_meets_the_goals_is_said_first_and_in_numbers(simulated):
    simulated(lambda p: 1.5)
    result = run_plan(SPEC)
    (p,) = result.plans
    assert p.is_met is False
    assert len(p.confirmations) > SPEC.n_confirm  # fewer requests and further splits were tried
    assert f"none of the {len(p.confirmations)} simulated plans meets the goals" in result.sentences[0]
    assert "TPOT 30 ms, 50.0% over 20 ms" in result.sentences[0]
    assert "closed form" in result.sentences[1]
    assert result.sentences[-1].startswith("hgx_h100: goals aside, ")


def test_another_that_meets_them_is_recommended(simulated, found):
    first, second = best_of(found, 2)
    simulated(lambda p: 1.5 if p.main.parallel == first.main.parallel else 0.9)
    result = run_plan(SPEC)
    (p,) = result.plans
    assert p.is_met is True
    assert p.best.label == second.label
    assert f"recommended is {second.label}" in result.sentences[0]
    assert f"{first.label} at {first.main.batch} requests per instance: TPOT 30 ms" in result.sentences[0]
    closed, rate = p.best.output_tokens_per_s_per_device, p.simulated(p.best).output_tokens_per_s_per_device
    assert f"{closed:.0f} tokens/s per device (closed form, " in result.sentences[1]
    assert f"; simulated {rate:.0f})" in result.sentences[1]


def test_a_narrow_miss_is_met_with_fewer_requests(simulated, found):
    first = best_of(found, 1)[0]
    simulated(lambda p: 1.02 if p.design == first.design else 0.99)
    verified = verify(found.ground, [first], 1)
    assert verified.is_met is True
    assert verified.answer.label == first.label
    assert 0.9 * first.main.batch < verified.answer.main.batch < first.main.batch
    assert [c.rank_closed_form for c in verified.confirmations] == [1, 2]


def test_the_first_stays_where_it_meets_the_goals(simulated, found):
    points = best_of(found, 2)
    simulated(lambda p: 0.9 if p.design == points[0].design else 1.1)
    verified = verify(found.ground, points, 2)
    assert verified.answer == points[0]
    assert verified.is_met is True


def test_nothing_simulated_says_so():
    result = plan(SPEC.model_copy(update={"n_confirm": 0}))
    assert result.plans[0].is_met is None
    assert "not simulated" in result.sentences[0]


def test_less_than_one_sequence_per_rank_is_no_deployment(found):
    one = best_of(found, 1)[0]
    assert eased(found.ground, one, 1e-6) is None


def test_hardware_that_the_simulation_refutes_is_not_the_cheapest(simulated):
    spec = SPEC.model_copy(update={"hardware": ("hgx_h100", "hgx_a100"), "n_confirm": 1})
    cheap = plan(spec.model_copy(update={"n_confirm": 0})).cheapest
    other = next(name for name in spec.hardware if name != cheap)
    simulated(lambda p: 1.5 if p.hardware == cheap else 0.9)
    result = run_plan(spec)
    assert result.cheapest == other
    assert "by the closed form" in result.sentences[-1]
    assert "no simulated plan meets the goals" in result.sentences[-1]
