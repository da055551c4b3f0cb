"""Loads of experts: conservation, padding, traffic, relabelling; and that drawn and expected loads agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.lowering import Routed, expert_layout, route_model
from moesim.lowering.load import MoeLoad, drawn_load, expected_load, tile_rows, uniform_load
from moesim.lowering.numbers import normal_max
from moesim.lowering.route import tokens_per_source
from moesim.lowering.traffic import ExpertLayout
from moesim.ops import Phase
from moesim.routing import Placement, build_router, contiguous
from moesim.specs.model import MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RoutingSpec
from moesim.testing import decode, prefill, toy_moe_model, toy_program


def _layout(n: int, *, etp: int = 1, domain: int = 8, dedup: bool = False, everywhere: bool = False) -> ExpertLayout:
    return ExpertLayout(n, n // etp, etp, domain, everywhere, dedup)


def _drawn(counts: NDArray[np.int64], layout: ExpertLayout, top_k: int, placement: Placement | None = None) -> MoeLoad:
    tokens = counts[0].sum(axis=1) / top_k
    return drawn_load(counts, tokens, placement or contiguous(counts.shape[2], layout.ep_size), layout, top_k)


# ---------------------------------------------------------------- by hand


def test_a_small_load_by_hand() -> None:
    # 1 layer, 2 source ranks, 4 experts, 2 on each rank; source 0 sends 3, 0, 20, 1 and source 1 sends 1, 0, 17, 2
    counts = np.array([[[3, 0, 20, 1], [1, 0, 17, 2]]])
    load = _drawn(counts, _layout(2), 1)
    np.testing.assert_array_equal(load.n_assignments, [[4, 40]])
    np.testing.assert_array_equal(load.n_experts_hit, [[1, 2]])
    np.testing.assert_array_equal(load.max_expert_tokens, [[4, 37]])
    # mean of 4 per hit expert: tiles of 16 rows, one; mean of 20: tiles of 32, so 37 takes two and 3 takes one
    np.testing.assert_array_equal(load.n_padded, [[16, 96]])
    np.testing.assert_array_equal(load.up_out_copies, [[21, 1]])
    np.testing.assert_array_equal(load.up_in_copies, [[1, 21]])
    assert np.all(load.nic_out_copies == 0)


@pytest.mark.parametrize(
    ("mean", "rows"), [(0.1, 16), (1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (65, 128), (128, 128), (5000, 128)]
)
def test_tiles_are_powers_of_two_from_16_to_128(mean: float, rows: float) -> None:
    assert tile_rows(float(mean)) == rows
    assert tile_rows(np.array([float(mean)]))[0] == rows  # type: ignore[index]


def test_expert_flops_follow_padded_tokens_and_bytes_the_experts_hit() -> None:
    # rank 0 has 4 tokens for one expert, rank 1 has 40 for two, as above: 16 and 96 rows
    counts = np.array([[[3, 0, 20, 1], [1, 0, 17, 2]]] * 2)
    model = toy_moe_model(n_experts=4, top_k=1)
    program = toy_program(model, ParallelSpec(dp_size=2, ep_size=2), decode(44, 10), counts=counts)
    experts = next(op for _, op in program.ops() if op.name == "experts")
    product = 3 * 64 * 128  # weights of an expert, bf16
    np.testing.assert_allclose(experts.work.flops, [[2 * product * 16, 2 * product * 96]] * 2)
    rows = np.array([[4, 40]] * 2)
    np.testing.assert_allclose(experts.work.read_bytes, np.array([[1, 2]] * 2) * product * 2 + rows * (64 + 128) * 2)
    np.testing.assert_allclose(experts.work.write_bytes, rows * (64 + 2 * 128) * 2)


def test_no_tokens_no_load() -> None:
    for dedup in (False, True):
        counts = np.zeros((1, 4, 8), dtype=np.int64)
        load = drawn_load(counts, np.zeros(4), contiguous(8, 4), _layout(4, domain=2, dedup=dedup), 2)
        for name in ("n_assignments", "n_padded", "n_experts_hit", "up_out_copies", "nic_in_copies"):
            assert np.all(getattr(load, name) == 0), name


def test_slices_of_experts_see_the_same_tokens() -> None:
    counts = np.array([[[16, 32], [16, 0], [16, 0], [16, 0]]])
    load = _drawn(counts, _layout(4, etp=2), 1)
    np.testing.assert_array_equal(load.n_assignments, [[64, 64, 32, 32]])


def test_replicas_share_an_experts_tokens() -> None:
    placement = Placement(np.array([[0, 1, 0, 2]]), 2, 3)
    counts = np.array([[[64, 16, 32], [64, 16, 32]]])
    load = _drawn(counts, _layout(2), 1, placement)
    np.testing.assert_array_equal(load.n_assignments, [[64 + 32, 64 + 64]])
    assert float(load.n_slots) == 4
    assert float(load.n_experts) == 3


def test_low_latency_traffic_across_domains_by_hand() -> None:
    # 4 ranks in 2 domains, one expert each; every rank sends 1, 2, 3, 4 to experts 0..3
    counts = np.tile(np.array([1, 2, 3, 4]), (1, 4, 1))
    load = _drawn(counts, _layout(4, domain=2), 1)
    np.testing.assert_array_equal(load.up_out_copies, [[2, 1, 4, 3]])
    np.testing.assert_array_equal(load.up_in_copies, [[1, 2, 3, 4]])
    np.testing.assert_array_equal(load.nic_out_copies, [[7, 7, 3, 3]])
    np.testing.assert_array_equal(load.nic_in_copies, [[2, 4, 6, 8]])


def test_nothing_travels_where_tokens_are_everywhere() -> None:
    counts = np.array([[[4, 4, 4, 4]]])
    load = drawn_load(counts, np.array([8.0]), contiguous(4, 2), _layout(2, everywhere=True), 2)
    for copies in (load.up_out_copies, load.up_in_copies, load.nic_out_copies, load.nic_in_copies):
        assert np.all(copies == 0)
    np.testing.assert_array_equal(load.n_assignments, [[8, 8]])


# ---------------------------------------------------------------- conservation and symmetry

SIZES = st.tuples(
    st.sampled_from([1, 2, 4, 8]),  # ranks
    st.sampled_from([1, 2]),  # slices of an expert
    st.sampled_from([1, 2, 4]),  # domain
    st.sampled_from([1, 2, 3]),  # K
    st.booleans(),  # deduplicated
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_tokens_and_traffic_are_conserved(sizes: tuple[int, int, int, int, bool, int]) -> None:
    n_ranks, etp, domain, top_k, dedup, seed = sizes
    etp = min(etp, n_ranks)
    rng = np.random.default_rng(seed)
    router = build_router(RoutingSpec(family="zipf", skew=1.0), 2, 16, top_k)
    tokens = rng.integers(0, 40, n_ranks)
    counts = router.sample_rank_counts(tokens, rng)
    layout = _layout(n_ranks, etp=etp, domain=domain, dedup=dedup)
    load = drawn_load(counts, tokens.astype(float), contiguous(16, layout.ep_size), layout, top_k)
    total = int(tokens.sum()) * top_k
    np.testing.assert_allclose(np.sum(load.n_assignments, axis=1), total * etp)
    assert np.all(np.asarray(load.n_padded) >= np.asarray(load.n_assignments) - 1e-9)
    assert np.all(np.asarray(load.n_experts_hit) <= 16 / layout.ep_size)
    for out, into in ((load.up_out_copies, load.up_in_copies), (load.nic_out_copies, load.nic_in_copies)):
        np.testing.assert_allclose(np.sum(out, axis=1), np.sum(into, axis=1), rtol=1e-4, atol=1e-3)
        assert np.all(np.asarray(out) >= 0)
    if not dedup:
        # every assignment travels once per slice, unless it stays on its rank
        travelled = np.sum(load.up_out_copies, axis=1) + np.sum(load.nic_out_copies, axis=1)
        slots = np.repeat(np.arange(layout.ep_size), 16 // layout.ep_size)
        home = sum(
            counts[:, rank, slots == rank // etp].sum(axis=1) for rank in range(n_ranks)
        )  # fmt: skip
        np.testing.assert_allclose(travelled, total * etp - home, rtol=1e-5, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)), st.booleans(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_changes_nothing(order: list[int], dedup: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    router = build_router(RoutingSpec(family="lognormal", skew=1.0), 2, 12, 2)
    counts = router.sample_rank_counts([20] * 4, rng)
    layout = _layout(4, domain=2, dedup=dedup)
    plain = _drawn(counts, layout, 2)
    # expert e is now called order[e], and stays where it was
    renamed = np.empty_like(counts)
    renamed[:, :, order] = counts
    moved = _drawn(renamed, layout, 2, Placement(np.asarray(order)[None, :].copy(), 4, 12))
    for name in (
        "n_assignments",
        "n_padded",
        "n_experts_hit",
        "up_out_copies",
        "up_in_copies",
        "nic_out_copies",
        "nic_in_copies",
    ):
        np.testing.assert_allclose(getattr(moved, name), getattr(plain, name), rtol=1e-5, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 2**32 - 1))
def test_expected_load_does_not_depend_on_names_either(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(16)) * 2
    p = np.minimum(p, 0.95)[None, :]
    layout = _layout(4)
    inside = np.concatenate([r * 4 + np.asarray(order) for r in range(4)])  # names change within ranks
    a = expected_load(p, 100.0, contiguous(16, 4), layout, 25.0)
    b = expected_load(p[:, inside], 100.0, contiguous(16, 4), layout, 25.0)
    for name in ("n_assignments", "n_experts_hit", "n_padded", "up_out_copies", "nic_in_copies"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, err_msg=name)


# ---------------------------------------------------------------- against tokens followed one by one


def test_deduplicated_copies_against_tokens_followed_one_by_one() -> None:
    n_ranks, domain, n_experts, top_k, per_source = 8, 4, 16, 4, 400
    router = build_router(RoutingSpec(), 3, n_experts, top_k)
    rng = np.random.default_rng(1)
    chosen = router.sample_tokens(n_ranks * per_source, rng).astype(int)  # [T, L, K]
    source = np.repeat(np.arange(n_ranks), per_source)
    counts = np.zeros((3, n_ranks, n_experts), dtype=np.int64)
    up = np.zeros((3, n_ranks))
    up_in, nic, nic_in = np.zeros_like(up), np.zeros_like(up), np.zeros_like(up)
    for token, layers in enumerate(chosen):
        s = source[token]
        for layer, experts in enumerate(layers):
            counts[layer, s, experts] += 1
            ranks = set((experts // 2).tolist())
            for there in {r // domain for r in ranks}:
                gate = there * domain + s % domain  # the peer of the source's own index in that domain
                if there != s // domain:
                    nic[layer, s] += 1
                    nic_in[layer, gate] += 1
                else:
                    gate = s
                for r in ranks:
                    if r // domain == there and r != gate:
                        up[layer, gate] += 1
                        up_in[layer, r] += 1
    load = _drawn(counts, _layout(n_ranks, domain=domain, dedup=True), top_k)
    # the closed form of distinct tokens is a mean: 1,200 tokens scatter by about 1%
    np.testing.assert_allclose(np.mean(load.up_out_copies, axis=1), up.mean(axis=1), rtol=0.015)
    np.testing.assert_allclose(np.mean(load.nic_out_copies, axis=1), nic.mean(axis=1), rtol=0.01)
    np.testing.assert_allclose(load.up_in_copies, up_in, rtol=0.06)
    np.testing.assert_allclose(load.nic_in_copies, nic_in, rtol=0.06)
    np.testing.assert_allclose(load.nic_out_copies, nic, rtol=0.06)


@pytest.mark.parametrize(("n_experts", "top_k", "n_there"), [(8, 2, 4), (8, 2, 1), (64, 8, 32), (16, 4, 2), (8, 2, 8)])
def test_distinct_copies_of_uniform_choices_are_exact(n_experts: int, top_k: int, n_there: int) -> None:
    from math import comb

    n_ranks = n_experts // n_there
    if n_ranks == 1:
        return
    layout = _layout(n_ranks, domain=n_ranks, dedup=True)
    load = uniform_load(1000.0 * n_ranks, float(n_experts), float(top_k), layout, 1000.0, balanced=True)
    missed = comb(n_experts - n_there, top_k) / comb(n_experts, top_k)
    assert load.up_out_copies == pytest.approx(1000 * (1 - missed) * (n_ranks - 1), rel=1e-9)
    grid = uniform_load(
        np.array([1000.0 * n_ranks]), np.array([float(n_experts)]), np.array([float(top_k)]), layout, np.array([1000.0]),
        balanced=True,
    )  # fmt: skip
    assert grid.up_out_copies[0] == pytest.approx(load.up_out_copies, rel=2e-3)  # type: ignore[index]


# ---------------------------------------------------------------- drawn against expected


@pytest.mark.parametrize(
    ("n_experts", "top_k", "n_ranks", "domain", "per_source", "dedup"),
    [
        (256, 8, 64, 8, 128, False),
        (256, 8, 64, 8, 4, False),
        (256, 8, 32, 8, 512, True),
        (256, 8, 8, 8, 1, False),
        (8, 2, 4, 2, 64, True),
        (128, 4, 16, 8, 32, False),
    ],
)
def test_drawn_and_expected_uniform_loads_agree(
    n_experts: int, top_k: int, n_ranks: int, domain: int, per_source: int, dedup: bool
) -> None:
    router = build_router(RoutingSpec(), 8, n_experts, top_k)
    layout = _layout(n_ranks, domain=domain, dedup=dedup)
    seeds = [
        _drawn(router.sample_rank_counts([per_source] * n_ranks, np.random.default_rng(s)), layout, top_k)
        for s in range(6)
    ]

    def fullest(name: str) -> float:
        return float(np.mean([np.max(getattr(load, name), axis=1) for load in seeds]))

    def mean(name: str) -> float:
        return float(np.mean([getattr(load, name) for load in seeds]))

    t, s = float(n_ranks * per_source), float(per_source)
    expected = uniform_load(t, float(n_experts), float(top_k), layout, s, balanced=False)
    assert expected.n_assignments == pytest.approx(fullest("n_assignments"), rel=0.03)
    assert expected.n_experts_hit == pytest.approx(fullest("n_experts_hit"), rel=0.03)
    assert expected.up_out_copies == pytest.approx(mean("up_out_copies"), rel=0.02)
    assert expected.nic_out_copies == pytest.approx(mean("nic_out_copies"), rel=0.02)
    # traffic into the fullest rank: the closed form takes its share from the experts' load alone
    assert expected.nic_in_copies == pytest.approx(fullest("nic_in_copies"), rel=0.06)
    # the general closed form sees the same where popularity is even
    general = expected_load(router.inclusion_probability(), t, contiguous(n_experts, n_ranks), layout, s)
    for name in ("n_assignments", "n_experts_hit", "up_out_copies", "nic_in_copies"):
        np.testing.assert_allclose(getattr(general, name), getattr(expected, name), rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("family", ["zipf", "lognormal"])
def test_drawn_and_expected_skewed_loads_agree(family: str) -> None:
    router = build_router(RoutingSpec(family=family, skew=0.6), 8, 64, 4)
    layout = _layout(8)
    drawn = [
        np.max(_drawn(router.sample_rank_counts([64] * 8, np.random.default_rng(s)), layout, 4).n_assignments, axis=1)
        for s in range(6)
    ]
    expected = expected_load(router.inclusion_probability(), 512.0, contiguous(64, 8), layout, 64.0)
    np.testing.assert_allclose(np.asarray(expected.n_assignments)[:, 0].mean(), np.mean(drawn), rtol=0.03)


def test_the_fullest_rank_counts_its_own_experts() -> None:
    # one token per rank: ranks hit 7.2 of their 32 experts on average, the fullest one more
    layout = _layout(8)
    load = uniform_load(8.0, 256.0, 8.0, layout, 1.0, balanced=False)
    mean = 32 * (1 - (1 - 8 / 256) ** 8)
    assert mean == pytest.approx(7.18, abs=0.01)
    assert load.n_experts_hit > 1.3 * mean  # type: ignore[operator]
    assert load.n_experts_hit <= load.n_assignments  # type: ignore[operator]


def test_a_lone_rank_has_no_excess() -> None:
    assert normal_max(1) == 0.0
    # Owen, Handbook of Statistical Tables (1962): expected maxima of normals
    for n, value in ((2, math.pi**-0.5), (3, 1.5 * math.pi**-0.5), (8, 1.4236), (64, 2.3437)):
        assert normal_max(n) == pytest.approx(value, rel=0.02)


# ---------------------------------------------------------------- capacity


def _routed(
    factor: float | None, family: str = "zipf", skew: float | None = 0.8
) -> tuple[Routed, MoeFfn, ExpertLayout]:
    model, split = toy_moe_model(n_experts=32, top_k=2), ParallelSpec(dp_size=4, ep_size=4)
    spec = RoutingSpec(family=family, skew=skew, capacity_factor=factor)
    ffn = model.moe_ffn
    assert ffn is not None
    return route_model(model, spec, split), ffn, expert_layout(split, Phase.DECODE, 4)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 4.0])
def test_full_experts_drop_and_nothing_else_is_lost(factor: float) -> None:
    routed, ffn, layout = _routed(factor)
    step = decode(512, 10)
    counts = routed.draw(step, layout, np.random.default_rng(0))
    load = routed.drawn(ffn, (0, 1), step, layout, counts)
    capacity = math.ceil(factor * 512 * 2 / 32)
    per_expert = counts[32, 2].sum(axis=1)
    np.testing.assert_array_equal(load.counts, np.minimum(per_expert, capacity))
    np.testing.assert_array_equal(np.sum(load.n_assignments, axis=1), np.minimum(per_expert, capacity).sum(axis=1))
    assert np.max(load.max_expert_tokens) <= capacity
    # what is dropped does not travel either
    np.testing.assert_allclose(np.sum(load.up_out_copies, axis=1), np.sum(load.up_in_copies, axis=1))
    assert np.all(np.sum(load.up_out_copies, axis=1) <= np.sum(load.n_assignments, axis=1))


@pytest.mark.parametrize("family", ["zipf", "uniform"])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.5])
def test_expected_drops_are_those_drawn(factor: float, family: str) -> None:
    routed, ffn, layout = _routed(factor, family, 0.8 if family == "zipf" else None)
    step = decode(2048, 10)
    loads = [
        routed.drawn(ffn, (0, 1), step, layout, routed.draw(step, layout, np.random.default_rng(s))) for s in range(5)
    ]
    expected = routed.expected(ffn, (0, 1), step, layout)
    drawn = np.mean([np.max(load.n_assignments, axis=1) for load in loads])
    assert np.mean(expected.n_assignments) == pytest.approx(drawn, rel=0.03)


def test_no_capacity_drops_nothing() -> None:
    routed, ffn, layout = _routed(None)
    step = decode(512, 10)
    load = routed.drawn(ffn, (0, 1), step, layout, routed.draw(step, layout, np.random.default_rng(0)))
    np.testing.assert_array_equal(np.sum(load.n_assignments, axis=1), 1024)


# ---------------------------------------------------------------- where tokens start


@pytest.mark.parametrize(
    ("n", "dp", "batch", "tokens"),
    [(4, 4, 4, [1, 1, 1, 1]), (4, 4, 6, [2, 2, 1, 1]), (4, 4, 1, [1, 0, 0, 0]), (4, 2, 3, [1, 1, 1, 0])],
)
def test_decode_tokens_start_with_their_sequences(n: int, dp: int, batch: int, tokens: list[int]) -> None:
    layout = ExpertLayout(n, n, 1, 8, False, False, dp)
    assert tokens_per_source(decode(batch, 10), layout).tolist() == tokens


def test_a_prompt_starts_on_one_attention_group() -> None:
    layout = ExpertLayout(4, 4, 1, 8, False, True, 2)
    assert tokens_per_source(prefill(1, 1000), layout).tolist() == [500, 500, 0, 0]
    even = ExpertLayout(4, 4, 1, 8, False, True)
    assert tokens_per_source(prefill(1, 1000), even).tolist() == [250] * 4


def test_the_fullest_source_sends_more_than_the_mean() -> None:
    layout = ExpertLayout(4, 4, 1, 8, False, False, 4)
    alone = uniform_load(1.0, 8.0, 2.0, layout, 1.0, balanced=True)  # one sequence, on one rank
    assert alone.up_out_copies == pytest.approx(2 * 3 / 4)
