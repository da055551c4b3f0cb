"""Traffic of many ranks without a matrix over their pairs, against the count by pairs."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.lowering import drawn
from moesim.lowering.drawn import drawn_copies
from moesim.lowering.pairs import pair_copies
from moesim.lowering.traffic import ExpertLayout
from moesim.routing import Placement, build_router
from moesim.routing.eplb import eplb_global
from moesim.routing.placement import trivial
from moesim.specs.routing import RoutingSpec
from moesim.study.halves import HalvedCounts

N_RANKS, N_EXPERTS, TOP_K = 32, 64, 6


def _case(
    n_tokens: int, *, etp: int, dedup: bool, domain: int
) -> tuple[np.ndarray, np.ndarray, Placement, ExpertLayout]:
    router = build_router(RoutingSpec(family="lognormal", skew=0.7), 3, N_EXPERTS, TOP_K)
    tokens = np.full(N_RANKS, n_tokens)
    tokens[3] //= 2
    counts = router.sample_rank_counts(tokens, np.random.default_rng(2), np.int32)
    placement = eplb_global(router.inclusion_probability(), N_RANKS // etp, N_EXPERTS + 32)
    layout = ExpertLayout(N_RANKS, N_RANKS // etp, etp, domain, False, dedup)
    return counts, tokens.astype(float), placement, layout


@pytest.mark.parametrize(("etp", "domain"), [(1, 4), (2, 8), (4, 2), (1, 8), (1, 32)])
@pytest.mark.parametrize("dedup", [False, True])
def test_rank_totals_are_the_sums_over_pairs(etp: int, domain: int, dedup: bool) -> None:
    counts, tokens, placement, layout = _case(500, etp=etp, dedup=dedup, domain=domain)
    up, nic = pair_copies(counts, tokens, placement, layout)
    sums = (up.sum(axis=2), up.sum(axis=1), nic.sum(axis=2), nic.sum(axis=1))
    for found, by_pair in zip(drawn_copies(counts, tokens, placement, layout), sums, strict=True):
        np.testing.assert_allclose(found, by_pair, rtol=2e-6, atol=1e-3)


@pytest.mark.parametrize(("etp", "domain"), [(1, 4), (2, 8), (4, 2), (1, 8)])
@pytest.mark.parametrize("n_tokens", [200, 4000])
def test_wide_traffic_differs_from_that_by_pairs_by_chance_alone(
    etp: int, domain: int, n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _case(n_tokens, etp=etp, dedup=True, domain=domain)
    by_pairs = drawn_copies(*case)
    monkeypatch.setattr(drawn, "MAX_PAIRED_RANKS", 8)
    wide = drawn_copies(*case)
    assert not np.array_equal(wide[0], by_pairs[0])  # the other way was taken
    for found, expected in zip(wide, by_pairs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1 / (2 * n_tokens))


@pytest.mark.parametrize("dedup", [False, True])
def test_blocks_of_layers_change_nothing(dedup: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(100, etp=1, dedup=dedup, domain=8)
    whole = drawn_copies(*case)
    monkeypatch.setattr(drawn, "MAX_ELEMENTS", 1)
    for one, other in zip(whole, drawn_copies(*case), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_packing_goes_by_load_and_keeps_copies_apart() -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(0.0, 1.0, (4, 16))
    for n_ranks, n_slots in ((8, 24), (16, 16), (24, 24), (4, 32)):
        placed = eplb_global(load, n_ranks, n_slots)
        by_rank = placed.slots.reshape(4, n_ranks, -1)
        assert all(len(set(rank)) == len(rank) for layer in by_rank.tolist() for rank in layer)
        even = load.sum(axis=1) / n_ranks
        others = trivial(16, n_ranks, n_slots).rank_loads(load).max(axis=1)
        worst = placed.rank_loads(load).max(axis=1)
        assert (worst >= even - 1e-9).all()
        assert (worst <= others + 1e-9).all()


def test_counts_of_halves_are_summed_when_asked_for() -> None:
    a, b = np.arange(6, dtype=np.int32).reshape(1, 2, 3), np.ones((1, 2, 3), np.int32)
    both = HalvedCounts(({(3, 1): a}, {(3, 1): b}))
    assert list(both) == [(3, 1)]
    assert len(both) == 1
    assert both[3, 1].tolist() == (a + 1).tolist()
    with pytest.raises(KeyError):
        both[4, 1]
