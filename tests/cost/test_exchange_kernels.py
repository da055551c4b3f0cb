"""Kernels of low-latency exchanges against what others measured of them."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.cost import CostModel
from moesim.cost.exchange_kernels import kernels_s
from moesim.lowering import Pass
from moesim.ops import ExchangeShape, Op, OpKind, Phase, Work
from moesim.sim import simulate
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.instance import build_instance

# microseconds of sending and receiving kernels together, DeepEP with receive hooks, hidden size 7,168
H20_EP16 = {8: 19.1, 16: 21.9, 32: 20.6, 48: 24.6, 64: 26.6, 128: 35.7}
B200_EP8 = {OpKind.DISPATCH: 35.0, OpKind.COMBINE: 41.9}


def exchange(kind, tokens, n_ranks, low=True):
    message = 7168 * (1 + 4 / 128) + 16 if kind is OpKind.DISPATCH else 7168 * 2.0 + 16
    moved = tokens * 8 * message * (n_ranks - 1) / n_ranks
    near = moved * min(1.0, 7 / (n_ranks - 1))
    shape = ExchangeShape(
        n_ranks=n_ranks, up_out_bytes=near, up_in_bytes=near, nic_out_bytes=moved - near, nic_in_bytes=moved - near,
        n_messages=8.0 * tokens, message_bytes=message, n_experts=256.0, token_bytes=tokens * message, is_low_latency=low,
    )  # fmt: skip
    return Op(kind.value, kind, Work(0.0, 0.0, moved), shape)


@pytest.fixture(scope="module")
def network():
    return CostModel.of(load_hardware("h100_x128_nodes", 72)).network


@pytest.mark.parametrize("tokens", H20_EP16)
def test_dispatch_kernels_as_measured_on_h20(network, tokens):
    assert kernels_s(exchange(OpKind.DISPATCH, tokens, 16), network) * 1e6 == pytest.approx(H20_EP16[tokens], rel=0.12)


@pytest.mark.parametrize("kind", B200_EP8)
def test_kernels_on_another_device(network, kind):
    assert kernels_s(exchange(kind, 128, 8), network) * 1e6 == pytest.approx(B200_EP8[kind], rel=0.12)


def test_normal_mode_and_fabrics_without_kernels_of_their_own(network):
    assert kernels_s(exchange(OpKind.DISPATCH, 128, 16, low=False), network) == 0.0
    other = CostModel.of(load_hardware("mi300x_8", 8)).network
    assert kernels_s(exchange(OpKind.DISPATCH, 128, 8), other) == 0.0


def test_interleaved_decode_pays_for_them_on_the_engine(monkeypatch):
    # one micro-batch does not change; of two, each exchange holds the engine at both ends
    step, times = Pass(Phase.DECODE, 32.0 * 32, 1.0, 2000.0), {}
    for mode in (Overlap.NONE, Overlap.TWO_BATCH):
        instance = build_instance(
            load_model("deepseek-v3"), ParallelSpec(dp_size=32, ep_size=32), load_hardware("h100_x128_nodes", 32),
            RoutingSpec(family=RouterFamily.BALANCED), overlap=mode,
        )  # fmt: skip
        program = instance.program(step, instance.draw(step, np.random.default_rng(0)))
        found = simulate(program, instance.cost, record=False)
        with monkeypatch.context() as without:
            without.setattr("moesim.sim.schedule.kernels_s", lambda op, network: 0.0)
            bare = simulate(program, instance.cost, record=False)
        times[mode] = (found, bare)
    alone, bare = times[Overlap.NONE]
    assert alone.time_s == bare.time_s
    both, bare = times[Overlap.TWO_BATCH]
    held = 58 * 2 * 2 * 20e-6
    assert bare.time_s < both.time_s < bare.time_s + 1.5 * held
