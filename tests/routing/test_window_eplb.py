"""Balancing on a moving window: never worse on what it saw, the one-shot placement in the limit, no look-ahead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, ParallelError
from moesim.routing import build_router, contiguous, eplb_global, rank_imbalance_ratio
from moesim.routing.window import WindowPolicy, replace_experts, simulate_window
from moesim.routing.window_drift import DriftKind, domain_schedule, drifting_counts, related_domains
from moesim.specs.routing import RoutingSpec


def lognormal_router(n_layers=6, n_experts=64, sigma=1.0, seed=0):
    spec = RoutingSpec(family="lognormal", skew=sigma)
    return build_router(spec, n_layers, n_experts, 8, 1, 1, np.random.default_rng(seed))


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 4), st.sampled_from([0.0, 0.1]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_on_the_window_it_saw_it_is_never_worse_than_contiguous(seed, window, period, gain, align):
    counts = np.random.default_rng(seed).poisson(np.exp(np.random.default_rng(seed + 1).normal(2, 1, (12, 2, 16))))
    policy = WindowPolicy(4, 16, window, period, min_gain_frac=gain, align=align)
    for used in simulate_window(counts, policy).replacements[1:]:
        seen = counts[max(0, used.step - window) : used.step].sum(axis=0)
        plain = rank_imbalance_ratio(seen, contiguous(16, 4))
        # a layer may be kept where it could gain less than `gain`
        assert (rank_imbalance_ratio(seen, used.placement) <= plain / (1 - gain) * (1 + 1e-9)).all()


def test_on_stationary_counts_every_window_gives_the_one_shot_placement():
    counts = np.random.default_rng(0).integers(1, 500, (1, 5, 64)).repeat(30, axis=0)
    once = rank_imbalance_ratio(counts[0], eplb_global(counts[0], 8, 72))
    for window in (1, 10, None):
        result = simulate_window(counts, WindowPolicy(8, 72, window, 10))
        assert result.imbalance_ratio[10:] == pytest.approx(np.broadcast_to(once, (20, 5)))
        assert result.moves[1].n_moved_slots == 0


def test_long_windows_of_a_stationary_load_reach_what_true_probabilities_give():
    router = lognormal_router()
    counts = drifting_counts(router, np.ones((260, 1)), 512, np.random.default_rng(1))
    once = eplb_global(router.inclusion_probability(), 8, 72)
    best = np.mean([rank_imbalance_ratio(c, once).mean() for c in counts[200:]])
    long = simulate_window(counts, WindowPolicy(8, 72, None, 50)).mean_imbalance_ratio(200)
    short = simulate_window(counts, WindowPolicy(8, 72, 1, 50)).mean_imbalance_ratio(200)
    never = simulate_window(counts, WindowPolicy(8, 72, None, None)).mean_imbalance_ratio(200)
    assert long == pytest.approx(best, abs=0.01)
    assert best <= long + 0.01 < short < never


def test_it_does_not_look_ahead():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 100, (20, 2, 16))
    other = counts.copy()
    other[10:] = rng.integers(1, 100, (10, 2, 16))
    policy = WindowPolicy(4, 16, 5, 5, lag_steps=2)
    a, b = simulate_window(counts, policy), simulate_window(other, policy)
    assert [r.step for r in a.replacements] == [0, 7, 12, 17]
    for index in (1, 2):
        assert (a.replacements[index].placement.slots == b.replacements[index].placement.slots).all()
    assert (a.imbalance_ratio[:10] == b.imbalance_ratio[:10]).all()
    assert not (a.replacements[3].placement.slots == b.replacements[3].placement.slots).all()


def test_after_a_switch_the_window_catches_up_and_never_replacing_does_not():
    router = related_domains(lognormal_router(), 2, 0.0, np.random.default_rng(5))
    shares = domain_schedule(DriftKind.SWITCH, 120, 2, 120)
    counts = drifting_counts(router, shares, 1024, np.random.default_rng(2))
    start = eplb_global(counts[:30].sum(axis=0), 8, 72)
    fixed = simulate_window(counts, WindowPolicy(8, 72, None, None), start)
    moving = simulate_window(counts, WindowPolicy(8, 72, 10, 10), start)
    assert fixed.imbalance_ratio[:60].mean() < 1.2
    assert fixed.imbalance_ratio[60:].mean() > 1.5
    assert moving.imbalance_ratio[61:70].mean() > 1.5
    assert moving.imbalance_ratio[80:].mean() < 1.2


def test_keeping_layers_that_gain_little_moves_less():
    counts = drifting_counts(lognormal_router(), np.ones((60, 1)), 2048, np.random.default_rng(2))
    eager, lazy = (simulate_window(counts, WindowPolicy(8, 72, 10, 10, min_gain_frac=g)) for g in (0.0, 0.1))
    assert lazy.moved_slots_per_step() < 0.5 * eager.moved_slots_per_step()
    assert lazy.mean_imbalance_ratio(20) < eager.mean_imbalance_ratio(20) * 1.1


def test_hierarchical_replacement_keeps_groups_on_nodes():
    load = np.random.default_rng(0).lognormal(0, 1, (3, 64))
    policy = WindowPolicy(8, 72, n_nodes=4, n_group=8)
    placed = replace_experts(load, eplb_global(load, 8, 72), policy)
    for layer in placed.slots:
        for group in range(8):
            assert len(set((placed.slot_rank[layer // 8 == group] // 2).tolist())) == 1


@pytest.mark.parametrize("kind", list(DriftKind))
def test_schedules_are_shares(kind):
    shares = domain_schedule(kind, 50, 3, 20, np.random.default_rng(0))
    assert shares.shape == (50, 3)
    assert shares.min() >= 0
    assert shares.sum(axis=1) == pytest.approx(1)
    assert (np.ptp(shares, axis=0).max() > 0.3) == (kind is not DriftKind.STATIONARY)


def test_fast_counts_agree_with_tokens_drawn_one_by_one():
    spec = RoutingSpec(family="preset", preset="deepseek-v3")
    router = related_domains(
        build_router(spec, 3, 64, 6, 8, 4, np.random.default_rng(0)), 2, 0.3, np.random.default_rng(1)
    )
    shares = np.tile([0.8, 0.2], (40, 1))
    fast = drifting_counts(router, shares, 2000, np.random.default_rng(2))
    exact = drifting_counts(router, shares, 2000, np.random.default_rng(3), exact=True)
    assert exact.sum(axis=2).tolist() == [[12000] * 3] * 40
    assert fast.mean(axis=0) == pytest.approx(exact.mean(axis=0), rel=0.15, abs=25)
    assert fast.std(axis=0).mean() == pytest.approx(exact.std(axis=0).mean(), rel=0.15)


def test_domains_agree_as_far_as_they_should():
    router = lognormal_router(n_layers=30)

    def agreement(c):
        w = np.log(related_domains(router, 2, c, np.random.default_rng(0)).weights)
        return np.mean([np.corrcoef(w[0, i], w[1, i])[0, 1] for i in range(30)])

    assert agreement(1.0) == pytest.approx(1)
    assert agreement(0.5) == pytest.approx(0.5, abs=0.06)
    assert agreement(0.0) == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WindowPolicy(4, 16, 0),
        lambda: WindowPolicy(4, 16, period_steps=0),
        lambda: WindowPolicy(4, 16, lag_steps=-1),
        lambda: simulate_window(np.ones((2, 3)), WindowPolicy(4, 16)),
        lambda: simulate_window(np.ones((2, 3, 16)), WindowPolicy(4, 18)),
        lambda: domain_schedule(DriftKind.WALK, 5, 2, 4),
        lambda: domain_schedule(DriftKind.CYCLE, 0, 2, 4),
        lambda: related_domains(lognormal_router(), 2, 1.5, np.random.default_rng(0)),
        lambda: drifting_counts(lognormal_router(), np.ones((3, 2)), 8, np.random.default_rng(0)),
    ],
)
def test_bad_input_is_one_clear_line(make):
    with pytest.raises((InputError, ParallelError)) as caught:
        make()
    assert "\n" not in str(caught.value)
