"""Small kernels around products: casts before narrow products, and what separates an exchange from grouped products."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.calibrate.store import find_calibration
from moesim.cost import CostModel
from moesim.cost.stack import with_quickest_experts
from moesim.lowering import Pass
from moesim.ops import Op, Phase
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.dtypes import Dtype
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.instance import build_instance

PREFILL = Pass(Phase.PREFILL, 32.0, 1024.0, 0.0)
DECODE = Pass(Phase.DECODE, 1024.0, 1.0, 2048.0)
EP = ParallelSpec(dp_size=32, ep_size=32)
TP = ParallelSpec(tp_size=8)
COPIES = {"latent_norm", "query_copy", "key_copy"}


def ops_of(parallel: ParallelSpec, step: Pass, model: str = "deepseek-v3") -> dict[str, Op]:
    hardware = load_hardware("h100_x128_nodes", parallel.n_ranks)
    built = build_instance(load_model(model), parallel, hardware, RoutingSpec(family=RouterFamily.BALANCED))
    moe = next(s for s in built.program(step).segments if s.is_moe)
    return {op.name: op for op in moe.ops}


def test_a_narrow_product_reads_wide_rows_and_writes_narrow_ones() -> None:
    o_proj = ops_of(EP, PREFILL)["o_proj"]
    assert o_proj.side_bytes == 1024.0 * 16_384 * (2 + 1)
    assert o_proj.n_side_kernels == 1
    router = ops_of(EP, PREFILL)["router"]
    assert (router.side_bytes, router.n_side_kernels) == (0.0, 0)


def test_prefill_unpacks_and_copies_only_where_tokens_travel() -> None:
    assert set(ops_of(EP, PREFILL)) >= COPIES
    assert not COPIES & set(ops_of(TP, PREFILL))
    # decode reads the latents themselves: their norms, and nothing to put together
    assert COPIES & set(ops_of(EP, DECODE)) == {"latent_norm"}
    key_copy = ops_of(EP, PREFILL)["key_copy"]
    assert key_copy.work.write_bytes == 1024.0 * 128 * 192 * 2
    assert float(key_copy.work.read_bytes) == pytest.approx(1024.0 * (128 * 128 + 64) * 2)


def test_one_fused_call_where_tokens_do_not_travel() -> None:
    experts = ops_of(TP, PREFILL)["experts"]
    assert (experts.side_bytes, experts.n_side_kernels) == (0.0, 0)


def test_low_latency_rows_arrive_in_order_and_only_the_activation_is_left() -> None:
    ops = ops_of(EP, DECODE)
    assert "permute" not in ops
    pairs = 1024.0 * 8 / 32
    assert np.max(ops["experts"].side_bytes) == pytest.approx(pairs * 2048 * (4 + 1 + 4 / 128))
    assert ops["experts"].n_side_kernels == 1


def test_sixteen_bit_experts_are_not_cast() -> None:
    ops = ops_of(ParallelSpec(dp_size=8, ep_size=8), Pass(Phase.PREFILL, 8.0, 1024.0), "qwen3-30b-a3b")
    assert "permute" not in ops
    assert ops["experts"].n_side_kernels == 3
    assert ops["q_proj" if "q_proj" in ops else "qkv_proj"].n_side_kernels == 0


def test_hot_ranks_move_more_around_their_products() -> None:
    hardware = load_hardware("h100_x128_nodes", 32)
    routing = RoutingSpec(family=RouterFamily.PRESET, preset="deepseek-v3")
    built = build_instance(load_model("deepseek-v3"), EP, hardware, routing, rng=np.random.default_rng(0))
    program = built.program(PREFILL, built.draw(PREFILL, np.random.default_rng(1)))
    op = next(op for _, op in program.ops() if op.name == "experts")
    per_rank = np.asarray(op.side_bytes) / np.asarray(op.shape.n_assignments)  # type: ignore[union-attr]
    assert np.asarray(op.side_bytes).shape[-1] == 32
    assert per_rank == pytest.approx(np.full_like(per_rank, per_rank.flat[0]))


def test_experts_are_given_what_arrived_not_the_whole_pass() -> None:
    travelling, everywhere = ops_of(EP, PREFILL)["experts"], ops_of(TP, PREFILL)["experts"]
    n_tokens = np.max(travelling.shape.n_tokens)  # type: ignore[union-attr]
    assert 1024 * 5.5 < n_tokens < 1024 * 7.2
    assert everywhere.shape.n_tokens == 32 * 1024  # type: ignore[union-attr]


def test_experts_behind_an_exchange_between_nodes_are_grouped_products_whatever_the_tables() -> None:
    # tables of one fused call do not time 8-bit experts that such deployments run by DeepGEMM
    calibration = find_calibration("h100_sxm/sglang")
    for parallel, is_grouped in ((EP, True), (ParallelSpec(dp_size=8, ep_size=8), False), (TP, False)):
        op = ops_of(parallel, PREFILL)["experts"]
        assert op.is_grouped is is_grouped
        hardware = load_hardware("h100_x128_nodes", parallel.n_ranks)
        tables = CostModel.of(hardware, calibration)
        same = np.allclose(tables.apart(op).time_s, tables.cost(op).time_s)
        assert same is is_grouped
        assert tables.costs([op])[0].time_s == pytest.approx(tables.cost(op).time_s)


def test_rows_are_ordered_for_nothing_only_inside_a_fused_call() -> None:
    """Casting rows before they travel, and scaling and adding after, are kernels of their own beside grouped products."""
    tables = with_quickest_experts(find_calibration("h100_sxm/sglang"), Dtype.FP8)
    for parallel, is_free in ((EP, False), (ParallelSpec(dp_size=8, ep_size=8), True), (TP, True)):
        hardware = load_hardware("h100_x128_nodes", parallel.n_ranks)
        ops = [op for op in ops_of(parallel, PREFILL).values() if op.group == "permute"]
        assert len(ops) == 2
        n_bytes = sum(float(np.max(op.work.read_bytes + op.work.write_bytes)) for op in ops)
        for costs in (CostModel.of(hardware, tables).costs(ops), [CostModel.of(hardware, tables).cost(o) for o in ops]):
            seconds = sum(float(np.max(c.time_s)) for c in costs)
            least = 0.0 if is_free else n_bytes / hardware.device.memory_bytes_per_s
            assert least <= seconds <= least * 2.0
