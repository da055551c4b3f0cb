"""Sampled tokens are of the pass: experts that their rank sends to, existing copies, own micro-batch; ports and traces."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.ops import ExchangeShape
from moesim.sim import FlowResult, simulate
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.study.halves import HalvedCounts
from moesim.study.instance import Instance, build_instance
from moesim.study.ports import port_use
from moesim.study.ranks import N_TRACED, rank_detail, shown_ranks
from moesim.study.tokens import path_sample, token_flows
from moesim.testing import decode


def _instance(n: int, overlap: str, redundant: int = 0) -> Instance:
    placement = PlacementSpec(kind=PlacementKind.EPLB if redundant else PlacementKind.CONTIGUOUS)
    routing = RoutingSpec(family=RouterFamily.PRESET, preset="deepseek-v3", placement=placement)
    split = ParallelSpec(dp_size=n, ep_size=n, redundant_experts=redundant)
    hardware = load_hardware("h800_x40_nodes", n)
    model = load_model("deepseek-v3")
    return build_instance(model, split, hardware, routing, overlap=overlap, rng=np.random.default_rng(0))


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
@pytest.mark.parametrize("per_rank", [2, 64])
def test_tokens_go_where_the_pass_sends_tokens(overlap: str, per_rank: int) -> None:
    instance = _instance(16, overlap, redundant=16)
    step = decode(16 * per_rank, 512)
    counts = instance.draw(step, np.random.default_rng(1))
    paths = path_sample(instance, np.random.default_rng(2), counts=counts)
    assert paths is not None
    assert counts is not None
    assert paths.is_of_pass
    assert paths.batches == ((0, 1, 0, 1) if overlap == "two_batch" else (0,) * 4)
    key = next(iter(counts))
    placement = instance.routed.placements[key]  # type: ignore[union-attr]
    for token, home in enumerate(paths.home_ranks):
        drawn = counts.halves[paths.batches[token]] if isinstance(counts, HalvedCounts) else counts
        for layer, (experts, ranks) in enumerate(zip(paths.experts[token], paths.ranks[token], strict=True)):
            assert len(set(experts)) == key[1]
            assert all(drawn[key][layer, home, e] > 0 for e in experts)
            row = placement.slots[min(layer, len(placement.slots) - 1)].reshape(16, -1)
            assert all(e in row[r] for e, r in zip(experts, ranks, strict=True))
    # what the router chose is kept where the counts allow it: of few tokens little, of many most
    assert paths.replaced_frac < (0.4 if per_rank == 64 else 0.95)


def test_arrows_keep_to_their_micro_batch() -> None:
    instance = _instance(16, "two_batch")
    step = decode(16 * 32, 512)
    result = simulate(instance.program(step, instance.draw(step, np.random.default_rng(1))), instance.cost)
    timeline = result.ledger.timeline()
    ranks = [[[1, 2, 15]] * 2] * 2
    flows = token_flows(timeline, [0, 0], [5, 6], ranks, [0, 1])
    assert len(flows) == 2 * 2 * 3 * 2
    starts = {(s.rank, s.layer, s.name, s.batch): s.start_s for s in timeline if s.cause is None}
    for flow in flows:
        name = flow.stage
        assert flow.from_s == starts[flow.from_rank, flow.layer, name, flow.token]
    some = token_flows(result.ledger.timeline([0, 1]), [0, 0], [5, 6], ranks, [0, 1])
    assert {flow.to_rank for flow in some} | {flow.from_rank for flow in some} == {0, 1}


def test_a_trace_holds_few_ranks_and_the_ones_that_matter() -> None:
    instance = _instance(128, "two_batch")
    step = decode(128 * 8, 512)
    counts = instance.draw(step, np.random.default_rng(1))
    program = instance.program(step, counts)
    result = simulate(program, instance.cost)
    paths = path_sample(instance, np.random.default_rng(2), counts=counts)
    shown = shown_ranks(result, paths)
    assert len(shown) == N_TRACED == len(set(shown))
    assert paths is not None
    assert set(paths.home_ranks) <= set(shown)
    assert {a.rank for a in result.awaited[:16]} <= set(shown)
    assert int(result.engine_busy_s.argmax()) in shown
    timeline = result.ledger.timeline(shown)
    assert {span.rank for span in timeline} == set(shown)
    whole = [span for span in result.timeline if span.rank in shown]
    assert sorted(timeline, key=str) == sorted(whole, key=str)
    detail = rank_detail(result, 61, port_use(program, instance.hardware, result.time_s), shown)
    assert detail.trace_ranks == shown
    assert shown_ranks(simulate_few(), None) == tuple(range(16))
    for out, into in ((detail.up_out_frac, detail.up_in_frac), (detail.nic_out_frac, detail.nic_in_frac)):
        assert sum(out) == pytest.approx(sum(into), rel=1e-3)  # what leaves arrives
    row = sum(sum(seconds) for seconds in detail.idle_s.values()) / 128 + result.engine_busy_s.mean()
    assert row == pytest.approx(result.time_s, rel=1e-3)


def simulate_few() -> FlowResult:
    instance = _instance(16, "none")
    step = decode(32, 512)
    return simulate(instance.program(step, instance.draw(step, np.random.default_rng(1))), instance.cost)


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
def test_bytes_by_port_are_those_of_the_program(overlap: str) -> None:
    instance = _instance(16, overlap)
    step = decode(16 * 32, 512)
    program = instance.program(step, instance.draw(step, np.random.default_rng(1)))
    used = port_use(program, instance.hardware, 0.5)
    sent = {"up": 0.0, "nic": 0.0}
    for part in program.micro_batches or (program,):
        for _, op in part.ops():
            if isinstance(op.shape, ExchangeShape):
                sent["up"] += float(np.sum(op.shape.up_out_bytes))
                sent["nic"] += float(np.sum(op.shape.nic_out_bytes))
    assert used.up_out is not None
    assert used.nic_out is not None
    assert used.up_out.sum() * 0.5 * instance.hardware.scale_up.bytes_per_s == pytest.approx(sent["up"], rel=1e-6)  # type: ignore[union-attr]
    assert used.nic_out.sum() * 0.5 * instance.hardware.nic_bytes_per_s == pytest.approx(sent["nic"], rel=1e-6)
    one_node = _instance(8, "none")
    inside = port_use(one_node.program(decode(64, 100)), one_node.hardware, 1.0)
    assert inside.nic_out is None
