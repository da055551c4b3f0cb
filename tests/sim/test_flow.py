"""Token flow against logs written out by hand, and the books it keeps.

Everything is in whole seconds: the toy device does 100 TFLOP/s and its ports carry 100 GB/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import simpy

from moesim.analytic import estimate
from moesim.errors import ConservationError
from moesim.ops import CollectiveShape, ExchangeShape, GemmShape, Op, OpKind, Phase, Program, Segment, Work
from moesim.sim import FlowOptions, events, simulate
from moesim.sim.elements import Gathering, Server
from moesim.sim.schedule import Exchange, schedule
from moesim.testing import recorded, toy_cost, toy_hardware, toy_link
from moesim.timeline import Cause, Timeline

COST = toy_cost(toy_hardware(2, scale_up=toy_link(100e9, 0.5)))


def _compute(name: str, seconds: Sequence[float], kind: OpKind = OpKind.GEMM, under: str | None = None) -> Op:
    return Op(name, kind, Work(np.array([seconds]) * 100e12), GemmShape(1.0, 1.0, 1.0), hidden_under=under)


def _exchange(name: str, kind: OpKind, out: Sequence[float], into: Sequence[float]) -> Op:
    out_bytes, in_bytes = np.array([out]) * 100e9, np.array([into]) * 100e9
    zero = np.zeros_like(out_bytes)
    return Op(name, kind, Work(0.0, out_bytes, in_bytes), ExchangeShape(2, out_bytes, in_bytes, zero, zero, 1.0))


def _program(*ops: Op, overlap: bool = False, layers: tuple[int, ...] = (0,)) -> Program:
    return Program(Phase.DECODE, (Segment("layer", ops, layers),), 2, 2.0, 2.0, overlap=overlap)


def _layer(experts: Sequence[float], back: tuple[Sequence[float], Sequence[float]], *hidden: Op) -> tuple[Op, ...]:
    return (
        _compute("pre", (1, 1)),
        *hidden,
        _exchange("dispatch", OpKind.DISPATCH, (1, 2), (2, 1)),
        _compute("experts", experts, OpKind.GROUPED_GEMM),
        _exchange("combine", OpKind.COMBINE, *back),
        _compute("post", (1, 1)),
    )


def test_one_layer_of_unequal_load_by_hand() -> None:
    result = simulate(_program(*_layer((4, 2), ((2, 1), (1, 2)))), COST)
    # Both send from 1: rank 0 until 2, rank 1 until 3; rank 0 takes in 2 s of bytes, until 3. Half a second later all is there.
    # Rank 1 has its experts done at 5.5, sends until 6.5 and takes in 2 s of bytes, so it is through at 8; but the last bytes
    # leave rank 0, which starts at 7.5, at 9.5, and land at 10.
    assert recorded(result.timeline) == [
        (0.0, "0/compute 0 pre for 1"),
        (0.0, "1/compute 0 pre for 1"),
        (1.0, "0/comm 0 dispatch for 1.5"),
        (1.0, "1/comm 0 dispatch for 2.5"),
        (3.5, "0/compute 0 experts for 4"),
        (3.5, "1/compute 0 experts for 2"),
        (5.5, "1/comm 0 combine for 1.5"),
        (7.5, "0/comm 0 combine for 2.5"),
        (8.0, "1/comm 0 wait (waiting for tokens to arrive) for 2"),
        (10.0, "0/compute 0 post for 1"),
        (10.0, "1/compute 0 post for 1"),
    ]
    assert result.time_s == 11.0
    assert result.waits_s[Cause.DATA] == 1.0  # mean of two ranks
    # rank 0: 1 + 1 s of exchange, half a second of latency each, its own experts and bytes; rank 1 the same but its wait
    np.testing.assert_allclose(result.idle_s[Cause.TRANSFER], [2.5 + 2.5, 2.5 + 2.5])
    np.testing.assert_array_equal(result.idle_s[Cause.DATA], [0, 2])
    assert [(a.rank, a.wait_s, a.n_layers) for a in result.awaited] == [(0, 1.0, 1)]
    assert result.bytes_sent == 6 * 100e9
    np.testing.assert_allclose(result.timeline.busy_s("compute"), [6, 4])


def test_receiving_starts_with_the_first_sender() -> None:
    # As above, but rank 0 has to send for 1 s and to receive for 2 s: it has received by 7.5, when it starts to send, so all is
    # over at 9, where the closed form waits for 2 s of bytes after the slowest rank's experts: 10.
    program = _program(*_layer((4, 2), ((1, 2), (2, 1))))
    assert simulate(program, COST).time_s == 10.0
    assert estimate(program, COST).time_s == 11.0


def test_layers_follow_each_other_and_repeat() -> None:
    once = _layer((4, 2), ((2, 1), (1, 2)))
    assert simulate(_program(*once, layers=(0, 1, 2)), COST).time_s == 33.0


def test_layers_of_two_kinds_run_in_the_order_of_the_model() -> None:
    a, b = _compute("a", (1, 1)), _compute("b", (2, 2))
    program = replace(
        _program(a), segments=(Segment("even", (a,), (0, 2)), Segment("odd", (b,), (1,)), Segment("head", (b,)))
    )
    log = recorded(simulate(program, COST).timeline)
    assert [what for _, what in log if what.startswith("0/")] == [
        "0/compute 0 a for 1",
        "0/compute 1 b for 2",
        "0/compute 2 a for 1",
        "0/compute -1 b for 2",
    ]


def test_a_collective_starts_with_the_last_rank() -> None:
    reduce = Op("reduce", OpKind.ALL_GATHER, Work(), CollectiveShape(2, 200e9))
    log = recorded(simulate(_program(_compute("pre", (1, 3)), reduce), COST).timeline)
    # half of 200 GB at 100 GB/s, and half a second of latency
    assert log == [
        (0.0, "0/compute 0 pre for 1"),
        (0.0, "1/compute 0 pre for 3"),
        (1.0, "0/comm 0 wait (waiting for the slowest rank) for 2"),
        (3.0, "0/comm 0 reduce for 1.5"),
        (3.0, "1/comm 0 reduce for 1.5"),
    ]


def test_overlap_runs_shared_experts_beside_the_dispatch() -> None:
    short = _layer((4, 2), ((2, 1), (1, 2)), _compute("shared", (2, 2), under="dispatch"))
    assert simulate(_program(*short), COST).time_s == 13.0
    assert simulate(_program(*short, overlap=True), COST).time_s == 11.0
    # 3 s do not fit beside the 2.5 s of the dispatch: experts wait half a second for the engine
    long = _layer((4, 2), ((2, 1), (1, 2)), _compute("shared", (3, 3), under="dispatch"))
    result = simulate(_program(*long, overlap=True), COST)
    assert result.time_s == 11.5
    assert result.waits_s[Cause.ENGINE_BUSY] == 0.5
    log = recorded(result.timeline, {"shared", "experts"})
    assert log[0] == (1.0, "0/compute 0 shared for 3")
    assert (4.0, "0/compute 0 experts for 4") in log
    assert estimate(_program(*long, overlap=True), COST).time_s == 11.5
    assert result.timeline.overlaps() == []


def test_stage_sends_follow_the_last_stage() -> None:
    send = Op("send", OpKind.SEND, Work(), CollectiveShape(2, 300e9))
    program = replace(_program(_compute("a", (2, 2))), pp_size=3, stage_sends=(send,))
    assert simulate(program, COST).time_s == pytest.approx(2 + 2 * 3.5)
    assert estimate(program, COST).time_s == pytest.approx(2 + 2 * 3.5)


def test_two_runs_are_one() -> None:
    program = _program(*_layer((4, 2), ((2, 1), (1, 2))), layers=tuple(range(5)))
    first, second = simulate(program, COST), simulate(program, COST)
    assert list(first.timeline) == list(second.timeline)
    assert first.waits_s == second.waits_s
    quiet = simulate(program, COST, record=False)
    assert quiet.time_s == first.time_s
    assert quiet.waits_s == first.waits_s
    assert list(quiet.timeline) == []


def test_bytes_that_vanish_are_noticed() -> None:
    good = _exchange("dispatch", OpKind.DISPATCH, (1, 2), (2, 1))
    bad = replace(good, work=replace(good.work, write_bytes=good.work.write_bytes * 0.99))
    simulate(_program(good), COST)
    with pytest.raises(ConservationError, match="dispatch of layer 0"):
        simulate(_program(bad), COST)


def test_ranks_that_never_finish_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneTooMany(Gathering):
        def __init__(self, env: simpy.Environment, n: int) -> None:
            super().__init__(env, n + 1)

    monkeypatch.setattr(events, "Gathering", OneTooMany)
    reduce = Op("reduce", OpKind.ALL_GATHER, Work(), CollectiveShape(2, 200e9))
    with pytest.raises(ConservationError, match="2 of 2 ranks never finished"):
        simulate(_program(reduce), COST, options=FlowOptions(is_by_event=True))


def test_servers_queue_and_count() -> None:
    port = Server()
    assert port.reserve(1.0, 2.0) == (1.0, 3.0)
    assert port.reserve(2.0, 5.0) == (3.0, 8.0)
    assert port.reserve(20.0, 1.0) == (20.0, 21.0)
    assert port.busy_s == 8.0


def test_overlaps_would_be_found() -> None:
    timeline = Timeline(1)
    timeline.add(0, "compute", "a", 0, 0.0, 2.0)
    timeline.add(0, "comm", "b", 0, 1.0, 3.0)
    timeline.add(0, "compute", "wait", 0, 1.0, 3.0, Cause.ENGINE_BUSY)
    assert timeline.overlaps() == []
    timeline.add(0, "compute", "c", 0, 1.5, 3.0)
    assert [(a.name, b.name) for a, b in timeline.overlaps()] == [("a", "c")]
    timeline.add(0, "compute", "empty", 0, 5.0, 5.0)
    assert "empty" not in {span.name for span in timeline}


def test_schedule_takes_durations_from_the_cost_model() -> None:
    steps = schedule(_program(*_layer((4, 2), ((2, 1), (1, 2)))), COST)
    assert [type(s).__name__ for s in steps] == ["Compute", "Exchange", "Compute", "Exchange", "Compute"]
    dispatch = steps[1]
    assert isinstance(dispatch, Exchange)
    np.testing.assert_array_equal([dispatch.out_s, dispatch.in_s, dispatch.latency_s], [[1, 2], [2, 1], [0.5, 0.5]])
