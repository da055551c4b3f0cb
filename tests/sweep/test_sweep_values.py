"""The arrays of a sweep against the way every other command takes: `measure_point` on a system built for each case."""

import numpy as np
import pytest
from sweep_base import BASE, make

from moesim.errors import InputError
from moesim.memory import check_memory
from moesim.memory.count import Serving
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import Basis, ComparisonSpec, Engine, ScenarioSpec
from moesim.study.calibrated import calibration_for
from moesim.study.points import measure_point
from moesim.study.resolve import resolve_model
from moesim.study.sweep import run_sweep
from moesim.study.sweep.sentences import conclusions
from moesim.study.sweep.shapes import Experts, changed_model, memory_of, n_params_of
from moesim.study.systems import build_candidates, build_system

FIELDS = (
    "ttft_s", "tpot_s", "decode_step_s", "output_tokens_per_s", "output_tokens_per_s_per_device", "output_tokens_per_s_per_user",
    "usd_per_million_output_tokens", "energy_j_per_output_token",
)  # fmt: skip


def one_by_one(base, settings, seed=0):
    """A case by hand: the scenario with its fields set, the model with its experts changed, and one point."""
    scenario = ScenarioSpec.model_validate(base)
    spec = scenario.systems[0]
    parallel = {k.removeprefix("parallel."): v for k, v in settings.items() if k.startswith("parallel.")}
    routing = {k.removeprefix("routing."): v for k, v in settings.items() if k.startswith("routing.")}
    update = {"parallel": ParallelSpec(**{**spec.parallel.model_dump(), **parallel})}
    if routing:
        update["routing"] = type(spec.routing).model_validate({**spec.routing.model_dump(), **routing})
    spec = spec.model_copy(update=update)
    experts = {k.removeprefix("model."): v for k, v in settings.items() if k.startswith("model.")}
    model = changed_model(resolve_model(spec), experts) if experts else resolve_model(spec)
    hardware = load_hardware(settings.get("hardware", scenario.hardware), scenario.n_devices)
    rng = np.random.default_rng(seed)
    system = build_system(spec, model, hardware, calibration_for(scenario.calibration, hardware.device.name), rng)
    workload = {k.removeprefix("workload."): v for k, v in settings.items() if k.startswith("workload.")}
    concurrency = workload.pop("concurrency", scenario.workload.middle)
    return measure_point(
        system,
        hardware,
        scenario.workload.model_copy(update=workload),
        concurrency,
        Engine.ANALYTIC,
        rng,
        explain=False,
    )


def assert_same(result, base, rel=1e-9):
    ran = 0
    for i in range(result.n_cases):
        point = one_by_one(base, result.configuration(i))
        assert result.columns["outcome"][i] == point.outcome, result.configuration(i)
        for name in FIELDS:
            expected, got = getattr(point, name), float(result.columns[name][i])
            assert np.isnan(got) if expected is None else got == pytest.approx(expected, rel=rel), (
                name,
                result.configuration(i),
            )
        ran += point.outcome == "ok"
    assert ran > result.n_cases // 3  # the test is about times, not about what does not fit


@pytest.mark.parametrize("calibration", ["none", None])
def test_shapes_splits_and_workloads(calibration):
    axes = [
        {"path": "model.n_routed_experts", "values": [64, 256]}, {"path": "model.num_experts_per_tok", "values": [1, 8]},
        {"path": "model.moe_intermediate_size", "values": [1024, 2048]},
        {"zip": [{"path": "parallel.dp_size", "values": [16, 4, 1]}, {"path": "parallel.tp_size", "values": [1, 4, 8]},
                 {"path": "parallel.ep_size", "values": [16, 16, 8]}, {"path": "parallel.pp_size", "values": [1, 1, 2]}]},
        {"zip": [{"path": "workload.concurrency", "values": [1, 300, 5000]}, {"path": "workload.input_tokens",
        "values": [100, 2048, 20000]}]},
    ]  # fmt: skip
    base = {**BASE, "calibration": calibration}
    assert_same(run_sweep(make(axes, base)), base)


@pytest.mark.parametrize("overlap", [False, True])
def test_skewed_experts_and_overlap(overlap):
    system = {**BASE["systems"][0], "overlap": overlap, "routing": {"family": "zipf", "skew": 0.5}}
    base = {**BASE, "calibration": "none", "systems": [system]}
    axes = [
        {"path": "routing.skew", "values": [0.2, 1.0]}, {"path": "workload.concurrency", "values": [16, 999]},
        {"path": "model.num_experts_per_tok", "values": [4, 8]},
    ]  # fmt: skip
    result = run_sweep(make(axes, base))
    assert_same(result, base)
    assert (result.number("rank_imbalance_ratio") > 1).all()


def test_dense_models_windows_and_hardware():
    system = {"name": "g", "kind": "dense", "model": "gemma-3-27b", "parallel": {"tp_size": 2}}
    base = {**BASE, "hardware": "hgx_h100", "systems": [system]}
    axes = [
        {"path": "hardware", "values": ["hgx_h100", "mi300x_8", "hgx_b200"]}, {"path": "workload.concurrency", "values": [8, 64]},
        {"path": "workload.cached_prefix_tokens", "values": [0, 512]}, {"path": "workload.max_pass_tokens",
        "values": [256, 8192]},
    ]  # fmt: skip
    assert_same(run_sweep(make(axes, base)), base)


@pytest.mark.parametrize(
    "name", ["deepseek-v3", "qwen3-30b-a3b", "gpt-oss-120b", "arctic", "llama-4-maverick", "jamba-v0.1"]
)
@pytest.mark.parametrize("split", [{}, {"tp_size": 2, "ep_size": 2}, {"dp_size": 4, "ep_size": 4, "pp_size": 2}])
def test_memory_and_parameters_are_counted_as_elsewhere(name, split):
    model, hardware, parallel = load_model(name), load_hardware("hgx_h200"), ParallelSpec(**split)
    for change in ({}, {"n_routed_experts": 32, "num_experts_per_tok": 2, "moe_intermediate_size": 512}):
        experts = Experts(*(np.asarray([float(v)]) for v in change.values())) if change else Experts()
        plain = changed_model(model, change) if change else model
        assert tuple(float(x.ravel()[0]) for x in n_params_of(model, experts)) == (
            plain.n_params,
            plain.n_active_params,
        )
        got = memory_of(
            model, parallel, hardware, experts, np.asarray([37.0]), np.asarray([1000.0]), np.asarray([4096.0])
        )
        want = check_memory(plain, parallel, Serving(37.0, 1000.0, 4096.0), hardware.device.memory_bytes, explain=False)
        assert got[0] == pytest.approx(want.memory.total, rel=1e-12)


def test_links():
    base = {**BASE, "calibration": None}
    axes = [{"path": "network.scale", "values": [0.25, 1.0, 4.0]}, {"path": "network.nic_scale", "values": [1.0, 0.5]}]
    step = run_sweep(make(axes, base)).number("decode_step_s")
    assert step[0] > step[2] > step[4]  # faster links, shorter steps
    assert step[3] > step[2]  # slower NICs alone
    dense = {**BASE, "systems": [BASE["systems"][1]], "hardware": "hgx_h200"}
    tp = run_sweep(make([{"path": "network.up_scale", "values": [0.1, 1.0]}], dense)).number("decode_step_s")
    assert tp[0] > tp[1]  # calibrated collectives slow down too


def test_price_and_against():
    axes = [{"path": "price_usd_per_device_h", "values": [1.0, 2.0]}]
    result = run_sweep(make(axes, system="MoE", against="dense"))
    usd = result.number("usd_per_million_output_tokens")
    assert usd[1] == pytest.approx(2 * usd[0], rel=1e-9)
    ratio = result.number("usd_ratio")
    assert ratio[0] == pytest.approx(result.number("against_usd_per_million_output_tokens")[0] / usd[0], rel=1e-9)


def test_flow_engine_agrees_with_the_closed_form_within_its_imbalance():
    base = {**BASE, "hardware": "hgx_h100", "calibration": "none", "systems": [
        {"name": "m", "kind": "moe", "model": "mixtral-8x7b", "parallel": {"dp_size": 8, "ep_size": 8}}]}  # fmt: skip
    axes = [
        {"path": "workload.concurrency", "values": [64, 256]},
        {"path": "model.num_experts_per_tok", "values": [1, 2]},
    ]
    closed = run_sweep(make(axes, base)).number("decode_step_s")
    flow = run_sweep(make(axes, base, engine="flow")).number("decode_step_s")
    assert flow == pytest.approx(closed, rel=0.5)
    assert not np.array_equal(flow, closed)


def test_each_case_has_its_own_interval() -> None:
    values = [1, 16, 256, 4096, 8192]
    together = run_sweep(make([{"path": "workload.concurrency", "values": values}])).number("error_frac")
    alone = [run_sweep(make([{"path": "workload.concurrency", "values": [n]}])).number("error_frac")[0] for n in values]
    assert together == pytest.approx(alone, rel=1e-9, nan_ok=True)
    assert len(set(together.tolist())) > 1


@pytest.mark.parametrize("basis", ["equal_active", "equal_total"])
def test_twins_are_those_of_a_comparison(basis: str) -> None:
    """Two ways to one number: the dense twin that `moesim run` compares with, at its middle concurrency."""
    scenario = ScenarioSpec.model_validate(BASE)
    hardware = load_hardware(scenario.hardware)
    calibration = calibration_for(scenario.calibration, hardware.device.name)
    rng = np.random.default_rng(0)
    asked = scenario.model_copy(update={"comparison": ComparisonSpec(bases=(Basis(basis),))})
    twin = build_candidates(asked, hardware, calibration, rng)[-1]
    assert twin.basis is Basis(basis)
    result = run_sweep(make([{"path": "workload.concurrency", "values": [256]}], against=basis))
    point = measure_point(twin.system, hardware, scenario.workload, 256, Engine.ANALYTIC, rng, explain=False)
    assert result.columns["against_outcome"][0] == point.outcome == "ok"
    assert result.number("against_usd_per_million_output_tokens")[0] == pytest.approx(
        point.usd_per_million_output_tokens
    )


def test_every_case_has_the_twin_of_its_own_experts() -> None:
    axes = [
        {"path": "model.num_experts_per_tok", "values": [2, 8]},
        {"path": "workload.concurrency", "values": [8, 4096]},
    ]
    report = {"question": "break_even"}
    result = run_sweep(make(axes, against="equal_active", report=report))
    usd = result.number("against_usd_per_million_output_tokens").reshape(2, 2)
    assert (usd[1] > usd[0]).all()  # more active parameters in the MoE, more in its twin
    expected = usd.ravel() / result.number("usd_per_million_output_tokens")
    assert result.number("usd_ratio") == pytest.approx(expected)
    assert "a dense twin of equal active parameters" in conclusions(result, [], [])[0]


@pytest.mark.parametrize(("fields", "words"), [
    ({"against": "equal"}, "equal_quality"), ({"against": "equal_active", "system": "dense"}, "with experts"),
    ({"against": "equal_active", "engine": "flow"}, "engine analytic"),
])  # fmt: skip
def test_twins_that_make_no_sense_are_refused(fields: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_sweep(make([{"path": "workload.concurrency", "values": [8]}], **fields))
