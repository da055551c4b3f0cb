"""The same stack in every command: equal to `validate`, taken from a file of own runs, said in the results, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
from moesim.ops import Phase
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import ScenarioSpec
from moesim.study.kernels import stack_for
from moesim.study.run import run_scenario
from moesim.study.single import estimate_pass
from moesim.study.stack_files import save_stack, shipped_stacks
from moesim.study.validate.fit import stack_key
from moesim.study.validate.predict import Batch
from moesim.study.validate.setup import model_of
from moesim.study.validate.table import RunRow
from moesim.study.validate.workload import Workbench


def validated(row: RunRow) -> tuple[float, float]:
    """TTFT and TPOT in seconds by `validate`."""
    batch = Batch.of([row], [Workbench().features(row)])
    ttft, tpot = batch.predict(stack_for(stack_key(row), shipped_stacks()))[0]
    return float(ttft), float(tpot)


def serve_scenario(concurrency: int, calibration: str | None = None) -> dict[str, Any]:
    return {
        "title": "as validated", "hardware": "h200_sxm", "n_devices": 4, "calibration": calibration,
        "system": {"name": "m", "kind": "dense", "model": "llama-3.1-70b", "parallel": {"tp_size": 4}},
        "serving": {
            "arrivals": {"kind": "closed_loop", "concurrency": concurrency, "n_requests": 10 * concurrency},
            "input": {"kind": "uniform", "low": 819, "high": 1024}, "output": {"kind": "uniform", "low": 205, "high": 256},
            "scheduler": {"prefix_caching": False},
        },
    }  # fmt: skip


def scenario(calibration: str | None = None) -> dict[str, Any]:
    return {
        "title": "two", "hardware": "hgx_h100", "n_devices": 4, "calibration": calibration, "engine": "analytic",
        "systems": [
            {"name": "MoE", "kind": "moe", "model": "qwen3-30b-a3b", "parallel": {"tp_size": 4}},
            {"name": "dense", "kind": "dense", "model": "qwen3-32b", "parallel": {"tp_size": 4}},
        ],
        "workload": {"input_tokens": 1024, "output_tokens": 256, "concurrency": [1, 64]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "system", "precision", "backend", "tp"),
    [
        ("openai/gpt-oss-120b", "b200_sxm", "fp4", "vllm", 1),
        ("meta-llama/Llama-3.1-70B", "b200_sxm", "fp8", "vllm", 4),
        ("Qwen/Qwen3-235B-A22B-FP8", "h100_sxm", "fp8", "trtllm", 8),
    ],
)
def test_one_request_alone_takes_as_long_as_in_validate(
    model: str, system: str, precision: str, backend: str, tp: int
) -> None:
    _, tpot = validated(RunRow("x", model, system, backend, precision, 1024, 1024, 1, tp))
    spec = model_of(model, precision, backend, system)
    found = estimate_pass(
        spec,
        system,
        ParallelSpec(tp_size=tp),
        Phase.DECODE,
        batch=1,
        context=round(0.9 * 1.5 * 1024),
        calibration=backend,
    )
    assert found.time_s == pytest.approx(tpot, rel=0.01)
    assert found.time_low_s is not None
    assert found.time_high_s is not None
    assert found.time_low_s < tpot < found.time_high_s
    assert f"with {backend}_" in found.calibration
    assert "captured graph" in found.reached


@pytest.mark.parametrize("concurrency", [4, 32])
def test_serving_agrees_with_validate(concurrency: int) -> None:
    row = RunRow(
        "x",
        "meta-llama/Llama-3.1-70B",
        "h200_sxm",
        "vllm",
        "",
        1024,
        256,
        concurrency,
        4,
        budget_tokens=8192,
        poll_passes=1,
    )
    ttft, tpot = validated(row)
    result = moesim.serve(serve_scenario(concurrency)).result
    # the same passes within 1.5%; how prompts meet in them differs a little more the more are in flight
    assert result.tpot_s.mean == pytest.approx(tpot, rel=0.10)
    assert result.ttft_s.mean == pytest.approx(ttft, rel=0.25)
    low, high = result.intervals_90["tpot_s.mean"]
    assert low < float(result.tpot_s.mean or 0.0) < high
    assert "serving runs" in result.interval_basis


def test_a_file_of_own_runs_is_used_by_every_command(tmp_path: Path) -> None:
    from dataclasses import replace

    own = tmp_path / "mine.yaml"
    slow = replace(shipped_stacks()["vllm_hopper"], step_s=5e-3)
    save_stack(own, "mine", slow, source="own runs", base="h100_sxm/vllm")
    name = str(own)
    plain = moesim.estimate("qwen3-32b", "hgx_h100", tp=4)
    mine = moesim.estimate("qwen3-32b", "hgx_h100", tp=4, calibration=name)
    added = 5e-3 - shipped_stacks()["vllm_hopper"].step_s
    assert mine.time_s == pytest.approx((plain.time_s or 0.0) + added, rel=1e-9)
    assert "with mine" in mine.calibration

    def steps(calibration: str | None) -> list[float]:
        run = run_scenario(ScenarioSpec.model_validate(scenario(calibration)))
        swept = moesim.sweep(
            {"title": "s", "base": scenario(calibration), "system": "MoE",
             "axes": [{"path": "workload.concurrency", "values": [64]}]}
        ).result  # fmt: skip
        served = moesim.serve({**serve_scenario(4, calibration), "hardware": "h100_sxm"}).result
        planned = moesim.plan(
            "qwen3-30b-a3b", "hgx_h100", 4, 1024, 256, calibration=calibration, n_confirm=0, tpot_s=0.05
        ).best
        assert planned is not None
        return [
            float(run.result.systems[0].points[1].decode_step_s or 0.0),
            float(swept.number("decode_step_s")[0]),
            float(served.tpot_s.mean or 0.0),
            planned.tpot_s,
        ]

    for before, after in zip(steps(None), steps(name), strict=True):
        assert after > before + 0.5 * added


def test_results_carry_intervals_and_say_what_stands_behind_them() -> None:
    for calibration, basis in ((None, "serving runs"), ("tables", "kernels"), ("none", "assumption only")):
        result = run_scenario(ScenarioSpec.model_validate(scenario(calibration))).result
        point, comparison = result.systems[0].points[1], result.comparisons[1]
        assert basis in point.interval_basis
        if calibration == "none":
            assert not point.intervals
            assert "assumption only" in comparison.verdict
            continue
        for name in ("ttft_s", "tpot_s", "output_tokens_per_s", "usd_per_million_output_tokens"):
            low, high = point.intervals[name]
            assert low < getattr(point, name) < high
        low, high = comparison.intervals["usd_ratio"]
        assert low < (comparison.usd_ratio or 0.0) < high
        assert f"{comparison.usd_ratio:.2f}" in comparison.verdict


def test_a_sweep_carries_the_same_intervals_as_a_run() -> None:
    run = run_scenario(ScenarioSpec.model_validate(scenario())).result
    swept = moesim.sweep(
        {"title": "s", "base": scenario(), "system": "MoE", "against": "dense",
         "axes": [{"path": "workload.concurrency", "values": [1, 64]}]}
    ).result  # fmt: skip
    for i, point in enumerate(run.systems[0].points):
        for name in ("tpot_s", "ttft_s", "energy_j_per_output_token"):
            ends = [float(swept.number(f"{name}_{end}")[i]) for end in ("low", "high")]
            assert ends == pytest.approx(point.intervals[name], rel=1e-9)
        comparison = next(c for c in run.comparisons if c.concurrency == point.concurrency)
        ends = [float(swept.number(f"usd_ratio_{end}")[i]) for end in ("low", "high")]
        assert ends == pytest.approx(comparison.intervals["usd_ratio"], rel=1e-9)


def test_simulated_passes_scatter() -> None:
    from moesim.specs.catalog import load_hardware, load_model
    from moesim.specs.routing import RoutingSpec
    from moesim.study.instance import build_instance
    from moesim.study.points import scatter

    hardware = load_hardware("hgx_h100", 8)
    split = ParallelSpec(dp_size=8, ep_size=8)
    rng = np.random.default_rng(0)
    skewed = build_instance(
        load_model("qwen3-30b-a3b"),
        split,
        hardware,
        RoutingSpec.model_validate({"family": "zipf", "skew": 0.8}),
        rng=rng,
    )
    found = scatter(skewed, skewed.decode_pass(64, 1024), np.random.default_rng(1))
    assert 0.0 < found < 0.5
