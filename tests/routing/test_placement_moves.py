"""Moving experts: counted by hand, and never more than renaming ranks needs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, ParallelError
from moesim.routing import Placement, contiguous, eplb_global, rank_imbalance_ratio
from moesim.routing import given as given_placement
from moesim.routing.placement import trivial
from moesim.routing.placement_moves import align_ranks, moves_between, redundant_bytes_per_rank


def test_moves_by_hand():
    old = given_placement(((0, 1), (2, 3), (4, 5), (6, 7)), 8)
    new = given_placement(((1, 2), (0, 3), (4, 6), (5, 7)), 8)
    moves = moves_between(old, new, 2)
    assert moves.n_moved_slots == 4
    assert moves.up_in.tolist() == [[1, 1, 1, 1]]
    assert moves.up_out.tolist() == [[1, 1, 1, 1]]
    assert moves.nic_in.sum() == 0
    far = moves_between(old, given_placement(((6, 1), (2, 3), (4, 5), (0, 7)), 8), 2)
    assert far.nic_in.tolist() == [[1, 0, 0, 1]] == far.nic_out.tolist()
    cost = far.cost(10.0, 100.0, 5.0)
    assert (cost.moved_bytes, cost.nic_bytes, cost.up_bytes, cost.fullest_rank_bytes) == (20.0, 20.0, 0.0, 10.0)
    assert cost.time_s == pytest.approx(10.0 / 5.0)
    with pytest.raises(InputError):
        far.cost(10.0, 100.0, None)


def test_copies_come_from_the_near_holder_and_holders_share_the_sending():
    old = given_placement(((0, 1), (2, 0), (3, 0), (4, 5)), 6)
    new = given_placement(((0, 1), (2, 0), (3, 0), (4, 5)), 6)
    assert moves_between(old, new, 2).n_moved_slots == 0
    more = given_placement(((0, 1), (2, 5), (3, 4), (0, 4)), 6)
    moves = moves_between(old, more, 2)
    # rank 1 wants 5 from the other domain, rank 2 wants 4 from its neighbour, rank 3 wants 0 from its neighbour (not from 0, 1)
    assert moves.nic_in.tolist() == [[0, 1, 0, 0]]
    assert moves.up_in.tolist() == [[0, 0, 1, 1]]
    assert moves.up_out.tolist() == [[0, 0, 1, 1]]
    halves = moves_between(given_placement(((0, 1), (0, 2), (1, 2)), 3), given_placement(((0, 1), (0, 2), (0, 2)), 3))
    assert halves.up_out.tolist() == [[0.5, 0.5, 0]]


def test_order_within_a_rank_and_names_of_ranks_move_nothing():
    old = given_placement(((0, 1), (2, 3)), 4)
    assert moves_between(old, given_placement(((1, 0), (3, 2)), 4)).n_moved_slots == 0
    swapped = given_placement(((2, 3), (0, 1)), 4)
    assert moves_between(old, swapped).n_moved_slots == 4
    assert moves_between(old, align_ranks(swapped, old)).n_moved_slots == 0


def test_layers_count_each():
    old = Placement(np.tile(np.arange(4), (3, 1)), 2, 4)
    new = Placement(np.array([[0, 1, 2, 3], [0, 2, 1, 3], [2, 3, 0, 1]]), 2, 4)
    assert moves_between(old, new).up_in.sum(axis=1).tolist() == [0, 2, 4]
    assert moves_between(contiguous(4, 2), new).n_moved_slots == 6


@given(
    st.sampled_from([(8, 4, 8, 2), (8, 4, 12, 2), (16, 16, 16, 4), (12, 16, 16, 4), (12, 6, 18, 3)]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_renaming_ranks_keeps_balance_and_moves_no_more(sizes, seed):
    n_experts, n_ranks, n_slots, domain = sizes
    rng = np.random.default_rng(seed)
    load, later = rng.lognormal(0, 1, (2, 3, n_experts))
    old, new = (eplb_global(x, n_ranks, n_slots) for x in (load, later))
    plain = moves_between(old, new).n_moved_slots
    for d in (None, domain):
        named = align_ranks(new, old, d)
        assert rank_imbalance_ratio(later, named) == pytest.approx(rank_imbalance_ratio(later, new))
        assert (np.sort(named.slots, axis=1) == np.sort(new.slots, axis=1)).all()
    assert moves_between(old, align_ranks(new, old)).n_moved_slots <= plain
    moves = moves_between(old, new, domain)
    assert moves.up_out.sum() + moves.nic_out.sum() == pytest.approx(moves.n_moved_slots)
    assert moves.up_in.sum() == pytest.approx(moves.up_out.sum())


def test_redundant_memory_by_hand():
    assert redundant_bytes_per_rank(trivial(8, 4, 12), 3, 10.0) == pytest.approx(3 * 1 * 10.0)
    assert redundant_bytes_per_rank(contiguous(8, 4), 3, 10.0) == 0


def test_bad_moves():
    with pytest.raises(ParallelError):
        moves_between(contiguous(8, 4), contiguous(8, 2))
    with pytest.raises(ParallelError):
        moves_between(contiguous(8, 4), contiguous(8, 4), 3)
    with pytest.raises(ParallelError):
        trivial(8, 4, 10)
