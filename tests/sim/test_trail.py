"""Exposed communication of a simulated pass, by hand: what the pass waits for, without waiting for slower ranks."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.sim.alone import run_alone
from moesim.sim.books import Books, FlowResult
from moesim.sim.schedule import Compute, Exchange, Meeting, Step
from moesim.sim.twin import run_twins

Row = tuple[float, ...]


def _compute(*seconds: float) -> Compute:
    row = np.array(seconds)
    return Compute(0, row, (("work", row),))


def _exchange(out_s: Row, in_s: Row, latency_s: float = 0.0, beside: Row | None = None) -> Exchange:
    hidden = () if beside is None else (("shared", np.array(beside)),)
    return Exchange(0, "go", np.array(out_s), np.array(in_s), np.full(len(out_s), latency_s), hidden, 1.0, 1.0)


def _alone(*steps: Step) -> FlowResult:
    books = Books(2, record=False)
    run_alone(steps, books)
    return books.result(0.0)


def test_waiting_for_a_slower_rank_is_not_exposed_communication() -> None:
    # the second rank comes at 3; bytes are out and in at 5; a second of work each
    found = _alone(_compute(1.0, 3.0), _exchange((2.0, 2.0), (2.0, 2.0)), _compute(1.0, 1.0))
    assert found.time_s == 6.0
    assert found.exposed_comm_s == 2.0
    # the first computes for 2 of 6 seconds and the second for 4: half of 2 s is left over
    assert found.slower_wait_s == pytest.approx(1.0)
    assert found.time_s == pytest.approx(found.exposed_comm_s + found.slower_wait_s + found.engine_busy_s.mean())


def test_a_collective_is_exposed_from_the_last_arrival_on() -> None:
    found = _alone(_compute(1.0, 3.0), Meeting(0, "reduce", np.array([2.0, 2.0])), _compute(1.0, 1.0))
    assert (found.time_s, found.exposed_comm_s) == (6.0, 2.0)


def test_work_beside_an_exchange_hides_it() -> None:
    found = _alone(_compute(1.0, 3.0), _exchange((2.0, 2.0), (2.0, 2.0), beside=(1.5, 1.5)), _compute(1.0, 1.0))
    assert (found.time_s, found.exposed_comm_s) == (6.0, 0.5)


def test_slow_ranks_that_change_are_followed() -> None:
    # slow are the second, then the first: 3 + 2 + 3 + 2 + 0 s, of which 4 in exchanges
    go = _exchange((2.0, 2.0), (2.0, 2.0))
    found = _alone(_compute(1.0, 3.0), go, _compute(3.0, 1.0), go)
    assert (found.time_s, found.exposed_comm_s, found.slower_wait_s) == (10.0, 4.0, 2.0)


def test_another_batch_hides_what_it_can() -> None:
    # each batch computes 1, sends 2, computes 1: A until 1, then B until 2; A is through at 3 and computes until 4; B's bytes
    # share the port with A's from 2 on
    books = Books(2, record=False)
    steps = [_compute(1.0, 1.0), _exchange((2.0, 2.0), (2.0, 2.0)), _compute(1.0, 1.0)]
    run_twins([steps, steps], books)
    found = books.result(0.0)
    assert found.time_s == pytest.approx(found.exposed_comm_s + found.engine_busy_s.mean())
    assert 0.0 < found.exposed_comm_s < 4.0
    assert found.slower_wait_s == pytest.approx(0.0, abs=1e-12)
    assert found.hidden_comm_s > 0.0
