"""Stragglers, uneven loads, launches, lent units and exchange kernels of a system: honoured by the simulation or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import moesim
from moesim.analytic import estimate
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.ops import ExchangeShape, OpKind, Phase
from moesim.sim import FlowOptions, Granularity
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.flow import EVEN, FlowSpec
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.specs.scenario import Engine, ScenarioSpec
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import SweepSpec
from moesim.study.instance import Instance, build_instance
from moesim.study.run import run_scenario
from moesim.study.sweep import run_sweep
from moesim.study.whatif import WhatIf, what_if

N, SPLIT = 16, ParallelSpec(dp_size=16, ep_size=16)
EVENLY = RoutingSpec(family=RouterFamily.BALANCED)


def _instance(flow: FlowSpec = EVEN, overlap: Overlap = Overlap.NONE, split: ParallelSpec = SPLIT) -> Instance:
    hardware = load_hardware("h100_x2_nodes", split.n_ranks)
    return build_instance(load_model("deepseek-v3"), split, hardware, EVENLY, overlap=overlap, settings=flow)


def _time(instance: Instance, step: Pass) -> float:
    return instance.flow(step, np.random.default_rng(0)).time_s


def _decode(instance: Instance) -> Pass:
    return instance.decode_pass(N * 32, 1024)


def _prefill(instance: Instance) -> Pass:
    return instance.prefill_passes(2048, 0, 4096, 2 * N)[-1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slow_ranks": {3: 0.5}}, "2 takes twice as long"),
        ({"slow_ranks": {-1: 2.0}}, "is no rank"),
        ({"slow_links": {1: "x"}}, "valid number"),
        ({"n_chunks": 4}, "needs granularity chunk"),
        ({"launch_s": 8.0}, "at most a second"),
        ({"cuda_graphs": True}, "needs launch_s"),
        ({"comm_sms": 20, "exchange": "low_latency"}, "take no compute units"),
        ({"dp_load": [1.0, -1.0]}, "no relative load"),
        ({"dp_load": [0.0, 0.0]}, "at least one"),
        ({"granularity": "rang"}, "'rank', 'pair' or 'chunk'"),
    ],
)
def test_bad_fields(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FlowSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"slow_ranks": {16: 2.0}}, "flow.slow_ranks"),
        ({"slow_links": {99: 2.0}}, "flow.slow_links"),
        ({"comm_sms": 132}, "flow.comm_sms"),
        ({"dp_load": [1.0, 2.0, 3.0]}, "flow.dp_load"),
    ],
)
def test_what_does_not_fit_the_split(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        _instance(FlowSpec.model_validate(fields))
    assert error.value.field == field


@pytest.mark.parametrize("fields", [{"comm_sms": 20}, {"exchange": "low_latency"}, {"granularity": "pair"}])
def test_exchanges_need_tokens_that_travel(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no tokens travel"):
        _instance(FlowSpec.model_validate(fields), split=ParallelSpec(tp_size=8))


def test_units_are_lent_where_that_was_measured() -> None:
    with pytest.raises(InputError, match="never measured"):
        build_instance(
            load_model("qwen3-30b-a3b"), ParallelSpec(dp_size=8, ep_size=8), load_hardware("mi300x", 8),
            settings=FlowSpec(comm_sms=20),
        )  # fmt: skip


def test_settings_survive_a_file() -> None:
    flow = FlowSpec(slow_ranks={3: 1.5}, slow_links={0: 2.0}, dp_load=(1.0, 2.0), launch_s=8e-6, cuda_graphs=True)
    assert FlowSpec.model_validate_json(flow.model_dump_json()) == flow
    assert FlowSpec.model_validate(flow.model_dump(mode="json")) == flow


def test_sequences_are_dealt_whole() -> None:
    flow = FlowSpec(dp_load=(1.0, 1.0, 1.0, 2.0))
    assert flow.sequences(40, 8) == (4, 4, 4, 8, 4, 4, 4, 8)
    assert flow.sequences(7, 4) == (2, 1, 1, 3)  # 1.4, 1.4, 1.4, 2.8
    assert FlowSpec(dp_load=(2.0, 2.0)).sequences(40, 8) is None
    assert FlowSpec(dp_context=(1.0, 3.0)).contexts(100.0, (2, 2)) == (50.0, 150.0)
    # the mean over sequences stays, so fuller groups count for more
    uneven = FlowSpec(dp_context=(1.0, 3.0)).contexts(100.0, (6, 2))
    assert uneven is not None
    assert (uneven[0] * 6 + uneven[1] * 2) / 8 == pytest.approx(100.0)


def test_a_slow_rank_slows_its_own_computes_alone() -> None:
    healthy, slow = _instance(), _instance(FlowSpec(slow_ranks={3: 2.0}))
    step = _decode(healthy)
    a, b = (x.flow(step, np.random.default_rng(0)).flow for x in (healthy, slow))
    assert a is not None
    assert b is not None
    assert b.engine_busy_s[3] == pytest.approx(2.0 * a.engine_busy_s[3])
    assert b.engine_busy_s[:3] == pytest.approx(a.engine_busy_s[:3])
    # everybody waits for it at each exchange, which is no communication
    assert b.time_s - a.time_s == pytest.approx(a.engine_busy_s[3], rel=0.02)
    assert b.slower_wait_s == pytest.approx(a.engine_busy_s[3] * 15 / 16, rel=0.05)
    assert b.exposed_comm_s == pytest.approx(a.exposed_comm_s, rel=0.1)


def test_a_slow_link_is_communication() -> None:
    healthy, slow = _instance(), _instance(FlowSpec(slow_links={3: 3.0}))
    step = _decode(healthy)
    a, b = (x.flow(step, np.random.default_rng(0)).flow for x in (healthy, slow))
    assert a is not None
    assert b is not None
    assert b.exposed_comm_s > 1.3 * a.exposed_comm_s
    assert b.time_s - a.time_s == pytest.approx(b.exposed_comm_s - a.exposed_comm_s, rel=0.05)


def test_launches_bound_passes_that_no_graph_replays() -> None:
    plain = _instance()
    bound, graphs = _instance(FlowSpec(launch_s=40e-6)), _instance(FlowSpec(launch_s=40e-6, cuda_graphs=True))
    step = _decode(plain)
    assert _time(bound, step) > 1.2 * _time(plain, step)
    assert _time(graphs, step) == _time(plain, step)
    one = Pass(Phase.PREFILL, 16.0, 64.0, 0.0)
    assert _time(graphs, one) == _time(bound, one) > 1.05 * _time(plain, one)


def test_lent_units_speed_exchanges_and_slow_kernels() -> None:
    few, many = _instance(FlowSpec(comm_sms=8)), _instance(FlowSpec(comm_sms=48))
    step = _prefill(few)
    assert _time(many, step) < _time(few, step)
    # in the closed form as well, and beside another batch they slow its kernels
    assert many.analytic(step).time_s < few.analytic(step).time_s
    both = [replace(x, overlap=Overlap.TWO_BATCH) for x in (few, many)]
    busy = [x.flow(step, np.random.default_rng(0)).flow for x in both]
    assert busy[0] is not None
    assert busy[1] is not None
    assert busy[1].engine_busy_s.mean() / busy[0].engine_busy_s.mean() == pytest.approx(124 / 84, rel=0.03)


def test_kernels_of_exchanges_may_be_chosen() -> None:
    high = _instance(FlowSpec.model_validate({"exchange": "high_throughput"}))
    step = _decode(high)
    shapes = [op.shape for _, op in high.program(step).ops() if op.kind is OpKind.DISPATCH]
    assert all(isinstance(s, ExchangeShape) and not s.is_low_latency for s in shapes)
    assert _time(high, step) != _time(_instance(), step)
    # a token goes to a rank once, not once per expert there
    own = [op.shape for _, op in _instance().program(step).ops() if op.kind is OpKind.DISPATCH]
    nic = [np.mean(s.nic_out_bytes) for s in (shapes[0], own[0]) if isinstance(s, ExchangeShape)]
    assert nic[0] < 0.7 * nic[1]


def test_uneven_groups_wait_for_the_fullest() -> None:
    even, uneven = _instance(), _instance(FlowSpec(dp_load=(1.0, 1.0, 1.0, 2.0)))
    step = _decode(uneven)
    assert step.batch == _decode(even).batch
    assert step.group_batch is not None
    assert max(step.group_batch) == 2 * min(step.group_batch) + 1 or max(step.group_batch) == 2 * min(step.group_batch)
    a, b = even.flow(_decode(even), np.random.default_rng(0)).flow, uneven.flow(step, np.random.default_rng(0)).flow
    assert a is not None
    assert b is not None
    assert b.time_s > a.time_s
    assert b.slower_wait_s > a.slower_wait_s + 0.01 * a.time_s
    assert uneven.analytic(step).time_s > even.analytic(_decode(even)).time_s


def test_the_fullest_group_must_fit() -> None:
    even, uneven = _instance(), _instance(FlowSpec(dp_load=(1.0, 3.0)))
    cache = [x.memory(N * 32, 4096, 2048).memory.kv_cache for x in (even, uneven)]
    assert cache[1] == pytest.approx(1.5 * cache[0])
    longer = _instance(FlowSpec(dp_context=(1.0, 3.0))).memory(N * 32, 4096, 2048)
    assert longer.memory.kv_cache == pytest.approx(1.5 * cache[0])


def test_pairs_of_ranks_may_be_told_apart() -> None:
    step = _decode(_instance())
    coarse = _time(_instance(), step)
    fine = _time(_instance(FlowSpec(granularity=Granularity.PAIR)), step)
    assert fine != coarse
    assert fine == pytest.approx(coarse, rel=0.05)
    assert _instance(FlowSpec(granularity=Granularity.CHUNK, n_chunks=3)).options(Phase.DECODE).n_chunks == 3


@pytest.fixture(scope="module")
def uneven() -> WhatIf:
    flow = FlowSpec(slow_ranks={3: 1.5}, launch_s=12e-6, dp_load=(1.0, 1.0, 1.0, 1.5))
    instance = _instance(flow, Overlap.TWO_BATCH)
    return what_if(instance, _decode(instance), 0)


def test_what_if_the_machine_were_healthy(uneven: WhatIf) -> None:
    found = {a.name: a for a in uneven.alternatives}
    assert {"no stragglers", "no launch time", "even loads", "no overlap"} <= set(found)
    assert all(found[name].speedup > 1.0 for name in ("no stragglers", "even loads"))
    healthy = _instance(FlowSpec(launch_s=12e-6, dp_load=(1.0, 1.0, 1.0, 1.5)), Overlap.TWO_BATCH)
    assert found["no stragglers"].time_s == pytest.approx(_time(healthy, _decode(healthy)))


def test_what_if_in_one_domain_prices_experts_as_they_are() -> None:
    from moesim.study import whatif

    instance = build_instance(load_model("deepseek-v3"), SPLIT, load_hardware("h100_x2_nodes", 16), EVENLY)
    step = _decode(instance)
    rack = whatif._on(instance, whatif._one_domain(instance.hardware, 72)[0])
    program = instance.program(step)
    assert whatif._are_grouped(program)
    assert not whatif._are_grouped(rack.program(step))
    kept = whatif._with_grouped(rack.program(step))
    for (_, a), (_, b) in zip(program.ops(), kept.ops(), strict=True):
        if a.kind is OpKind.GROUPED_GEMM or a.group == "permute":
            assert rack.cost.cost(b) == instance.cost.cost(a)
    found = what_if(instance, step).alternatives
    link = next(a for a in found if a.name.startswith("one NVLink domain"))
    # what it gains is communication, not experts
    assert link.speedup > 1.0
    base = what_if(instance, step).base
    assert base.time_s - link.time_s == pytest.approx(base.exposed_comm_s - link.exposed_comm_s, rel=0.02)


def _scenario(**system: Any) -> ScenarioSpec:
    own = {
        "name": "moe", "kind": "moe", "model": "qwen3-30b-a3b", "parallel": {"dp_size": 16, "ep_size": 16},
        "routing": {"family": "balanced"}, **system,
    }  # fmt: skip
    return ScenarioSpec.model_validate(
        {
            "title": "exposed", "hardware": "h100_x2_nodes", "calibration": "none", "systems": [own], "engine": "flow",
            "workload": {"input_tokens": 256, "output_tokens": 64, "concurrency": [16 * 32], "max_pass_tokens": 256},
        }
    )  # fmt: skip


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
@pytest.mark.parametrize("engine", [Engine.ANALYTIC, Engine.FLOW])
def test_commands_agree_on_what_is_exposed(overlap: str, engine: Engine) -> None:
    scenario = _scenario(overlap=overlap, model="deepseek-v2-lite")
    found = run_scenario(scenario, engine=engine).result.systems[0]
    decode = found.details[0]
    frac = decode.exposed_comm_s / decode.time_s
    assert 0.0 <= frac < 0.6
    assert found.points[0].exposed_comm_frac == pytest.approx(frac, rel=0.02, abs=2e-3)
    for row in decode.what_if[:1]:
        assert row.exposed_comm_s == decode.exposed_comm_s
    swept = run_sweep(SweepSpec.model_validate({
        "title": "t", "base": scenario.model_dump(mode="json"), "engine": engine.value,
        "axes": [{"path": "overlap", "values": [overlap]}],
    }))  # fmt: skip
    assert float(swept.columns["exposed_comm_frac"][0]) == pytest.approx(frac, rel=0.02, abs=2e-3)
    alone = moesim.estimate(
        "deepseek-v2-lite", "h100_x2_nodes", dp=16, ep=16, batch=16 * 32, context=288, routing={"family": "balanced"},
        calibration="none", engine=engine.value, overlap=overlap,
    )  # fmt: skip
    assert alone.exposed_comm_s is not None
    assert alone.time_s is not None
    assert alone.exposed_comm_s / alone.time_s == pytest.approx(frac, rel=0.02, abs=2e-3)


def test_closed_form_and_simulation_agree_on_what_is_exposed() -> None:
    instance = _instance()
    for step in (_decode(instance), _prefill(instance)):
        program, simulated = instance.simulated(step, instance.draw(step, np.random.default_rng(0)))
        closed = estimate(program, instance.cost)
        assert simulated.exposed_comm_s == pytest.approx(closed.exposed_comm_s, rel=0.03)


def test_hidden_communication_is_not_exposed_in_a_sweep() -> None:
    base = _scenario(model="deepseek-v2-lite").model_dump(mode="json")
    spec = {"title": "t", "base": base, "axes": [{"path": "overlap", "values": ["none", "shared_experts"]}]}
    swept = run_sweep(SweepSpec.model_validate({**spec, "engine": "analytic"})).columns
    none, shared = (float(x) for x in swept["exposed_comm_frac"])
    assert shared < none
    instance = build_instance(
        load_model("deepseek-v2-lite"),
        SPLIT,
        load_hardware("h100_x2_nodes", 16),
        EVENLY,
        overlap=Overlap.SHARED_EXPERTS,
    )
    closed = instance.analytic(instance.decode_pass(16 * 32, 288))
    assert shared == pytest.approx(closed.exposed_comm_s / closed.time_s, rel=1e-6)


def test_overlap_without_exchanges_is_said_and_not_drawn() -> None:
    scenario = _scenario(overlap="two_batch", parallel={"tp_size": 4}).model_copy(update={"n_devices": 4})
    found = run_scenario(scenario).result.systems[0]
    assert any("changes nothing" in note for note in found.notes)
    assert "no overlap" not in {row.name for row in found.details[0].what_if}
    assert "two micro-batches" not in {row.name for row in found.details[0].what_if}
    assert not any("changes nothing" in n for n in run_scenario(_scenario(overlap="two_batch")).result.systems[0].notes)


@pytest.mark.parametrize("fields", [{"slow_ranks": {1: 2.0}}, {"granularity": "pair"}, {"launch_s": 5e-6}])
def test_the_closed_form_refuses_what_it_does_not_know(fields: dict[str, Any]) -> None:
    # files have units: five microseconds are text there
    written = {name: "5 us" if name == "launch_s" else value for name, value in fields.items()}
    with pytest.raises(InputError, match="known to the simulation only") as error:
        run_scenario(_scenario(flow=fields), engine=Engine.ANALYTIC)
    assert error.value.field == f"systems.0.flow.{next(iter(fields))}"
    base = _scenario().model_dump(mode="json")
    base["systems"][0]["flow"] = written
    axes = [{"path": "overlap", "values": ["none"]}]
    with pytest.raises(InputError, match="known to the simulation only"):
        run_sweep(SweepSpec.model_validate({"title": "t", "base": base, "axes": axes}))
    with pytest.raises(InputError, match="known to the simulation only"):
        moesim.estimate("qwen3-30b-a3b", "h100_x2_nodes", dp=16, ep=16, flow=fields)


def test_flips_and_serving_refuse_it_too() -> None:
    data = _scenario(flow={"slow_ranks": {1: 2.0}}).model_dump(mode="json")
    dense = {"name": "dense", "kind": "dense", "model": "qwen3-32b", "parallel": {"tp_size": 8}}
    flips = {**data, "systems": [*data["systems"], dense], "comparison": {"flips": ["concurrency"]}}
    with pytest.raises(InputError, match="flips are traced in closed form"):
        run_scenario(ScenarioSpec.model_validate(flips))
    with pytest.raises(ValidationError, match="serve prices passes in closed form"):
        ServeScenarioSpec.model_validate({"title": "t", "hardware": "h100_x2_nodes", "system": data["systems"][0]})


def test_a_sweep_varies_settings() -> None:
    base = _scenario(routing={"family": "balanced"}).model_dump(mode="json")
    swept = run_sweep(SweepSpec.model_validate({
        "title": "t", "base": base, "engine": "flow", "axes": [
            {"path": "flow.slow_ranks", "values": [{}, {12: 2.0}]},
            {"path": "parallel", "values": [{"dp_size": 16, "ep_size": 16}, {"dp_size": 8, "ep_size": 8}]},
        ],
    })).columns  # fmt: skip
    assert list(swept["outcome"]) == ["ok", "ok", "ok", "invalid configuration"]  # eight ranks have no rank 12
    assert swept["decode_step_s"][2] > 1.5 * swept["decode_step_s"][0]


def test_a_dense_twin_runs_on_the_same_slow_machine() -> None:
    data = _scenario(flow={"slow_ranks": {1: 3.0}}).model_dump(mode="json")
    slow = ScenarioSpec.model_validate({**data, "comparison": {"bases": ["equal_active"]}})
    data["systems"][0]["flow"] = {}
    healthy = ScenarioSpec.model_validate({**data, "comparison": {"bases": ["equal_active"]}})
    twins = [run_scenario(x).result.systems[1].points[0].decode_step_s for x in (slow, healthy)]
    assert twins[0] is not None
    assert twins[1] is not None
    assert twins[0] > 1.5 * twins[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"granularity": "rang"}, {"slow_ranks": {1: "x"}}, {"slow_ranks": [1]}, {"slow_links": {True: 2.0}},
        {"launch_s": float("nan")}, {"launch_s": -1.0}, {"n_chunks": 2.5}, {"n_chunks": 0},
    ],
)  # fmt: skip
def test_bad_options_are_one_line(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        FlowOptions(**fields)
    assert error.value.field == next(iter(fields))
    assert "\n" not in str(error.value)


def test_options_take_names() -> None:
    assert FlowOptions(granularity="pair").granularity is Granularity.PAIR  # type: ignore[arg-type]


def test_overlap_takes_its_names() -> None:
    assert Overlap.of("none") is Overlap.NONE
    assert Overlap.of("two_batch") is Overlap.TWO_BATCH
    assert _instance(overlap=Overlap.NONE).overlap is Overlap.NONE
    for bad in ("bogus", None, 3):
        with pytest.raises(InputError, match="not known"):
            Overlap.of(bad)  # type: ignore[arg-type]
