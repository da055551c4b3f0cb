"""Sweeps over the architectures of 2026: arrays and single points agree, memory too; every command's estimate runs."""

import pytest
from sweep_base import BASE, make
from test_sweep_values import assert_same, test_memory_and_parameters_are_counted_as_elsewhere

import moesim
from moesim.study.sweep import run_sweep

NAMES = ["deepseek-v4-flash", "minimax-m3", "kimi-k3", "nemotron-3-super-120b-a12b", "nemotron-3-nano-30b-a3b"]
SPLITS = [{}, {"tp_size": 2, "ep_size": 2}, {"dp_size": 4, "ep_size": 4, "pp_size": 2}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_memory(name, split):
    test_memory_and_parameters_are_counted_as_elsewhere(name, split)


@pytest.mark.parametrize("name", ["deepseek-v4-flash", "nemotron-3-super-120b-a12b", "minimax-m3"])
def test_values(name):
    system = {"name": "MoE", "kind": "moe", "model": name, "parallel": {"dp_size": 16, "ep_size": 16}}
    base = {**BASE, "calibration": "none", "systems": [system]}
    axes = [
        {"path": "model.num_experts_per_tok", "values": [2, 6]}, {"path": "model.n_routed_experts", "values": [64, 128]},
        {"zip": [{"path": "parallel.dp_size", "values": [16, 4]}, {"path": "parallel.tp_size", "values": [1, 4]}]},
        {"path": "workload.concurrency", "values": [1, 300]},
    ]  # fmt: skip
    assert_same(run_sweep(make(axes, base)), base)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("engine", ["analytic", "flow"])
@pytest.mark.parametrize(
    ("name", "hardware", "split"),
    [
        ("deepseek-v4-flash", "hgx_h200", {"dp": 8, "ep": 8}),
        ("kimi-k3", "gb300_nvl72", {"dp": 32, "ep": 32}),
        ("minimax-m3", "hgx_b200", {"tp": 8}),
        ("nemotron-3-ultra-550b-a55b", "hgx_b200", {"tp": 8, "ep": 8, "weight_dtype": "fp8"}),
        ("nemotron-3-nano-30b-a3b", "hgx_h100", {"tp": 2}),
        ("llama-3.3-nemotron-super-49b", "hgx_h100", {"tp": 4}),
        ("glm-5.2", "hgx_b200", {"dp": 8, "ep": 8, "weight_dtype": "nvfp4"}),
    ],
)
def test_every_family_is_estimated(name, hardware, split, engine, phase):
    small = moesim.estimate(name, hardware, phase=phase, batch=32, context=2048, engine=engine, **split)
    large = moesim.estimate(name, hardware, phase=phase, batch=32, context=8192, engine=engine, **split)
    assert 0.0 < small.time_s <= large.time_s
