import numpy as np
import pytest
from sweep_base import BASE, make

from moesim.specs.catalog import load_model
from moesim.specs.sweep import ConstraintSpec
from moesim.study.sweep import run_sweep
from moesim.study.sweep.laws import LAWS, dense_equivalent, joint_loss
from moesim.study.sweep.sentences import conclusions

GRID = [
    {"path": "model.n_routed_experts", "values": [32, 64, 128, 256]},
    {"path": "model.num_experts_per_tok", "values": [1, 2, 8, 16]},
]
V3 = load_model("deepseek-v3")


@pytest.mark.parametrize(("kind", "column", "own"), [
    ("fixed_active_params", "n_active_params", V3.n_active_params), ("fixed_total_params", "n_params", V3.n_params),
])  # fmt: skip
def test_parameters_stay_and_the_width_gives_way(kind, column, own):
    result = run_sweep(make(GRID, constraints=[{"kind": kind, "tolerance_frac": 0.02}]))
    met = result.columns["outcome"] != "constraint not met"
    assert met.sum() >= 12
    assert result.number(column)[met] == pytest.approx(own, rel=0.02)
    assert (result.number("expert_width")[met] % 64 == 0).all()
    widths = {tuple(result.configuration(i).values()): result.number("expert_width")[i] for i in range(16)}
    assert widths[256, 8] == pytest.approx(2048, rel=0.02)  # the base's own shape comes out again


def test_two_constraints_are_met_at_once():
    axes = [{"path": "model.num_experts_per_tok", "values": [2, 4, 8, 16]}]
    constraints = [{"kind": "fixed_active_params"}, {"kind": "fixed_total_params", "by": "n_routed_experts"}]
    result = run_sweep(make(axes, constraints=constraints))
    met = result.columns["outcome"] != "constraint not met"
    assert met.sum() >= 3
    assert result.number("n_active_params")[met] == pytest.approx(V3.n_active_params, rel=0.05)
    assert result.number("n_params")[met] == pytest.approx(V3.n_params, rel=0.05)


def test_what_cannot_be_met_is_an_outcome_with_a_reason():
    axes = [{"path": "model.num_experts_per_tok", "values": [8]}]
    result = run_sweep(make(axes, constraints=[{"kind": "fixed_active_params", "value": 1e9}]))
    assert result.columns["outcome"][0] == "constraint not met"
    assert "active parameters within 5% of 1e9" in result.columns["reason"][0]


def test_memory_can_give_way_to_the_largest_batch():
    axes = [{"path": "model.n_routed_experts", "values": [64, 256]}]
    result = run_sweep(make(axes, constraints=[{"kind": "fixed_memory"}]))
    concurrency = result.number("concurrency")
    assert concurrency[0] > concurrency[1] > 16  # smaller weights leave room for more requests
    more = [{"path": "workload.concurrency", "values": [int(concurrency[1]), int(concurrency[1]) + 16]}]
    outcomes = run_sweep(make(more)).columns["outcome"].tolist()
    assert outcomes == ["ok", "out of memory"]  # it is the largest that fits


def test_splitting_keeps_parameters_and_active_ones():
    result = run_sweep(make([{"path": "model.split", "values": [1, 2, 4, 3]}]))
    total, active = result.number("n_params"), result.number("n_active_params")
    router = 7168 + 1
    assert total[1] - total[0] == pytest.approx(58 * 256 * router)  # only the router grows
    assert active[2] - active[0] == pytest.approx(58 * 768 * router)
    assert [result.number(c)[1] for c in ("n_experts", "top_k", "expert_width")] == [512, 16, 1024]
    assert result.columns["outcome"][3] == "invalid split"
    assert "no whole number" in result.columns["reason"][3]


def test_training_compute_buys_tokens():
    constraints = [{"kind": "fixed_training_compute", "value": 1e24}]
    result = run_sweep(make(GRID, constraints=constraints, law={}))
    assert result.number("train_tokens") * result.number("n_active_params") * 6 == pytest.approx(1e24)
    loss = result.number("loss").reshape(4, 4)
    assert (np.diff(loss[:, 2]) < 0).all()  # more experts at the same active size, less loss


def test_law_by_hand():
    # E = 1 is a dense model: Hoffmann's law alone, 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28, or what was fitted to its runs again
    assert float(dense_equivalent(1e9, 1.0)) == pytest.approx(1e9)
    loss = LAWS["clark_2022_hoffmann_2022"].loss(1e9, 1.0, 2e10)
    assert float(loss) == pytest.approx(1.69 + 406.4 / 1e9**0.34 + 410.7 / 2e10**0.28)
    again = LAWS["clark_2022_besiroglu_2024"].loss(1e9, 1.0, 2e10)
    assert float(again) == pytest.approx(1.8172 + 482.01 / 1e9**0.3478 + 2085.43 / 2e10**0.3658)
    assert float(dense_equivalent(1e9, 64.0)) > 2e9
    assert float(dense_equivalent(2e13, 64.0)) == 2e13  # never worse than its active parameters


@pytest.mark.parametrize(("experts", "m", "mu", "n", "nu"), [
    (1, 30.3640, -0.1817, 53.9838, -0.1965), (2, 27.7982, -0.1780, 66.8401, -0.2065), (4, 24.8462, -0.1731, 87.7022, -0.2192),
    (8, 21.8330, -0.1676, 119.9126, -0.2338),
    (16, 19.0159, -0.1617, 167.5073, -0.2494), (32, 16.5424, -0.1557, 234.6726, -0.2652),
])  # fmt: skip
def test_the_joint_law_reduces_to_its_published_table(experts, m, mu, n, nu):
    """Table 4 of arXiv 2502.05172: the law at a fixed number of experts is m N^mu + n D^nu + 1.3637."""
    for size, tokens in ((8e7, 5e8), (1e9, 2e10), (2.7e9, 8e10)):
        expected = m * size**mu + n * tokens**nu + 1.3637
        assert float(joint_loss(size, float(experts), tokens)) == pytest.approx(expected, rel=1e-3)


def test_two_laws_side_by_side_and_how_far_they_are_stretched():
    axes = [
        {"path": "training.compute_flop", "values": [1e20, 1e24]},
        {"path": "model.n_routed_experts", "values": [32, 256]},
    ]
    report = {"question": "training", "objective": "loss"}
    spec = make(axes, law={"name": "joint_2025", "other": "clark_2022_hoffmann_2022"}, report=report)
    result = run_sweep(spec)
    assert np.isfinite(result.number("other_loss")).all()
    assert not np.allclose(result.number("other_loss"), result.number("loss"))
    first, _, last = conclusions(result, [], [])
    assert "by the joint MoE law" in first
    assert "by Hoffmann over Clark" in first
    assert "2502.05172" in last
    assert "100% of cases beyond its 2.7B active parameters" in last


@pytest.mark.parametrize("fields", [
    {"kind": "fixed_total_params", "by": "num_experts_per_tok"}, {"kind": "fixed_training_compute"},
    {"kind": "fixed_memory", "value": 0},
])  # fmt: skip
def test_constraints_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match=r"by|value"):
        ConstraintSpec.model_validate(fields)


def test_dense_models_cannot_meet_constraints_of_experts():
    base = {**BASE, "systems": [BASE["systems"][1]]}
    result = run_sweep(
        make([{"path": "workload.concurrency", "values": [8]}], base, constraints=[{"kind": "fixed_total_params"}])
    )
    assert result.columns["outcome"][0] == "constraint not met"
