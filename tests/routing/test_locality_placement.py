"""Locality: crossings by hand, never more than experts in order on the sample, structure that is there is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, ParallelError
from moesim.routing import build_router, contiguous, eplb_global, rank_imbalance_ratio, ranks_touched
from moesim.routing.locality import TokenHome, coactivation, locality_placement, path_copies
from moesim.routing.locality_swaps import evened, improved, kept_inside
from moesim.routing.trace import RecordedTrace
from moesim.specs.routing import RoutingSpec


def test_path_copies_by_hand():
    # domains: experts 0, 1 in the first, 2, 3 in the second
    experts = np.array([[[0, 1], [2, 3], [2, 0]]])
    fixed = path_copies(experts, contiguous(4, 2), 1, TokenHome.FIXED, np.array([0]))
    assert fixed.dispatch.tolist() == [0, 1, 1] == fixed.combine.tolist()
    moving = path_copies(experts, contiguous(4, 2), 1, TokenHome.MOVING, np.array([0]))
    assert moving.dispatch.tolist() == [0, 1, 1]
    assert moving.combine.tolist() == [0, 0, 1]
    assert moving.total == 3
    assert moving.per_token_layer == pytest.approx(1)


def test_coactivation_by_hand():
    experts = np.array([[[0, 1], [2, 0]], [[0, 2], [2, 1]]])
    across, inside = coactivation(experts, 3), coactivation(experts, 3, gap=0)
    assert across[0].tolist() == [[1, 1, 2], [1, 0, 1], [0, 1, 1]]
    assert inside[0].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]


@given(st.integers(0, 2**32 - 1), st.sampled_from([(8, 4, 2), (8, 8, 2), (12, 6, 2), (16, 4, 1)]),
       st.sampled_from(list(TokenHome)), st.sampled_from([0.0, 0.1, 10.0]), st.floats(0, 2))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_no_more_crossings_than_in_order_on_the_sample(seed, sizes, home, tolerance, sigma):
    n_experts, n_ranks, domain = sizes
    rng = np.random.default_rng(seed)
    noise = (
        rng.gumbel(size=(40, 3, n_experts))
        + 2 * rng.gumbel(size=(40, 1, n_experts))
        + sigma * rng.normal(size=n_experts)
    )
    experts = np.argsort(-noise, axis=2)[..., :2]
    placed = locality_placement(experts, n_experts, n_ranks, domain, home=home, load_tolerance=tolerance)
    plain = path_copies(experts, contiguous(n_experts, n_ranks), domain, home).total
    assert path_copies(experts, placed, domain, home).total <= plain
    assert placed.n_slots == n_experts
    assert (placed.replicas == 1).all()


@pytest.mark.parametrize("home", list(TokenHome))
def test_hidden_communities_are_found(home):
    rng = np.random.default_rng(0)
    names = np.stack([rng.permutation(32) for _ in range(6)])
    community = rng.integers(4, size=500)
    inside = np.argsort(rng.random((500, 6, 8)), axis=2)[..., :3] + community[:, None, None] * 8
    experts = names[np.arange(6)[None, :, None], inside]
    placed = locality_placement(experts, 32, 4, 1, home=home)
    per = path_copies(experts, placed, 1, home).per_token_layer
    assert per < (0.15 if home is TokenHome.MOVING else 1.6)
    assert path_copies(experts, contiguous(32, 4), 1, home).per_token_layer > 1.9


def test_what_it_saves_holds_on_other_tokens_and_balance_pays():
    spec = RoutingSpec(family="preset", preset="olmoe-1b-7b")
    router = build_router(spec, 16, 64, 8, 1, 1, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    seen, unseen = router.sample_tokens(4096, rng), router.sample_tokens(4096, rng)
    load = router.inclusion_probability()
    loose, tight = (locality_placement(seen, 64, 16, 4, load_tolerance=t) for t in (100.0, 0.05))
    even, plain = eplb_global(load, 16, 64), contiguous(64, 16)
    crossed = [path_copies(unseen, p, 4).total for p in (loose, tight, plain)]
    assert crossed[0] < crossed[1] < crossed[2]
    skew = [rank_imbalance_ratio(load, p).mean() for p in (even, tight, loose)]
    assert skew[0] < skew[1] < skew[2]


def test_recorded_traces_do_as_well_as_sampled_ones():
    rng = np.random.default_rng(0)
    path = (np.arange(200) % 8)[:, None, None] + np.zeros((200, 5, 1), int)
    experts = ((path + 3 * np.arange(5)[None, :, None]) % 8).astype(np.int16)
    trace = RecordedTrace(experts, np.ones(experts.shape, np.float32), 8, "toy", np.zeros(200, np.int32))
    placed = locality_placement(trace.router().sample_tokens(100, rng), 8, 4, 1)
    moved = path_copies(experts, placed, 1)
    assert moved.dispatch[1:].sum() == 0
    assert moved.combine.sum() == 0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_swaps_keep_sizes_and_do_what_they_say(seed):
    rng = np.random.default_rng(seed)
    inside = rng.integers(0, 20, (12, 12))
    inside = np.triu(inside, 1) + np.triu(inside, 1).T
    pull, load = rng.integers(0, 50, (12, 3)).astype(float), rng.lognormal(0, 1, 12)
    start = rng.permutation(np.arange(12) // 4)
    better = improved(start, pull, inside, 3)
    assert kept_inside(better, pull, inside, 3) >= kept_inside(start, pull, inside, 3) - 1e-9
    even = evened(better, pull, inside, load, 3, 0.05)
    for domain in (better, even):
        assert np.bincount(domain).tolist() == [4, 4, 4]
    assert np.bincount(even, load).max() <= np.bincount(better, load).max() + 1e-9


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_node_limits_bound_the_nodes_a_token_touches(limit):
    spec = RoutingSpec(family="lognormal", skew=1.0)
    router = build_router(spec, 3, 64, 6, 8, limit, np.random.default_rng(0))
    experts = router.sample_tokens(2000, np.random.default_rng(1))
    touched = ranks_touched(experts, contiguous(64, 16), ranks_per_node=2)
    assert touched.max() <= limit
    assert touched.max() == limit or limit > 6


def test_bad_arguments():
    experts = np.zeros((4, 2, 1), int)
    with pytest.raises(ParallelError):
        locality_placement(experts, 8, 3, 1)
    with pytest.raises(ParallelError):
        locality_placement(experts, 8, 4, 3)
    with pytest.raises(InputError):
        path_copies(experts, eplb_global(np.ones((2, 8)), 4, 12), 2)
