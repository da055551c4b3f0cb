"""Stragglers have a name: whom ranks wait for, how long and why, on small programs by hand and on a whole model."""

from __future__ import annotations

import numpy as np
import pytest
from test_flow import COST, _compute, _exchange, _program

from moesim.ops import OpKind
from moesim.sim import FlowOptions, FlowResult, simulate
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.instance import Instance, build_instance
from moesim.testing import decode, prefill
from moesim.timeline import Cause


def test_lateness_and_bytes_of_the_last_sender_are_told_apart() -> None:
    # rank 1 computes until 5 and sends for 2 s, half a second of latency; rank 0 has sent and taken its own by 5
    program = _program(
        _compute("experts", (1, 5)), _exchange("combine", OpKind.COMBINE, (2, 2), (2, 2)), _compute("post", (1, 1))
    )
    result = simulate(program, COST)
    np.testing.assert_allclose(result.idle_s[Cause.TRANSFER], [2.5, 2.5])
    # own bytes are there at 3.5; until 5.5 it waits for rank 1 to begin (with latency), then for its bytes
    np.testing.assert_allclose(result.idle_s[Cause.BARRIER], [2.0, 0.0])
    np.testing.assert_allclose(result.idle_s[Cause.DATA], [2.0, 0.0])
    (awaited,) = result.awaited
    assert (awaited.rank, awaited.n_layers, awaited.wait_s) == (1, 1, 2.0)  # mean of two ranks
    assert awaited.reasons_s == {"other": 2.0}  # the group of `experts` in this program
    spans = [(s.cause, s.awaited, s.start_s, s.end_s) for s in result.timeline if s.cause is not None]
    assert spans == [(Cause.BARRIER, 1, 3.5, 5.5), (Cause.DATA, 1, 5.5, 7.5)]


def test_a_slow_engine_and_a_slow_link_by_hand() -> None:
    program = _program(
        _compute("experts", (2, 2)), _exchange("combine", OpKind.COMBINE, (2, 2), (2, 2)), _compute("post", (1, 1))
    )
    (slow,) = simulate(program, COST, options=FlowOptions(slow_ranks={0: 2.0})).awaited[:1]
    assert (slow.rank, set(slow.reasons_s)) == (0, {"engine"})
    link = simulate(program, COST, options=FlowOptions(slow_links={1: 3.0}))
    assert (link.awaited[0].rank, set(link.awaited[0].reasons_s)) == (1, {"link"})
    np.testing.assert_allclose(link.idle_s[Cause.BARRIER], [0.0, 0.0])  # rank 1 begins with the other
    np.testing.assert_allclose(link.idle_s[Cause.DATA], [4.0, 0.0])


def _instance(overlap: str, routing: RoutingSpec) -> Instance:
    split = ParallelSpec(dp_size=16, ep_size=16)
    hardware = load_hardware("h800_x22_nodes", 16)
    model = load_model("deepseek-v3")
    return build_instance(model, split, hardware, routing, overlap=overlap, rng=np.random.default_rng(0))


def _run(overlap: str, phase: str, options: FlowOptions, routing: RoutingSpec | None = None) -> FlowResult:
    instance = _instance(overlap, routing or RoutingSpec(family=RouterFamily.BALANCED))
    step = decode(16 * 64, 2048) if phase == "decode" else prefill(16, 2048)
    program = instance.program(step, instance.draw(step, np.random.default_rng(1)))
    return simulate(program, instance.cost, options=options)


@pytest.mark.parametrize("overlap", ["none", "shared_experts", "two_batch"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("what", ["engine", "link"])
def test_the_straggler_of_a_whole_model_is_named(overlap: str, phase: str, what: str) -> None:
    slow = {3: 2.0} if what == "engine" else {3: 8.0}
    options = FlowOptions(slow_ranks=slow) if what == "engine" else FlowOptions(slow_links=slow)
    result = _run(overlap, phase, options)
    first = result.awaited[0]
    waited = result.waits_s[Cause.BARRIER] + result.waits_s[Cause.DATA]
    assert first.rank == 3
    assert first.wait_s > 0.8 * waited > 0.0
    assert first.reasons_s[what] > 0.9 * first.wait_s
    # the straggler itself waits least
    idle = sum(seconds for cause, seconds in result.idle_s.items() if cause.is_wait)
    assert int(np.argmin(idle)) == 3
    busy_and_idle = result.engine_busy_s + sum(s for c, s in result.idle_s.items() if c is not Cause.ENGINE_BUSY)
    np.testing.assert_allclose(busy_and_idle, result.time_s, rtol=1e-9)


def test_a_slow_engine_is_waited_for_at_barriers_and_a_slow_link_for_its_bytes() -> None:
    engine = _run("none", "decode", FlowOptions(slow_ranks={3: 2.0})).waits_s
    assert engine[Cause.BARRIER] > 2.0 * engine[Cause.DATA]
    link = _run("none", "prefill", FlowOptions(slow_links={3: 3.0})).waits_s
    assert link[Cause.DATA] > 2.0 * link[Cause.BARRIER]


def test_hot_experts_are_the_reason_where_nothing_is_slow() -> None:
    result = _run("none", "prefill", FlowOptions(), RoutingSpec(family=RouterFamily.LOGNORMAL, skew=1.0))
    reasons: dict[str, float] = {}
    for awaited in result.awaited:
        for reason, seconds in awaited.reasons_s.items():
            reasons[reason] = reasons.get(reason, 0.0) + seconds
    assert max(reasons, key=lambda reason: reasons[reason]) in ("experts", "traffic")
    assert not {"engine", "link"} & set(reasons)
    even = _run("none", "prefill", FlowOptions())
    assert sum(a.wait_s for a in even.awaited) < 0.1 * sum(a.wait_s for a in result.awaited)
