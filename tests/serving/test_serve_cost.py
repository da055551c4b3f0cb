"""Lookups against single closed-form passes: two ways to one number."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.cost import CostModel
from moesim.cost.measured_links import SimpleLink
from moesim.cost.op_tables import MoeTable
from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.routing import build_router, contiguous
from moesim.sim.serving.cost import Chunk, RankWork
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RoutingSpec
from moesim.study.instance import build_instance
from moesim.study.serve_cost import CostLimits, _table_sampler, analytic_cost

LIMITS = CostLimits(max_tokens=4096, max_seqs=128, graph_tokens=0, max_context=16384)


def instance(model, parallel):
    hardware = load_hardware("dgx_h100", parallel.n_ranks)
    spec = load_model(model)
    routing = RoutingSpec() if spec.is_moe else None
    return build_instance(
        spec, parallel, hardware, routing, cost=CostModel.of(hardware.with_n_devices(parallel.n_ranks))
    )


@pytest.mark.parametrize(
    ("model", "parallel", "tolerance"),
    [
        ("qwen3-32b", ParallelSpec(tp_size=2), 0.002),
        ("qwen3-30b-a3b", ParallelSpec(), 0.005),
        ("qwen3-30b-a3b", ParallelSpec(dp_size=4, ep_size=4), 0.02),
        ("deepseek-v2-lite", ParallelSpec(dp_size=2, ep_size=2), 0.03),
    ],
)
def test_lookups_agree_with_single_passes(model, parallel, tolerance):
    one = instance(model, parallel)
    cost, dp = analytic_cost(one, LIMITS), parallel.dp_size
    for n, context in ((1, 500), (32, 2000), (96, 1500)):
        work = [RankWork(n, n * float(context), float(context), (), n)] * dp
        got = cost.decode_s(work, 64, 0.0, 0).mean()
        assert got == pytest.approx(one.analytic(one.decode_pass(n * dp, context)).time_s, rel=tolerance)
    for q, p in ((1024, 0), (2048, 2048)):
        step = Pass(Phase.PREFILL, float(dp), float(q), float(p))
        got = cost.pass_s([RankWork(0, 0.0, 0.0, (Chunk(q, p),), 1)] * dp, 0)
        assert got == pytest.approx(one.analytic(step).time_s, rel=tolerance)


def test_a_mixed_pass_costs_less_than_its_parts_apart_and_more_than_each():
    cost = analytic_cost(instance("qwen3-32b", ParallelSpec(tp_size=2)), LIMITS)
    decode = RankWork(64, 64 * 1000.0, 1000.0, (), 64)
    prefill = RankWork(0, 0.0, 0.0, (Chunk(512, 0),), 1)
    both = RankWork(64, 64 * 1000.0, 1000.0, (Chunk(512, 0),), 65)
    t_decode, t_prefill = float(cost.decode_s([decode], 1, 0.0, 0)[0]), cost.pass_s([prefill], 0)
    assert max(t_decode, t_prefill) < cost.pass_s([both], 0) < t_decode + t_prefill


def test_the_slowest_data_parallel_rank_sets_the_time():
    cost = analytic_cost(instance("qwen3-30b-a3b", ParallelSpec(dp_size=2, ep_size=2)), LIMITS)
    light, heavy = RankWork(1, 500.0, 500.0, (), 1), RankWork(64, 64 * 4000.0, 4000.0, (), 64)
    uneven = float(cost.decode_s([light, heavy], 1, 0.0, 0)[0])
    assert uneven == float(cost.decode_s([heavy, light], 1, 0.0, 0)[0])
    assert uneven > float(cost.decode_s([light, light], 1, 0.0, 0)[0])


def test_expert_parallel_tables_count_each_ranks_own_hits():
    """t = activated experts: two ranks of 8 experts each take the time of the one that got more distinct experts."""
    tokens, activated = (1, 2, 64, 128), (1, 2, 4, 8, 16)
    table = MoeTable.of(np.asarray([(t, a, float(a)) for t in tokens for a in activated], dtype=float))
    router = build_router(RoutingSpec(), 5, 16, 2)
    whole = _table_sampler(table, router, contiguous(16, 1), ParallelSpec())
    split = _table_sampler(table, router, contiguous(16, 2), ParallelSpec(tp_size=2, ep_size=2))
    a, b = (f(6, np.random.default_rng(3)) for f in (whole, split))
    counts = router.sample_counts(6, np.random.default_rng(3))
    hits = (counts > 0).reshape(5, 2, 8).sum(axis=2)
    np.testing.assert_allclose(a.seconds, hits.sum(axis=1))
    np.testing.assert_allclose(b.seconds, hits.max(axis=1))
    np.testing.assert_allclose(a.hits, b.hits)
    assert (b.imbalance >= 1.0).all()


def test_slices_of_experts_share_the_time():
    table = MoeTable.of(np.asarray([(t, a, float(a)) for t in (1, 64) for a in (1, 16)], dtype=float))
    router = build_router(RoutingSpec(), 3, 16, 2)
    whole = _table_sampler(table, router, contiguous(16, 1), ParallelSpec())
    sliced = _table_sampler(table, router, contiguous(16, 1), ParallelSpec(tp_size=2))
    a, b = (f(6, np.random.default_rng(3)).seconds for f in (whole, sliced))
    np.testing.assert_allclose(b, a / 2)


def test_links_only_matter_between_ranks():
    slow = SimpleLink(1e6, 1.0)
    assert slow.all_reduce_s(1, np.asarray([1e9]))[0] == 0.0
