"""Whatever shipped scenario, axes and constraints are combined: an answer or one clear line for each case, never a fault."""

from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.specs.sweep import SweepSpec
from moesim.study.sweep import run_sweep

SCENARIOS = sorted(p.stem for p in (Path(__file__).resolve().parents[2] / "scenarios").glob("*.yaml"))
VALUES = {
    "workload.concurrency": [1, 7, 4096, 10**7], "workload.input_tokens": [1, 1000, 10**7], "workload.output_tokens": [1, 300],
    "workload.cached_prefix_tokens": [0, 900, 10**6], "workload.max_pass_tokens": [1, 64, 8192],
    "model.n_routed_experts": [1, 3, 8, 48, 128], "model.num_experts_per_tok": [1, 3, 8], "model.split": [1, 2, 3, 5],
    "model.moe_intermediate_size": [1, 100, 14336], "model.n_layers": [1, 3, 200], "model.hidden_size": [64, 100, 8192],
    "model.n_shared_experts": [0, 1, 3], "model.vocab_size": [1, 32000], "parallel.tp_size": [1, 2, 3, 16],
    "parallel.dp_size": [1, 2, 5], "parallel.ep_size": [1, 2, 7, 8], "parallel.pp_size": [1, 2, 90], "parallel.cp_size": [1, 2],
    "parallel.redundant_experts": [0, 1, 8], "routing.skew": [0.0, 1.5], "routing.family": ["uniform", "balanced", "zipf"],
    "routing.placement.kind": ["contiguous", "eplb_global"], "weight_dtype": [None, "bf16", "int4"],
    "overlap": ["none", "shared_experts"],
    "hardware": ["hgx_h100", "h200_x2_nodes", "rtx_pro_6000"], "n_devices": [1, 2, 8], "network.scale": [0.01, 1.0, 10.0],
    "price_usd_per_device_h": [0.5, 3.0], "training.compute_flop": [1e18, 1e26],
    "model": ["mixtral-8x7b", "llama-2-13b", "gpt-oss-120b"],
}  # fmt: skip
CONSTRAINTS = [
    {"kind": "fixed_active_params"}, {"kind": "fixed_total_params"}, {"kind": "fixed_memory"},
    {"kind": "fixed_total_params", "by": "n_routed_experts"}, {"kind": "fixed_active_params", "by": "num_experts_per_tok"},
    {"kind": "fixed_memory", "by": "moe_intermediate_size"}, {"kind": "fixed_training_compute", "value": 1e22},
    {"kind": "fixed_active_params", "value": 1.0},
]  # fmt: skip


def some_sweep(rng: np.random.Generator) -> SweepSpec:
    """A random question, sensible or not."""
    n = int(rng.integers(1, 4))
    paths = rng.choice(sorted(VALUES), size=n, replace=False)
    axes = [
        {"path": str(p), "values": [VALUES[p][i] for i in sorted(rng.permutation(len(VALUES[p]))[:3])]} for p in paths
    ]
    constraints = [CONSTRAINTS[int(rng.integers(len(CONSTRAINTS)))]] if rng.random() < 0.5 else []
    data = {"title": "any", "base": str(rng.choice(SCENARIOS)), "axes": axes, "constraints": constraints}
    if rng.random() < 0.2:
        data["against"] = str(rng.choice(["equal_active", "equal_total", "equal_memory", "equal_quality"]))
    return SweepSpec.model_validate(data)


def check(spec: SweepSpec) -> str:
    """Refused as a whole in one line, or every case with an outcome, and a reason unless it ran."""
    try:
        result = run_sweep(spec)
    except InputError as error:
        return "refused" if str(error) and "\n" not in str(error) else "refused at length"
    for i, (outcome, reason) in enumerate(zip(result.columns["outcome"], result.columns["reason"], strict=True)):
        where = (spec.base, result.configuration(i), spec.constraints, outcome, reason)
        assert outcome, where
        if outcome == "ok":
            assert np.isfinite(result.number("tpot_s")[i]), where
            assert result.number("tpot_s")[i] > 0, where
            assert reason is None, where
        else:
            assert reason, where
            assert "\n" not in reason, where
    return "answered"


@pytest.mark.parametrize("seed", range(12))
def test_every_combination_ends_in_an_answer_or_one_clear_line(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(2):
        assert check(some_sweep(rng)) in ("answered", "refused")


@pytest.mark.parametrize("kind", ["fixed_active_params", "fixed_total_params", "fixed_memory"])
def test_experts_and_top_k_of_a_recorded_router_under_a_constraint(kind: str) -> None:
    """This crashed once: routers of a preset where experts and top-k vary and expert width gives way."""
    axes = [
        {"path": "model.n_routed_experts", "values": [4, 8, 12, 64]},
        {"path": "model.num_experts_per_tok", "values": [1, 2, 3, 16]},
    ]  # fmt: skip
    spec = SweepSpec.model_validate({
        "title": "t", "base": "mixtral-vs-llama-2-2xh100", "axes": axes, "constraints": [{"kind": kind}],
    })  # fmt: skip
    assert check(spec) == "answered"
