"""Closed form and simulation: equal where nothing queues, and bounded by each other elsewhere.

They share every duration and nothing else, so agreement is evidence that both put the pieces together rightly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.analytic import estimate
from moesim.cost import CostModel
from moesim.lowering import Pass
from moesim.ops import Program
from moesim.sim import simulate
from moesim.sim.schedule import Compute, Exchange, schedule
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily
from moesim.testing import (
    decode,
    prefill,
    toy_cost,
    toy_dense_model,
    toy_hardware,
    toy_link,
    toy_moe_model,
    toy_program,
)

ONE, EP8 = ParallelSpec(), ParallelSpec(dp_size=8, ep_size=8)
STEPS = [decode(64, 2048), prefill(8, 512, 64)]
EXACT = 1e-9


def _real(n: int) -> CostModel:
    return CostModel.of(load_hardware("h200_x4_nodes", n))


def _both(program: Program, cost: CostModel) -> tuple[float, float]:
    result = simulate(program, cost)
    assert result.timeline.overlaps() == []
    return result.time_s, estimate(program, cost).time_s


@pytest.mark.parametrize("step", STEPS, ids=["decode", "prefill"])
@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "llama-3.1-8b", "gpt-oss-120b", "qwen3-next-80b-a3b"])
def test_one_rank(name: str, step: Pass) -> None:
    # whatever the load: a rank alone waits for nobody
    program = toy_program(load_model(name), ONE, step, rng=np.random.default_rng(0))
    flow, closed = _both(program, _real(1))
    assert flow == pytest.approx(closed, rel=EXACT)


SPLITS = [
    EP8,
    ParallelSpec(tp_size=8),
    ParallelSpec(tp_size=8, ep_size=8),
    ParallelSpec(tp_size=2, dp_size=4, ep_size=8),
    ParallelSpec(tp_size=2, dp_size=4),
    ParallelSpec(dp_size=16, ep_size=16),
    ParallelSpec(tp_size=2, pp_size=2),
]


@pytest.mark.parametrize("step", [decode(64, 2048), prefill(16, 512)], ids=["decode", "prefill"])
@pytest.mark.parametrize("parallel", SPLITS, ids=lambda p: p.label)
@pytest.mark.parametrize("name", ["deepseek-v3", "toy"])
def test_balanced_load(name: str, parallel: ParallelSpec, step: Pass) -> None:
    model = load_model(name) if name != "toy" else toy_moe_model(n_experts=16, shared_inter_size=128)
    program = toy_program(
        model, parallel, step, family=RouterFamily.BALANCED, domain_size=min(8, parallel.n_stage_ranks)
    )
    flow, closed = _both(program, _real(parallel.n_ranks))
    assert flow == pytest.approx(closed, rel=EXACT)
    hidden = replace(program, overlap=True)
    assert simulate(hidden, _real(parallel.n_ranks)).time_s == pytest.approx(
        estimate(hidden, _real(parallel.n_ranks)).time_s, rel=EXACT
    )


@pytest.mark.parametrize("parallel", [ONE, ParallelSpec(tp_size=2), ParallelSpec(dp_size=2)], ids=lambda p: p.label)
def test_one_expert(parallel: ParallelSpec) -> None:
    model = toy_moe_model(n_experts=1, top_k=1)
    program = toy_program(model, parallel, decode(64, 100), rng=np.random.default_rng(0))
    flow, closed = _both(program, toy_cost(toy_hardware(2)))
    assert flow == pytest.approx(closed, rel=EXACT)


@pytest.mark.parametrize("step", [decode(64, 2048), prefill(16, 512)], ids=["decode", "prefill"])
def test_links_too_fast_to_contend_for(step: Pass) -> None:
    # unequal loads remain: at each exchange everybody waits for the slowest
    free = toy_cost(toy_hardware(16, 8, scale_up=toy_link(1e24), scale_out=toy_link(1e24)))
    model = toy_moe_model(n_experts=64, top_k=4)
    program = toy_program(
        model, ParallelSpec(dp_size=16, ep_size=16), step, domain_size=8, rng=np.random.default_rng(3)
    )
    flow, closed = _both(program, free)
    assert flow == pytest.approx(closed, rel=EXACT)
    assert estimate(program, free).imbalance_s > 0


def _lower_bound(program: Program, cost: CostModel) -> float:
    """What the busiest rank does itself, one thing after another."""
    busy = np.zeros(program.n_ranks)
    for step in schedule(program, cost):
        if isinstance(step, Compute):
            busy += step.seconds
        elif isinstance(step, Exchange):
            busy += np.asarray(step.out_s) + np.asarray(step.latency_s)
        else:
            busy += step.seconds
    return float(busy.max())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([toy_moe_model(n_experts=16), toy_moe_model(n_experts=16, shared_inter_size=64)]),
    st.sampled_from(SPLITS),
    st.booleans(),
    st.integers(1, 100),
    st.integers(0, 1000),
    st.sampled_from([1e9, 1e11]),
)
def test_between_the_busiest_rank_and_the_sum_of_slowest(
    model: ModelSpec, parallel: ParallelSpec, is_decode: bool, batch: int, seed: int, rate: float
) -> None:
    step = decode(batch, 100) if is_decode else prefill(batch, 16)
    domain = min(4, parallel.n_stage_ranks)
    hardware = toy_hardware(
        parallel.n_ranks, domain, scale_up=toy_link(rate, 1e-8), scale_out=toy_link(rate / 10, 1e-7)
    )
    cost = toy_cost(hardware)
    program = toy_program(model, parallel, step, domain_size=domain, rng=np.random.default_rng(seed))
    flow, closed = _both(program, cost)
    sends = sum(float(cost.cost(op).time_s) for op in program.stage_sends) * (program.pp_size - 1)
    assert flow >= (_lower_bound(program, cost) + sends) * (1 - EXACT)
    assert flow <= closed * (1 + EXACT)
    hidden = simulate(replace(program, overlap=True), cost).time_s
    assert hidden <= flow * (1 + EXACT)
    assert hidden <= estimate(replace(program, overlap=True), cost).time_s * (1 + EXACT)


def test_overlap_hides_shared_experts_of_deepseek() -> None:
    program = toy_program(load_model("deepseek-v3"), EP8, decode(512, 2048), rng=np.random.default_rng(0))
    cost = _real(8)
    plain, hidden = simulate(program, cost, record=False).time_s, simulate(replace(program, overlap=True), cost).time_s
    shared = sum(line.time_s for line in estimate(program, cost).lines if line.group == "shared_experts")
    assert plain - shared * (1 + EXACT) <= hidden < plain


def test_the_same_seed_gives_the_same_timeline() -> None:
    model = toy_moe_model(n_experts=16)
    cost = toy_cost(toy_hardware(8))
    logs = [
        list(simulate(toy_program(model, EP8, decode(64, 100), rng=np.random.default_rng(seed)), cost).timeline)
        for seed in (1, 1, 2)
    ]
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_bytes_on_the_wire_are_what_lowering_counted() -> None:
    program = toy_program(toy_moe_model(n_experts=16), EP8, decode(64, 100), rng=np.random.default_rng(1))
    counted = sum(
        float(np.sum(op.work.read_bytes)) for _, op in program.ops() if op.name in ("dispatch", "combine")
    )  # fmt: skip
    assert simulate(program, toy_cost(toy_hardware(8))).bytes_sent == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("parallel", [ONE, ParallelSpec(tp_size=2)], ids=lambda p: p.label)
@pytest.mark.parametrize("step", [decode(32, 100), prefill(1, 1024)], ids=["decode", "prefill"])
def test_a_dense_model_is_a_moe_of_one_expert(parallel: ParallelSpec, step: Pass) -> None:
    # In time, up to what only an MoE has: router, top-k, permute and its inverse; and the activation, which the grouped kernel
    # fuses. With perfect kernels, widths so large that products are bound alike, and whole tiles of tokens.
    storage = toy_dense_model().storage
    dense = toy_dense_model(hidden_size=512, inter_size=4096, storage=storage)
    moe = toy_moe_model(hidden_size=512, inter_size=4096, n_experts=1, top_k=1, storage=storage)
    cost = toy_cost(toy_hardware(2))
    a = estimate(toy_program(dense, parallel, step), cost)
    b = estimate(toy_program(moe, parallel, step), cost)
    only_moe = sum(line.time_s for line in b.lines if line.group in ("router", "permute"))
    only_dense = sum(line.time_s for line in a.lines if line.name == "ffn_act")
    assert b.time_s - only_moe == pytest.approx(a.time_s - only_dense, rel=EXACT)
    ffn = {line.name: line for line in a.lines}
    experts = next(line for line in b.lines if line.name == "experts")
    assert experts.flops == ffn["ffn_up"].flops + ffn["ffn_down"].flops
    assert experts.moved_bytes == ffn["ffn_up"].moved_bytes + ffn["ffn_down"].moved_bytes
