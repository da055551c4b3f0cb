"""Copies per token: every token served once by a holder of its expert, whatever the rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, ParallelError
from moesim.routing import build_router, contiguous, eplb_global, max_over_mean
from moesim.routing import given as given_placement
from moesim.routing.placement_replicas import ReplicaRule, choose_slots, dispatch_copies, home_ranks, slot_counts
from moesim.specs.routing import RoutingSpec


def counted(experts, n_experts):
    return np.stack([np.bincount(experts[:, layer].ravel(), minlength=n_experts) for layer in range(experts.shape[1])])


@given(
    st.sampled_from([(8, 4, 12, 2), (8, 4, 8, 4), (16, 8, 24, 2), (6, 3, 9, 1), (5, 8, 8, 4)]), st.integers(0, 2**32 - 1),
    st.integers(1, 60), st.sampled_from(list(ReplicaRule)), st.floats(0, 2),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_tokens_are_conserved(sizes, seed, n_tokens, rule, sigma):
    n_experts, n_ranks, n_slots, domain = sizes
    rng = np.random.default_rng(seed)
    placement = eplb_global(rng.lognormal(0, 1, (2, n_experts)), n_ranks, n_slots)
    weights = rng.lognormal(0, sigma, n_experts)
    experts = np.argsort(-np.log(weights) - rng.gumbel(size=(n_tokens, 2, n_experts)), axis=2)[..., :3]
    source = rng.integers(n_ranks, size=n_tokens)
    slots = choose_slots(experts, placement, rule, source, domain)
    assert slots.shape == experts.shape
    for layer in range(2):
        assert (placement.slots[layer][slots[:, layer]] == experts[:, layer]).all()
    loads = slot_counts(slots, placement)
    assert loads.sum(axis=1).tolist() == [n_tokens * 3] * 2
    by_expert = [np.bincount(placement.slots[i], loads[i], minlength=n_experts) for i in range(2)]
    assert (np.stack(by_expert) == counted(experts, n_experts)).all()


def test_nearest_stays_where_it_can():
    placement = given_placement(((0, 1), (0, 2), (3, 1), (4, 5)), 6)
    experts = np.array([[[0, 1]], [[0, 1]], [[1, 3]], [[0, 4]]])
    slots = choose_slots(experts, placement, ReplicaRule.NEAREST, np.array([0, 1, 2, 3]), 2)
    ranks = slots // 2
    assert ranks[0, 0].tolist() == [0, 0]
    assert ranks[1, 0].tolist() == [1, 0]
    assert ranks[2, 0].tolist() == [2, 2]
    assert ranks[3, 0, 1] == 3
    assert ranks[3, 0, 0] in (0, 1)


def test_dispatch_copies_by_hand():
    ranks = np.array([[[0, 0, 1, 2]], [[2, 3, 3, 0]]])
    copies = dispatch_copies(ranks, np.array([0, 1]), 4, 2)
    assert copies.own_rank.tolist() == [2]
    assert copies.in_domain.tolist() == [2]
    assert copies.cross_domain.tolist() == [2]
    assert copies.cross_assignments.tolist() == [4]


def test_water_finds_its_level():
    placement = given_placement(((0, 1), (0, 2), (0, 3)), 4)
    experts = np.array([0] * 60 + [1] * 30 + [2] * 12 + [3] * 0)[:, None, None]
    loads = slot_counts(
        choose_slots(experts, placement, ReplicaRule.LEAST_LOADED, np.zeros(len(experts), int)), placement
    )
    assert loads.reshape(3, 2).sum(axis=1).tolist() == [34, 34, 34]


def test_rules_trade_traffic_against_balance():
    spec = RoutingSpec(family="preset", preset="deepseek-v3")
    router = build_router(spec, 4, 256, 8, 8, 4, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    placement = eplb_global(router.inclusion_probability(), 32, 320)
    experts, source = router.sample_tokens(4096, rng), home_ranks(4096, 32)
    found = {}
    for rule in ReplicaRule:
        slots = choose_slots(experts, placement, rule, source, 8)
        loads = slot_counts(slots, placement).reshape(4, 32, -1).sum(axis=2)
        found[rule] = max_over_mean(loads).mean(), dispatch_copies(slots // 10, source, 32, 8).cross_domain.sum()
    assert found[ReplicaRule.LEAST_LOADED][0] < found[ReplicaRule.ROUND_ROBIN][0]
    assert found[ReplicaRule.NEAREST][1] < found[ReplicaRule.ROUND_ROBIN][1]


def test_bad_arguments():
    experts = np.zeros((4, 1, 1), int)
    with pytest.raises(InputError):
        choose_slots(experts, contiguous(4, 2), ReplicaRule.NEAREST, np.zeros(3, int))
    with pytest.raises(InputError):
        choose_slots(experts, contiguous(4, 2), ReplicaRule.NEAREST, np.full(4, 2))
    with pytest.raises(ParallelError):
        choose_slots(experts, contiguous(4, 4), ReplicaRule.NEAREST, np.zeros(4, int), 3)
