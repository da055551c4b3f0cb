from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.memory import Outcome
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import Engine, SystemKind, SystemSpec
from moesim.study.calibrated import calibration_for
from moesim.study.plan import PlanSpec, plan
from moesim.study.plan.explain import Deployment, explain
from moesim.study.plan.ground import devices_of, transfer_seconds
from moesim.study.plan.options import NONE
from moesim.study.plan.search import best_of, least_of, search, shown_front
from moesim.study.plan.splits import fitting_splits, memory_of, stage_splits
from moesim.study.points import measure_point
from moesim.study.systems import build_system

MIXTRAL = PlanSpec(model="mixtral-8x7b", hardware=("hgx_h100",), n_devices=4, input_tokens=1024, output_tokens=256, ttft_s=0.5,
                   tpot_s=0.03, n_confirm=0)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return search(MIXTRAL, "hgx_h100")


def test_all_stage_splits_of_four_devices():
    hardware, model = load_hardware("hgx_h100", 4), load_model("mixtral-8x7b")
    splits = {(p.tp_size, p.dp_size, p.ep_size) for p in stage_splits(model, hardware)}
    divisors = {1: [1], 2: [1, 2], 4: [1, 2, 4]}
    assert splits == {(tp, n // tp, ep) for n in divisors for tp in divisors[n] for ep in divisors[n]}


def test_dense_models_have_no_data_parallel_attention():
    splits = stage_splits(load_model("llama-3.1-8b"), load_hardware("hgx_h100", 8))
    assert [(p.tp_size, p.dp_size, p.ep_size) for p in splits] == [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1)]


def test_memory_room_is_exact():
    hardware, model = load_hardware("hgx_h100", 4), load_model("mixtral-8x7b")
    spec = MIXTRAL.model_copy(update={"max_batch": 10**6})
    fits, misses = fitting_splits(model, hardware, spec)
    assert [m.parallel.n_ranks for m in misses] == [1]
    for split in fits:
        slots = split.parallel.dp_size * split.parallel.pp_size
        at = [
            memory_of(model, split.parallel, hardware, spec, k * slots)
            for k in (split.max_per_rank, split.max_per_rank + 2)
        ]
        assert at[0].outcome is Outcome.OK
        assert at[1].outcome is Outcome.OUT_OF_MEMORY


def test_arrays_agree_with_single_passes(found):
    """The search interpolates over batches and shares curves between pipeline depths; what is shown is costed pass by pass."""
    o = found.options
    rng = np.random.default_rng(0)
    off = []
    for i in rng.choice(len(o), 60, replace=False).tolist():
        point = explain(found.ground, found.deployment(i))
        off.append(
            [
                point.tpot_s / o.tpot_s[i] - 1,
                point.ttft_s / o.ttft_s[i] - 1,
                point.requests_per_s / o.requests_per_s[i] - 1,
            ]
        )
        assert point.n_devices == o.n_devices[i]
    assert np.abs(off).max() < 0.05
    assert np.median(np.abs(off)) < 0.01


def test_arrays_are_exact_on_the_grid(found):
    o = found.options
    on_grid = np.flatnonzero((o.prefill_split == NONE) & np.isin(o.per_rank, [1, 2, 8]))
    for i in on_grid[::7].tolist():
        d = found.deployment(i)
        if d.parallel.pp_size == 1:
            point = explain(found.ground, d)
            assert point.tpot_s == pytest.approx(o.tpot_s[i], rel=1e-4)
            assert point.ttft_s == pytest.approx(o.ttft_s[i], rel=1e-4)


def test_best_meets_goals_and_fills_the_devices(found):
    best = best_of(found, 3)
    rates = [p.output_tokens_per_s_per_device for p in best]
    assert rates == sorted(rates, reverse=True)
    assert len({(p.mode, p.main.parallel) for p in best}) == 3
    for p in best:
        assert p.meets_goals
        assert p.ttft_s <= MIXTRAL.ttft_s
        assert p.tpot_s <= MIXTRAL.tpot_s
        assert p.n_devices <= 4 < p.n_devices + p.n_devices // p.n_units
        assert all(pool.memory_bytes <= pool.capacity_bytes for pool in p.pools)
        assert p.error_frac is not None
        assert 0 < p.main.bottleneck.share_frac < 1


def test_nothing_feasible_beats_the_best(found):
    o = found.options
    limit = best_of(found, 1)[0].output_tokens_per_s_per_device / MIXTRAL.output_tokens
    # the arrays are right to 5% (above): the best may lie that much below what interpolation promised
    assert o.per_device[o.meets(MIXTRAL)].max() <= limit * 1.05


def test_passes_are_those_of_a_scenario(found):
    """Two ways to one number: the decode pass and prefill of `moesim run`, and of a plan."""
    model, hardware = load_model("mixtral-8x7b"), load_hardware("hgx_h100", 2)
    spec = SystemSpec(name="m", kind=SystemKind.MOE, model="mixtral-8x7b", parallel=ParallelSpec(tp_size=2))
    rng = np.random.default_rng(0)
    system = build_system(spec, model, hardware, calibration_for(None, "h100_sxm"), rng)
    by_run = measure_point(system, hardware, MIXTRAL.workload, 8, Engine.ANALYTIC, rng)
    by_plan = explain(found.ground, Deployment(spec.parallel, 8))
    assert by_plan.main.pass_s == pytest.approx(by_run.decode_step_s)
    alone = explain(found.ground, Deployment(spec.parallel, 1))
    by_run = measure_point(system, hardware, MIXTRAL.workload, 1, Engine.ANALYTIC, rng)
    assert alone.ttft_s == pytest.approx(by_run.ttft_s)


def test_front_has_no_dominated_points(found):
    points, n = shown_front(found)
    assert len(points) <= n
    for p in points:
        assert not any(
            q.tpot_s < p.tpot_s * 0.97 and q.output_tokens_per_s_per_device > p.output_tokens_per_s_per_device * 1.03
            for q in points
        )


@pytest.mark.parametrize("rate", [0.5, 5.0, 15.0])
def test_least_devices_for_a_rate(found, rate):
    spec = MIXTRAL.model_copy(update={"rate_per_s": rate})
    asked = replace(found, ground=replace(found.ground, spec=spec))
    least = least_of(asked)[0]
    assert least is not None
    assert least.requests_per_s * 0.9 >= rate * 0.999
    fewer = (
        search(spec.model_copy(update={"n_devices": least.n_devices - 1}), "hgx_h100") if least.n_devices > 1 else None
    )
    if fewer is not None and len(fewer.options):
        assert least_of(fewer) == []


def test_a_rate_beyond_the_devices_has_no_answer(found):
    spec = MIXTRAL.model_copy(update={"rate_per_s": 1e6})
    assert least_of(replace(found, ground=replace(found.ground, spec=spec))) == []


def test_pools_are_rate_matched(found):
    o = found.options
    pools = np.flatnonzero(o.prefill_split != NONE)
    assert len(pools)
    for i in pools[:: max(1, len(pools) // 20)].tolist():
        point = explain(found.ground, found.deployment(i))
        prefill = point.pools[0]
        assert prefill.role == "prefill"
        assert 0 < prefill.busy_frac <= 1 - MIXTRAL.headroom_frac + 0.01
        assert point.transfer_s == found.ground.transfer_s
        assert point.ttft_s > point.transfer_s + point.queue_s


def test_transfer_by_hand():
    # Mixtral: 32 layers x 8 heads x 128 x 2 x 2 bytes per token, over NVLink inside a domain and the NIC outside
    model, kv = load_model("mixtral-8x7b"), 1000 * 32 * 8 * 128 * 2 * 2
    inside, across = load_hardware("h100_x2_nodes", 8), load_hardware("h100_x2_nodes", 16)
    assert transfer_seconds(model, inside, 1000) == pytest.approx(
        inside.scale_up.latency_s + kv / (inside.scale_up.bytes_per_s * 0.85)
    )
    assert transfer_seconds(model, across, 1000) == pytest.approx(
        across.scale_out.latency_s + kv / (across.nic_bytes_per_s * 0.85)
    )


def test_up_to_n_devices_of_a_smaller_cluster():
    assert devices_of("hgx_h100", 64).n_devices == 8
    assert devices_of("h200_x4_nodes", 64).n_devices == 32


def test_goals_that_nothing_meets_are_an_outcome():
    result = plan(MIXTRAL.model_copy(update={"tpot_s": 1e-4}))
    assert result.outcome == "nothing meets the goals"
    assert result.best is None
    miss = result.plans[0].near_misses[0]
    assert miss.missed == "tpot"
    assert miss.value == pytest.approx(miss.limit * (1 + miss.by_frac))
    assert miss.sentence in result.sentences[0]


def test_no_memory_is_an_outcome_with_the_gap():
    result = plan(MIXTRAL.model_copy(update={"n_devices": 1}))
    assert result.outcome == "out of memory"
    miss = result.plans[0].near_misses[0]
    assert miss.missed == "memory"
    assert miss.gap_bytes == pytest.approx(miss.value - miss.limit)
    assert "short" in result.sentences[0]


def test_cheapest_hardware_is_the_one_with_the_lowest_price():
    spec = MIXTRAL.model_copy(update={"hardware": ("hgx_h100", "hgx_a100"), "disaggregated": False})
    result = plan(spec)
    prices = {p.hardware: p.best.usd_per_million_output_tokens for p in result.plans if p.best is not None}
    assert result.cheapest == min(prices, key=prices.get)
    assert result.best.hardware == result.cheapest
    assert "cheapest" in result.sentences[-1]


@pytest.mark.parametrize(
    ("update", "field"),
    [({"model": "nope"}, "model"), ({"hardware": ("nope",)}, "hardware"),
     ({"input_tokens": 10**6}, "input_tokens + output_tokens"),
     ({"calibration": "nope"}, "calibration"), ({"hardware": ("hgx_h100", "hgx_h100")}, "hardware")],
)  # fmt: skip
def test_bad_input_is_one_line(update, field):
    with pytest.raises(InputError) as caught:
        plan(MIXTRAL.model_copy(update=update))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_the_same_question_has_the_same_answer():
    assert plan(MIXTRAL).model_dump_json() == plan(MIXTRAL).model_dump_json()
