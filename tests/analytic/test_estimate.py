"""The closed form by hand: groups between barriers, breakdown, hidden time, errors, and grids of points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moesim.analytic import estimate, step_time
from moesim.cost import Bound, CostModel, OpCost
from moesim.ops import CollectiveShape, ExchangeShape, GemmShape, Op, OpKind, Phase, Program, Segment, Work
from moesim.specs.base import Origin
from moesim.specs.hardware import DeviceSpec
from moesim.specs.parallel import ParallelSpec
from moesim.testing import IDEAL, decode, toy_cost, toy_dense_model, toy_hardware, toy_link, toy_moe_model, toy_program

COST = toy_cost(toy_hardware(2, scale_up=toy_link(100e9, 0.5)))


def _compute(name: str, seconds: object, under: str | None = None, kind: OpKind = OpKind.GEMM) -> Op:
    return Op(name, kind, Work(seconds * 100e12), GemmShape(1.0, 1.0, 1.0), group=name, hidden_under=under)  # type: ignore[operator]


def _exchange(name: str, out: object, into: object) -> Op:
    a, b = out * 100e9, into * 100e9  # type: ignore[operator]
    return Op(
        name, OpKind.DISPATCH, Work(0.0, a, b), ExchangeShape(2, a, b, 0.0 * a, 0.0 * b, 1.0), group="communication"
    )


def _program(*ops: Op, overlap: bool = False, layers: tuple[int, ...] = (0,), n_ranks: int = 2) -> Program:
    return Program(Phase.DECODE, (Segment("layer", ops, layers),), n_ranks, 2.0, 2.0, overlap=overlap)


def test_the_slowest_rank_of_each_group_counts() -> None:
    # group 1: [1 + 2.5, 1 + 2.5]; group 2: [4 + 2.5, 2 + 2.5]; group 3: [1, 1]
    array = np.array
    ops = (
        _compute("pre", 1.0),
        _exchange("dispatch", array([[1.0, 2.0]]), array([[2.0, 1.0]])),
        _compute("experts", array([[4.0, 2.0]])),
        _exchange("combine", array([[2.0, 1.0]]), array([[1.0, 2.0]])),
        _compute("post", 1.0),
    )
    result = estimate(_program(*ops), COST)
    assert result.time_s == pytest.approx(11.0)
    times = {line.name: line.time_s for line in result.lines}
    assert times == pytest.approx({"pre": 1, "dispatch": 2.5, "experts": 4, "combine": 2.5, "post": 1})
    # the mean of group 2 is 5.5
    assert result.imbalance_s == pytest.approx(1.0)
    assert result.exposed_comm_s == pytest.approx(5.0)
    assert result.by_group() == pytest.approx({"pre": 1, "communication": 5, "experts": 4, "post": 1})
    assert sum(result.busy_s().values()) == pytest.approx(11.0)
    assert result.busy_s()[Bound.LINK] == pytest.approx(5.0)
    thrice = estimate(_program(*ops, layers=(0, 1, 2)), COST)
    assert thrice.time_s == pytest.approx(33.0)
    assert thrice.imbalance_s == pytest.approx(3.0)
    assert thrice.lines[2].flops == pytest.approx(12 * 100e12)


def test_layers_of_unequal_load_have_their_own_slowest_rank() -> None:
    load = np.array([[4.0, 2.0], [1.0, 7.0]])
    result = estimate(_program(_compute("experts", load), layers=(3, 5)), COST)
    assert result.time_s == pytest.approx(4 + 7)
    assert result.imbalance_s == pytest.approx(1 + 3)
    assert step_time(_program(_compute("experts", load), layers=(3, 5)), COST) == pytest.approx(11.0)


def test_hiding_takes_the_shorter_of_the_two() -> None:
    ops = (_compute("shared", 2.0, "dispatch"), _exchange("dispatch", 1.0, 1.0))
    result = estimate(_program(*ops, overlap=True), COST)
    assert result.time_s == pytest.approx(2.0)  # the dispatch of 1.5 s and half a second of shared experts
    assert result.hidden_comm_s == pytest.approx(1.5)
    assert result.exposed_comm_s == pytest.approx(0.0)  # shared experts run all along
    assert estimate(_program(*ops), COST).time_s == pytest.approx(3.5)
    # two operators share the room
    both = (_compute("a", 1.0, "dispatch"), _compute("b", 1.0, "dispatch"), _exchange("dispatch", 1.0, 1.0))
    assert estimate(_program(*both, overlap=True), COST).time_s == pytest.approx(2.0)
    assert step_time(_program(*both, overlap=True), COST) == pytest.approx(2.0)


def test_one_rank_waits_for_nobody() -> None:
    ops = (_compute("a", 1.0), Op("gather", OpKind.ALL_GATHER, Work(), CollectiveShape(1, 0.0)), _compute("b", 2.0))
    assert estimate(_program(*ops, n_ranks=1), COST).imbalance_s == 0.0


class _Known:
    """A calibration of one operator."""

    name = "known"

    def __init__(self, names: dict[str, OpCost]) -> None:
        self.costs = names

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        return self.costs.get(op.name)


def _known(**costs: OpCost) -> CostModel:
    return CostModel.of(toy_hardware(2), _Known(costs), IDEAL)


def test_the_interval_is_the_operators_weighted_by_time() -> None:
    model = _known(
        a=OpCost(3.0, compute_s=3.0, origin=Origin.FITTED, error_frac=0.1),
        b=OpCost(1.0, compute_s=1.0, origin=Origin.MEASURED, error_frac=0.3, is_extrapolated=True),
    )
    result = estimate(_program(_compute("a", 9.0), _compute("b", 9.0)), model)
    assert result.error_frac == pytest.approx((3 * 0.1 + 1 * 0.3) / 4)
    assert result.extrapolated_frac == pytest.approx(0.25)
    assert result.origin is Origin.FITTED  # the weaker of the two


def test_what_nothing_measured_counts_with_a_wide_interval_or_takes_it_away() -> None:
    known = OpCost(3.0, compute_s=3.0, origin=Origin.FITTED, error_frac=0.1)
    # three quarters are measured: 3 s with 10% and 1 s with the assumed 50%
    result = estimate(_program(_compute("a", 9.0), _compute("b", 1.0)), _known(a=known))
    assert result.error_frac == pytest.approx((3.0 * 0.1 + 1.0 * 0.5) / 4.0)
    assert result.origin is Origin.ASSUMPTION
    # three of seven seconds are not enough
    assert estimate(_program(_compute("a", 9.0), _compute("b", 4.0)), _known(a=known)).error_frac is None


@pytest.mark.parametrize("parallel", [ParallelSpec(), ParallelSpec(dp_size=4, ep_size=4), ParallelSpec(tp_size=4)])
def test_short_and_long_answers_are_the_same(parallel: ParallelSpec) -> None:
    program = toy_program(toy_moe_model(shared_inter_size=64), parallel, decode(32, 100), rng=np.random.default_rng(0))
    cost = toy_cost(toy_hardware(parallel.n_ranks))
    for p in (program, replace(program, overlap=True)):
        assert step_time(p, cost) == pytest.approx(estimate(p, cost).time_s, rel=1e-12)


def test_a_grid_is_the_points_one_by_one() -> None:
    from moesim.lowering import Pass

    batch, context = np.array([4.0, 8.0, 64.0]), np.array([100.0, 1000.0])
    grid = Pass(Phase.DECODE, batch[:, None, None, None], 1.0, context[None, :, None, None] - 1)
    cost = toy_cost(toy_hardware(4))
    for model, split in (
        (toy_dense_model(), ParallelSpec(tp_size=4)),
        (toy_moe_model(), ParallelSpec(dp_size=4, ep_size=4)),
    ):
        times = np.asarray(step_time(toy_program(model, split, grid), cost)).reshape(3, 2)
        for i, b in enumerate(batch):
            for j, c in enumerate(context):
                one = step_time(toy_program(model, split, decode(float(b), float(c))), cost)
                assert times[i, j] == pytest.approx(one, rel=2e-3), (b, c)


def test_a_skewed_router_takes_grids_too() -> None:
    from moesim.lowering import Pass, expert_layout, lower, route_model
    from moesim.specs.routing import RoutingSpec

    model, split = toy_moe_model(), ParallelSpec(dp_size=4, ep_size=4)
    routed = route_model(model, RoutingSpec(family="zipf", skew=1.0), split)
    layout, cost = expert_layout(split, Phase.DECODE, 4), toy_cost(toy_hardware(4))

    def timed(step: Pass) -> object:
        return step_time(lower(model, split, step, lambda f, i: routed.expected(f, i, step, layout)), cost)

    batch = np.array([4.0, 8.0, 64.0])
    grid = np.asarray(timed(Pass(Phase.DECODE, batch[:, None, None], 1.0, 99.0))).ravel()
    assert grid == pytest.approx([timed(decode(float(b), 100)) for b in batch], rel=1e-9)
    with pytest.raises(ValueError, match="two axes of length 1"):
        timed(Pass(Phase.DECODE, batch, 1.0, 99.0))
