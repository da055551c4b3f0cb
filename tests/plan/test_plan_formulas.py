import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.study.plan.curves import batch_grid, uneven_stages
from moesim.study.plan.formulas import PrefillTimes, busy_limit, colocated, pool_ttft
from moesim.study.plan.options import front


def times(alone=0.1, share=0.1, dp=1, pp=1, chunks=1, per_pass=1, chunk=1024):
    return PrefillTimes(alone, share, dp, pp, chunks, per_pass, chunk)


def test_one_sequence_alone_waits_for_nobody():
    served = colocated(0.02, 0.02, 1.0, times(), 100)
    assert served.tpot_s == pytest.approx(0.02)
    assert served.queue_s == pytest.approx(0.0)
    assert served.ttft_s == pytest.approx(0.1)
    # a round is a decode and a hundredth of a prefill; nothing is saved where all of decode is attention
    assert 1.0 / served.requests_per_s == pytest.approx(100 * 0.02 + 0.1, rel=0.01)


def test_tpot_by_hand_where_passes_are_full():
    # 10 sequences, 10 outputs: a prompt per pass, if none waited. A share r of passes has one, others' 9 in 10 of them, where
    # those that decode and those that wait in an M/D/1 queue are 10 together: 10 r + r^2 / (2 (1 - r)) = 10
    r = (20 - math.sqrt(20**2 - 4 * 9.5 * 10)) / 19
    assert 10 * r + r**2 / (2 * (1 - r)) == pytest.approx(10)
    served = colocated(0.02, 0.02, 10.0, times(), 10)
    assert served.tpot_s == pytest.approx(0.02 + 0.9 * r * 0.1, rel=1e-3)
    assert served.requests_per_s == pytest.approx(r / (0.02 + r * 0.1), rel=1e-3)


def test_ranks_in_step_wait_for_one_prefill():
    lone = colocated(0.02, 0.02, 1.0, times(), 100)
    # 16 ranks with one sequence each: a prefill somewhere in 1 - 0.99^16 of passes, and all wait for it
    ranks = colocated(0.02, 0.02, 1.0, times(share=0.1 / 16, dp=16), 100)
    assert ranks.tpot_s == pytest.approx(0.02 + (1 - (1 - 0.01 * 15 / 16) ** 16) * 0.1, rel=2e-3)
    assert ranks.tpot_s > lone.tpot_s * 1.5


def test_decode_rides_along_with_prefill():
    apart = colocated(0.02, 0.02, 64.0, times(), 100).tpot_s
    shared = colocated(0.02, 0.005, 64.0, times(), 100).tpot_s
    assert 0.02 < shared < apart


def test_a_prefill_pool_is_an_m_d_1_queue():
    wait, passes = pool_ttft(5.0, times())
    assert passes == pytest.approx(0.1)
    assert wait == pytest.approx(0.5 / (2 * 0.5) * 0.1)


def test_the_fullest_of_ranks_by_sampling():
    rng = np.random.default_rng(0)
    for mean, dp, cap in ((0.05, 8, 1), (0.7, 4, 8), (1.5, 16, 4)):
        drawn = np.minimum(rng.poisson(mean, (40_000, dp)).max(axis=1), cap).mean()
        assert float(times(dp=dp, per_pass=cap).most_on_a_rank(np.asarray(mean))) == pytest.approx(drawn, rel=0.03)


def test_prefill_in_step_is_slower_than_one_prompt_and_no_slower_than_full():
    prefill = times(alone=0.2, share=0.4 / 16, dp=8, per_pass=2)
    idle, busy = pool_ttft(1e-6, prefill), pool_ttft(0.95 / (0.4 / 16), prefill)
    assert idle[1] == pytest.approx(0.2, rel=0.01)
    assert idle[0] < 0.001
    assert 0.2 < busy[1] <= 0.4 * 1.01


def test_busy_limit_meets_the_goal_and_no_more():
    prefill = PrefillTimes(np.array([0.1, 0.3]), np.array([0.1, 0.3]), np.array([1.0, 1.0]), 1, 1, 1, 1024)
    limit = busy_limit(0.2, 0.0, 0.9, prefill)
    assert limit[1] == 0.0
    wait, passes = pool_ttft(limit[0] / 0.1, times())
    assert wait + passes <= 0.2
    wait, passes = pool_ttft((limit[0] + 0.9 / 50) / 0.1, times())
    assert wait + passes > 0.2


@given(st.floats(1e-3, 0.1), st.floats(0.0, 1.0), st.integers(1, 512), st.integers(1, 64), st.integers(2, 2000))
def test_more_sequences_never_speed_a_user_up(decode_s, attention, k, dp, output):
    prefill = times(share=0.1 / dp, dp=dp)
    a, b = (colocated(decode_s, attention * decode_s, float(n), prefill, output) for n in (k, k + 1))
    assert b.tpot_s >= a.tpot_s * (1 - 1e-4)  # tables are interpolated
    assert a.ttft_s >= prefill.alone_s
    assert a.requests_per_s > 0


def test_front_keeps_what_nothing_beats():
    x, y = np.array([1.0, 2.0, 3.0, 2.0, 0.5]), np.array([5.0, 4.0, 1.0, 3.0, 5.0])
    assert front(x, y).tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=40))
def test_front_against_brute_force(points):
    x, y = (np.array([p[i] for p in points], dtype=float) for i in (0, 1))
    kept = {(x[i], y[i]) for i in front(x, y)}
    unbeaten = {p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)}
    assert kept == unbeaten


@pytest.mark.parametrize(("layers", "stages", "factor"), [(61, 1, 1.0), (60, 4, 1.0), (61, 2, 62 / 61), (10, 4, 1.2)])
def test_the_longest_stage_sets_the_pace(layers, stages, factor):
    assert uneven_stages(layers, stages) == pytest.approx(factor)


@pytest.mark.parametrize("most", [1, 2, 5, 100, 1024])
def test_batch_grid_ends_are_exact(most):
    grid = batch_grid(most)
    assert grid[0] == 1
    assert grid[-1] == most
    assert (np.diff(grid) > 0).all()
