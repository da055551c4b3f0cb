import pytest

from moesim.errors import InputError
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import SweepSpec
from moesim.study.serve import run_serve
from moesim.study.sweep import run_sweep

BASE = {
    "title": "s", "hardware": "hgx_h100", "calibration": "none",
    "system": {"name": "m", "kind": "moe", "model": "mixtral-8x7b", "parallel": {"tp_size": 8}},
    "serving": {"arrivals": {"kind": "poisson", "rate_per_s": 4.0, "n_requests": 40}, "input": {"kind": "fixed", "tokens": 256},
                "output": {"kind": "fixed", "tokens": 32}},
}  # fmt: skip


def sweep(axes, **fields):
    return SweepSpec.model_validate({"title": "t", "base": BASE, "engine": "serving", "axes": axes, **fields})


def test_served_cases_are_what_serve_says(tmp_path):
    axes = [{"path": "serving.arrivals.rate_per_s", "values": [2.0, 20.0]}, {"path": "parallel.tp_size", "values": [8]}]
    result = run_sweep(sweep(axes), out_dir=tmp_path)
    assert result.ok.all()
    alone = run_serve(ServeScenarioSpec.model_validate(BASE | {"serving": {**BASE["serving"], "arrivals": {
        "kind": "poisson", "rate_per_s": 20.0, "n_requests": 40}}}), seed=0).result  # fmt: skip
    assert result.number("ttft_p99_s")[1] == pytest.approx(alone.ttft_s.p99, rel=1e-9)
    assert result.number("output_tokens_per_s")[1] > result.number("output_tokens_per_s")[0]


def test_paths_and_values_of_serve_scenarios_are_checked():
    with pytest.raises(InputError, match=r"did you mean 'serving.arrivals.rate_per_s'"):
        run_sweep(sweep([{"path": "serving.arrivals.rate_per_sec", "values": [1.0]}]))
    with pytest.raises(InputError, match="must be"):
        run_sweep(sweep([{"path": "serving.arrivals.rate_per_s", "values": ["fast"]}]))
    with pytest.raises(InputError, match="neither against"):
        run_sweep(sweep([{"path": "parallel.tp_size", "values": [8]}], constraints=[{"kind": "fixed_active_params"}]))
