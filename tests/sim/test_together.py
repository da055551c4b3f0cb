"""All ranks together against event by event: the same times on programs drawn at random."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesim.sim.alone import run_alone
from moesim.sim.books import Books, FlowResult
from moesim.sim.events import run_by_event
from moesim.sim.schedule import Compute, Exchange, Meeting, Step
from moesim.sim.twin import run_twins
from moesim.sim.twin_parts import InPorts
from moesim.timeline import Cause


def _row(rng: np.random.Generator, n: int, scale: float, spread: float) -> np.ndarray:
    return scale * rng.uniform(0.2, 1.0) * np.exp(rng.normal(0.0, spread, n))


def _steps(rng: np.random.Generator, n: int, n_steps: int, kinds: str, spread: float) -> list[Step]:
    """Random steps; `kinds` is drawn from: c compute, x exchange, h exchange with something beside it, m collective."""
    steps: list[Step] = []
    for i, kind in enumerate(rng.choice(list(kinds), n_steps)):
        if kind == "c":
            seconds = _row(rng, n, 1.0, spread)
            steps.append(Compute(i, seconds, (("a", 0.25 * seconds), ("b", 0.75 * seconds))))
        elif kind == "m":
            steps.append(Meeting(i, "reduce", _row(rng, n, 0.5, spread * rng.integers(0, 2))))
        else:
            out_s, in_s = (
                _row(rng, n, 2.0 ** rng.uniform(-2, 2), spread) * rng.integers(0, 8, n).clip(0, 1) for _ in "oi"
            )
            hidden = (("one", _row(rng, n, 0.3, spread)), ("two", _row(rng, n, 0.3, spread))) if kind == "h" else ()
            steps.append(
                Exchange(i, "go", out_s, in_s, _row(rng, n, 0.2, spread * rng.integers(0, 2)), hidden, 1.0, 1.0)
            )
    return steps


def _compare(run: Callable[[Books], None], reference: Callable[[Books], None], starts_s: np.ndarray) -> None:
    books = []
    for way in (run, reference):
        used = Books(len(starts_s), record=True)
        used.ends_s = starts_s.copy()
        way(used)
        books.append(used)
    mine, theirs = books
    for name in ("ends_s", "engine_busy_s", "out_busy_s", "in_busy_s"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-9, err_msg=name)
    assert mine.n_holds == theirs.n_holds
    assert mine.bytes_sent == theirs.bytes_sent
    found, expected = mine.result(0.0), theirs.result(0.0)
    for name in ("exposed_comm_s", "hidden_comm_s"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-9), name
    assert -1e-9 <= found.exposed_comm_s <= mine.ends_s.max() + 1e-9
    assert _spans(found) == _spans(expected)
    assert not [a for a, _ in found.timeline.overlaps() if a.lane == "compute"]
    by_hand = _idle_rank_by_rank(theirs, starts_s)
    for cause, seconds in by_hand.items():
        np.testing.assert_allclose(found.idle_s[cause], seconds, atol=1e-7, err_msg=cause.value)
    idle = sum(seconds for cause, seconds in found.idle_s.items() if cause is not Cause.ENGINE_BUSY)
    # work beside the last exchange may outlast the pass
    until = np.maximum(found.time_s, found.ledger.idle.free_s)
    np.testing.assert_allclose(found.engine_busy_s + idle, until - starts_s, atol=1e-7)
    _check_awaited(found)


def _check_awaited(found: FlowResult) -> None:
    """Waits for ranks add up to waits; who is waited for comes to the join when the others stop waiting for it to begin."""
    waited = found.waits_s[Cause.BARRIER] + found.waits_s[Cause.DATA]
    assert sum(a.wait_s for a in found.awaited) == pytest.approx(waited, abs=1e-7)
    for awaited in found.awaited:
        assert sum(awaited.reasons_s.values()) == pytest.approx(awaited.wait_s)
    work = {(s.rank, s.batch, s.layer): s for s in found.timeline if s.lane == "comm" and s.cause is None}
    for span in found.timeline:
        last = work.get((span.awaited, span.batch, span.layer))
        if span.cause is Cause.BARRIER and last is not None and span.duration_s > 1e-9:
            assert span.rank != span.awaited
            assert span.end_s >= last.start_s - 1e-9


def _idle_rank_by_rank(books: Books, starts_s: np.ndarray) -> dict[Cause, np.ndarray]:
    """Idle time of engines by cause, gap by gap from the spans of each rank: a gap is the batch's whose work ends it."""
    timeline, ends_s = books.result(0.0).timeline, books.ends_s
    idle: dict[Cause, np.ndarray] = {
        cause: np.zeros(books.n_ranks) for cause in Cause if cause is not Cause.ENGINE_BUSY
    }
    for rank in range(books.n_ranks):
        spans = [s for s in timeline if s.rank == rank]
        jobs = [(s.start_s, s.end_s, s.batch) for s in spans if s.lane == "compute" and s.cause is None]
        through = [(float(stay.joined_s[-1, rank]), batch) for batch, stay in books.visits]
        free = starts_s[rank]
        for start, end, batch in sorted([*jobs, *((at, at, batch) for at, batch in through)]):
            moved = max(0.0, start - free)
            for wait in (s for s in spans if s.batch == batch and s.cause in idle):
                inside = min(wait.end_s, start) - max(wait.start_s, free)
                if inside > 0.0:
                    idle[wait.cause][rank] += inside  # type: ignore[index]
                    moved -= inside
            idle[Cause.TRANSFER][rank] += moved
            free = max(free, end)
        idle[Cause.BARRIER][rank] += max(0.0, ends_s.max() - free)
    return idle


def _spans(found: FlowResult) -> list[tuple[object, ...]]:
    """Spans that are longer than rounding, to ten digits."""
    return sorted(
        (s.rank, s.lane, s.name, s.layer, s.batch, s.awaited, str(s.cause), round(s.start_s, 8), round(s.end_s, 8))
        for s in found.timeline
        if s.duration_s > 1e-9
    )


SPREADS = st.sampled_from([0.0, 0.1, 0.5, 1.5])


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(0, 14),
    st.sampled_from(["cx", "ccxh", "cxm", "cxhm"]),
    SPREADS,
    st.sampled_from([0, 99]),
)
@example(0, 4, 14, "cxhm", 1.5, 0)
@example(0, 4, 14, "cxhm", 1.5, 99)
def test_two_micro_batches(seed: int, n: int, n_steps: int, kinds: str, spread: float, n_few: int) -> None:
    rng = np.random.default_rng(seed)
    first = _steps(rng, n, n_steps, kinds, spread)
    second = _steps(rng, n, int(rng.integers(0, n_steps + 1)), kinds, spread)
    starts = rng.uniform(0.0, 2.0, n)
    _compare(lambda b: run_twins([first, second], b, n_few=n_few), lambda b: run_by_event([first, second], b), starts)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 14), SPREADS)
def test_one_micro_batch(seed: int, n: int, n_steps: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    steps = _steps(rng, n, n_steps, "cxhm", spread)
    starts = rng.uniform(0.0, 2.0, n)
    _compare(lambda b: run_alone(steps, b), lambda b: run_by_event([steps], b), starts)


def test_many_jobs_on_a_receiving_port() -> None:
    # three jobs of 1, 2 and 4 s from 0: each third until 3, when the first ends; halves until 5; the last alone until 7
    ports = InPorts()
    jobs = [ports.start(0.0, np.array([seconds])) for seconds in (1.0, 2.0, 4.0)]
    assert [float(job.end_s[0]) for job in jobs] == [3.0, 5.0, 7.0]
    # a fourth at 4: the second has half a second left and the third two and a half
    last = ports.start(4.0, np.array([0.25]))
    assert float(last.end_s[0]) == 4.75
    assert [float(job.end_s[0]) for job in jobs] == [3.0, 5.25, 7.25]


@pytest.mark.parametrize("n_few", [0, 99])
def test_work_beside_an_exchange_queues_behind_a_compute_that_came_at_the_same_moment(n_few: int) -> None:
    # rank 0 has nothing to compute before its exchange, so the 4 s beside it come when the other batch's compute does
    zero_and_one, four, one = np.array([0.0, 1.0]), np.full(2, 4.0), np.ones(2)
    first = [
        Compute(0, zero_and_one, (("a", zero_and_one),)),
        Exchange(0, "x", one, one, one, (("h", four),), 1.0, 1.0),
    ]
    second = [Compute(0, one, (("b", one),)), Meeting(0, "m", one)]
    books = Books(2, record=True)
    run_twins([first, second], books, n_few=n_few)
    assert books.visits[1][1].joined_s[0].tolist() == [1.0, 2.0]
    _compare(
        lambda b: run_twins([first, second], b, n_few=n_few), lambda b: run_by_event([first, second], b), np.zeros(2)
    )
