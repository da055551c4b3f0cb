"""Capacity, drops and padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.routing import (
    DropRule,
    apply_capacity,
    build_router,
    capped_counts,
    expert_capacity,
    padded_counts,
)
from moesim.specs.routing import RoutingSpec


@pytest.mark.parametrize(
    ("sizes", "factor", "want"),
    [((128, 8, 2), 1.0, 32), ((100, 8, 2), 1.25, 32), ((10, 8, 2), None, 10), ((10, 2, 2), 5.0, 10), ((10, 10, 10), 0.1, 1),
     ((100, 10, 1), 1.1, 11)],
)  # fmt: skip
def test_capacity_by_hand(sizes, factor, want):
    assert expert_capacity(*sizes, factor) == want


def test_first_choices_of_all_tokens_come_before_second_ones():
    experts = np.array([[0, 1], [1, 0], [0, 1]])
    kept = apply_capacity(experts, 2, 2)
    assert kept.kept.tolist() == [[True, True], [True, False], [True, False]]
    assert kept.counts.tolist() == [2, 2]
    assert kept.dropped.tolist() == [1, 1]


def test_lowest_weights_go_first():
    experts = np.array([[0, 1], [1, 0], [0, 1]])
    weights = np.array([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
    kept = apply_capacity(experts, 2, 2, DropRule.WEIGHT, weights)
    assert kept.kept.tolist() == [[True, False], [True, False], [True, True]]
    with pytest.raises(InputError, match="weights"):
        apply_capacity(experts, 2, 2, DropRule.WEIGHT)


@given(
    st.sampled_from(["uniform", "zipf"]), st.integers(1, 12), st.integers(1, 4), st.integers(0, 60), st.floats(0.1, 3),
    st.sampled_from(list(DropRule)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_tokens_times_k_are_assignments_and_drops(family, n_experts, top_k, n_tokens, factor, rule):
    top_k = min(top_k, n_experts)
    spec = RoutingSpec(family=family, skew=None if family == "uniform" else 1.0)
    experts = build_router(spec, 1, n_experts, top_k).sample_tokens(n_tokens, np.random.default_rng(0))[:, 0]
    capacity = expert_capacity(n_tokens, n_experts, top_k, factor)
    weights = np.random.default_rng(1).random(experts.shape)
    kept = apply_capacity(experts, n_experts, capacity, rule, weights)
    assert kept.n_assignments + kept.n_dropped == n_tokens * top_k
    assert kept.kept.sum() == kept.n_assignments
    assert (kept.counts <= capacity).all()
    by_hand = np.bincount(experts[kept.kept].astype(int), minlength=n_experts)
    assert by_hand.tolist() == kept.counts.tolist()
    fit, dropped = capped_counts(np.bincount(experts.ravel().astype(int), minlength=n_experts), capacity)
    assert fit.tolist() == kept.counts.tolist()
    assert dropped.tolist() == kept.dropped.tolist()


def test_no_capacity_factor_drops_nothing():
    experts = np.zeros((50, 1), int)
    assert apply_capacity(experts, 4, expert_capacity(50, 4, 1, None)).n_dropped == 0


def test_padding_and_bad_input():
    assert padded_counts(np.array([[0, 3], [16, 17]]), 16).tolist() == [[0, 16], [16, 32]]
    for bad in (lambda: padded_counts(np.array([1]), 0), lambda: expert_capacity(1, 1, 1, 0.0),
                lambda: expert_capacity(1, 1, 1, float("nan"))):  # fmt: skip
        with pytest.raises(InputError):
            bad()
