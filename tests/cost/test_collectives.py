"""Alpha-beta forms by hand, on links of 100 GB/s inside a domain and 10 GB/s between domains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cost import Bound, CostModel, Network
from moesim.ops import CollectiveShape, ElementwiseShape, ExchangeShape, Op, OpKind, Work
from moesim.specs.hardware import Topology
from moesim.testing import IDEAL, toy_cost, toy_hardware, toy_link

US = 1e-6
KINDS = (OpKind.ALL_REDUCE, OpKind.ALL_GATHER, OpKind.REDUCE_SCATTER)


def _op(kind: OpKind, n: int, size: float, stride: int = 1) -> Op:
    return Op("x", kind, Work(0.0, size, size), CollectiveShape(n, size, stride))


def _exchange(n: int, up: float, up_in: float = 0.0, nic: float = 0.0, nic_in: float = 0.0) -> Op:
    return Op("x", OpKind.DISPATCH, Work(), ExchangeShape(n, up, up_in, nic, nic_in, n - 1.0))


def _model(
    domain: int = 8, n: int = 64, *, up_s: float = 2 * US, nic_s: float = 5 * US, post_s: float = 0.0
) -> CostModel:
    hardware = toy_hardware(
        n, domain, scale_up=toy_link(100e9, up_s, post_s), scale_out=toy_link(10e9, nic_s, 10 * post_s)
    )
    return toy_cost(hardware)


@pytest.mark.parametrize(
    ("kind", "n", "size", "time_s"),
    [
        # 7/8 of 800 MB at 100 GB/s, and one latency
        (OpKind.ALL_GATHER, 8, 800e6, 7e-3 + 2 * US),
        (OpKind.REDUCE_SCATTER, 8, 800e6, 7e-3 + 2 * US),
        # two shots: twice that
        (OpKind.ALL_REDUCE, 8, 800e6, 14e-3 + 4 * US),
        # one shot of a small message: 7 x 1 kB out, one latency
        (OpKind.ALL_REDUCE, 8, 1e3, 7e3 / 100e9 + 2 * US),
        # at two ranks both shots move as much, so one shot saves a latency
        (OpKind.ALL_REDUCE, 2, 800e6, 8e-3 + 2 * US),
    ],
)
def test_within_a_domain(kind: OpKind, n: int, size: float, time_s: float) -> None:
    assert _model().cost(_op(kind, n, size)).time_s == pytest.approx(time_s, rel=1e-12)


def test_one_shot_gives_way_to_two_shots_where_they_cross() -> None:
    # a + (n-1) B/w = 2 a + 2 (n-1)/n B/w  =>  B = a w / ((n-1)(1 - 2/n)) = 2e-6 x 100e9 / (7 x 0.75)
    crossing = 2e-6 * 100e9 / (7 * 0.75)
    model = _model()
    for size, n_latencies in ((0.99 * crossing, 1), (1.01 * crossing, 2)):
        cost = model.cost(_op(OpKind.ALL_REDUCE, 8, size))
        assert cost.latency_s == pytest.approx(n_latencies * 2 * US)
        assert cost.time_s == pytest.approx(cost.link_s + cost.latency_s)
    sizes = np.array([0.5 * crossing, 2 * crossing])
    grid = model.cost(Op("x", OpKind.ALL_REDUCE, Work(), CollectiveShape(8, sizes)))
    for i, size in enumerate(sizes):
        one = model.cost(_op(OpKind.ALL_REDUCE, 8, float(size)))
        assert grid.time_s[i] == pytest.approx(one.time_s, rel=1e-12)  # type: ignore[index]
        assert grid.latency_s[i] == pytest.approx(one.latency_s, rel=1e-12)  # type: ignore[index]


def test_across_domains_by_hand() -> None:
    # 16 ranks in 2 domains of 8, 800 MB. Inside: scatter and gather, 2 x 7/8 x 8 ms = 14 ms. Between peers: each holds an
    # eighth, reduced over 2: 2 x 1/2 x 100 MB at 10 GB/s = 10 ms. Latencies 2 x 2 us and 2 x 5 us.
    cost = _model().cost(_op(OpKind.ALL_REDUCE, 16, 800e6))
    assert cost.time_s == pytest.approx(24e-3 + 14 * US, rel=1e-12)
    # gather: 1/2 x 100 MB at 10 GB/s between, 7/8 x 8 ms inside
    gather = _model().cost(_op(OpKind.ALL_GATHER, 16, 800e6))
    assert gather.time_s == pytest.approx(5e-3 + 7e-3 + 7 * US, rel=1e-12)


def test_ranks_apart_meet_fewer_of_their_domain() -> None:
    # 4 ranks that are 4 apart: 2 in each domain of 8
    cost = _model().cost(_op(OpKind.ALL_GATHER, 4, 800e6, stride=4))
    between = 800e6 * (1 / 2) / 2 / 10e9
    inside = 800e6 * (1 / 2) / 100e9
    assert cost.time_s == pytest.approx(between + inside + 7 * US, rel=1e-12)
    # 8 apart: each in its own domain
    alone = _model().cost(_op(OpKind.ALL_GATHER, 4, 800e6, stride=8))
    assert alone.time_s == pytest.approx(800e6 * 3 / 4 / 10e9 + 5 * US, rel=1e-12)


def test_a_ring_without_a_switch_takes_a_step_per_rank() -> None:
    hardware = toy_hardware(8, scale_up=toy_link(100e9, 2 * US, topology=Topology.TORUS))
    model = toy_cost(hardware)
    assert model.cost(_op(OpKind.ALL_GATHER, 8, 800e6)).time_s == pytest.approx(7e-3 + 7 * 2 * US, rel=1e-12)
    assert model.cost(_op(OpKind.ALL_REDUCE, 8, 800e6)).time_s == pytest.approx(14e-3 + 14 * 2 * US, rel=1e-12)


def test_send_uses_the_link_between_the_two() -> None:
    model = _model()
    assert model.cost(_op(OpKind.SEND, 2, 100e6, stride=4)).time_s == pytest.approx(1e-3 + 2 * US)
    assert model.cost(_op(OpKind.SEND, 2, 100e6, stride=8)).time_s == pytest.approx(10e-3 + 5 * US)


def test_exchange_counts_the_busiest_port() -> None:
    model = _model()
    assert model.cost(_exchange(8, 100e6, 300e6)).time_s == pytest.approx(3e-3 + 2 * US)
    assert model.cost(_exchange(16, 100e6, 300e6, 50e6, 20e6)).time_s == pytest.approx(5e-3 + 5 * US)
    # ports of the two kinds work side by side, so the slower link hides the faster
    assert model.cost(_exchange(16, 900e6, 0.0, 50e6, 0.0)).time_s == pytest.approx(9e-3 + 5 * US)


def test_exchange_pays_for_every_message() -> None:
    # 7 posts of 1 us to the domain and 8 of 10 us beyond it
    model = _model(post_s=US)
    assert model.cost(_exchange(16, 0.0)).time_s == pytest.approx(5 * US + 7 * US + 80 * US)
    assert model.cost(_exchange(8, 0.0)).time_s == pytest.approx(2 * US + 7 * US)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(2, 64),
    st.floats(1.0, 1e9),
    st.floats(1.0, 100.0),
    st.sampled_from([1, 2, 4, 8]),
)
def test_more_bytes_or_more_ranks_never_take_less(
    kind: OpKind, n: int, size: float, factor: float, domain: int
) -> None:
    model = _model(domain)
    base = model.cost(_op(kind, n, size)).time_s
    assert model.cost(_op(kind, n, size * factor)).time_s >= base * (1 - 1e-12)
    if 2 * n <= 64 and (n <= domain or n % domain == 0):
        assert model.cost(_op(kind, 2 * n, size)).time_s >= base * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from([2, 8, 16, 64]), st.floats(1e3, 1e9))
def test_links_twice_as_fast_halve_what_is_not_latency(kind: OpKind, n: int, size: float) -> None:
    slow = toy_cost(toy_hardware(64, 8))
    fast = toy_cost(toy_hardware(64, 8, scale_up=toy_link(200e9), scale_out=toy_link(20e9)))
    assert fast.cost(_op(kind, n, size)).time_s == pytest.approx(slow.cost(_op(kind, n, size)).time_s / 2, rel=1e-9)


def test_achieved_fractions_are_applied_once() -> None:
    hardware = toy_hardware(16, 8)
    network = Network.of(hardware, 0.5, 0.25)
    assert (network.up_bytes_per_s, network.nic_bytes_per_s) == (50e9, 2.5e9)
    model = CostModel(hardware, network, IDEAL)
    assert model.cost(_op(OpKind.ALL_GATHER, 8, 800e6)).time_s == pytest.approx(14e-3)


def test_bounds_are_named() -> None:
    model = _model()
    assert model.cost(_op(OpKind.ALL_REDUCE, 8, 800e6)).bound is Bound.LINK
    assert model.cost(_op(OpKind.ALL_REDUCE, 8, 1e3)).bound is Bound.LATENCY


def test_wrong_shapes_are_our_own_mistake() -> None:
    model = _model()
    bad = ElementwiseShape(1.0, 1.0)
    for kind in (OpKind.ALL_REDUCE, OpKind.DISPATCH):
        with pytest.raises(TypeError, match="x is not"):
            model.cost(Op("x", kind, Work(), bad))


def test_nothing_to_send_takes_a_latency() -> None:
    cost = _model().cost(_op(OpKind.ALL_GATHER, 8, 0.0))
    assert math.isclose(float(cost.time_s), 2 * US)
