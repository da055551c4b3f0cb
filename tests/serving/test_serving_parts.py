from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cost.measured_links import SimpleLink
from moesim.cost.op_tables import AttentionTable, Curve, MoeTable, add_curves, at_contexts
from moesim.errors import InputError
from moesim.routing import build_router
from moesim.sim.serving.cohort import Cohort
from moesim.sim.serving.cost import Chunk, PassCost, RankWork, one_chunk, pad_sizes
from moesim.sim.serving.draws import Drawn, ExpertDraws
from moesim.sim.serving.kv import BlockPool
from moesim.sim.serving.metrics import GapHistogram, TimeBins
from moesim.sim.serving.requests import Request, Sequence
from moesim.sim.serving.workload import arrival_times, draw_lengths, synthetic_requests
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.specs.serving import ArrivalSpec, LengthSpec


def grid_rows():
    """t = 1 + q / 10 + q p / 1000 + n c / 100, on two interleaved grids."""
    rows = []
    for q in (0, 16, 32, 64):
        for p in (0, 100, 400) if q else (0,):
            for n in (0, 1, 2, 4):
                for c in (50, 100, 200) if n else (0,):
                    if q or n:
                        rows.append((q, p, n, c, 1 + q / 10 + q * p / 1000 + n * c / 100))
    for p in (0, 200, 400):
        for n in (1, 2, 4):
            rows += [(48, p, n, c, 1 + 4.8 + 48 * p / 1000 + n * c / 100) for c in (100, 150, 200)]
    for p in (0, 200, 400):
        rows.append((48, p, 0, 0, 1 + 4.8 + 48 * p / 1000))
    return np.asarray(rows, dtype=float)


@given(st.floats(16, 64), st.floats(0, 400), st.floats(1, 4), st.floats(50, 200))
@settings(max_examples=60, deadline=None)
def test_attention_lookup_gives_back_what_is_linear(q, p, n, c):
    table = AttentionTable.of(grid_rows())
    row = table.mixed_row(q, p, n)
    got = float(at_contexts(table.c, row, np.asarray([c]))[0])
    assert got == pytest.approx(1 + q / 10 + q * p / 1000 + n * c / 100, rel=1e-9)


def test_attention_goes_on_beyond_the_table():
    table = AttentionTable.of(grid_rows())
    assert float(at_contexts(table.c, table.decode_row(2.0), np.asarray([400.0]))[0]) == pytest.approx(1 + 8)
    assert float(at_contexts(table.c, table.decode_row(8.0), np.asarray([100.0]))[0]) == pytest.approx(1 + 8)


def test_attention_needs_both_kinds_of_rows():
    rows = grid_rows()
    with pytest.raises(InputError, match="decode alone"):
        AttentionTable.of(rows[rows[:, 0] > 0])


def test_dense_curves_take_the_next_measured_point():
    curve = Curve.of([1, 4, 8], [1.0, 2.0, 3.0], 16)
    assert curve.seconds[[0, 1, 2, 4, 5, 8]].tolist() == [0.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert curve.seconds[16] == pytest.approx(3.0 + 8 * 0.25)
    assert curve.measured_to == 8
    assert add_curves([(curve, 2.0), (curve, 1.0)]).seconds[8] == 9.0


def test_moe_lookup_follows_activated_experts():
    table = MoeTable.of(np.asarray([(1, 8, 1.0), (16, 8, 1.5), (16, 16, 2.0), (32, 8, 2.0), (32, 16, 3.0)]))
    assert float(table(16, 12)) == pytest.approx(1.75)
    assert float(table(24, 8)) == pytest.approx(1.75)
    assert float(table(16, 0)) < float(table(16, 8))


def test_links():
    link = SimpleLink(1e9, 1e-5)
    assert link.all_reduce_s(2, 1e6) == pytest.approx(1e-5 + 1e-3)
    assert link.all_reduce_s(4, 1e6) == pytest.approx(1e-5 + 1.5e-3)
    assert link.all_reduce_s(1, 1e6) == 0.0
    assert link.all_gather_s(2, 1e6) == pytest.approx(1e-5 + 0.5e-3)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=8), st.integers(0, 45))
@settings(max_examples=100, deadline=None)
def test_cohort_totals_are_those_of_its_members(members, steps):
    cohort, sequences = Cohort(16), []
    for order, (context, left) in enumerate(members):
        cohort.advance(1)
        seq = Sequence(Request(str(order), 0.0, context, left + 1))
        seq.order, seq.target, seq.steps_left, seq.held = order, context, left, -(-context // 16)
        cohort.join(seq, context)
        sequences.append((seq, context, left, cohort.step))
    needed = cohort.new_blocks(steps)
    alive = [(c + cohort.step - s, left + s - cohort.step) for q, c, left, s in sequences if q.order in cohort.members]
    assert len(alive) == len(cohort)
    assert cohort.context_sum == sum(c + 1 for c, _ in alive)
    assert cohort.context_max == max((c + 1 for c, _ in alive), default=0)
    assert needed == sum(-(-(c + steps) // 16) + (-c // 16) for c, _ in alive)
    done = cohort.advance(steps)
    assert {q.order for q in done} == {
        q.order for q, _, left, s in sequences if left + s <= cohort.step and left + s > cohort.step - steps
    }


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_block_pool_never_loses_a_block(moves):
    pool, live = BlockPool(40), []
    for family, length, release in moves:
        hashes = tuple(family * 10 + k for k in range(length))
        n = pool.hits(hashes, 16, length * 16 + 1)
        new = length + 1 - n
        if not release and new + pool.n_idle_among(hashes[:n]) <= pool.n_free:
            pool.share(hashes[:n])
            pool.take(new)
            named = pool.publish(hashes[n:], 16)
            live.append((hashes[: n + named], new - named))
        elif live:
            shared, own = live.pop(0)
            pool.release(shared)
            pool.give(own)
        held = {h for shared, _ in live for h in shared}
        assert pool.n_free == 40 - len(held) - sum(own for _, own in live)
        assert 0 <= pool.n_free <= 40
    for shared, own in live:
        pool.release(shared)
        pool.give(own)
    assert pool.n_free == 40


def test_least_recently_used_prefix_goes_first():
    pool = BlockPool(4)
    for h in (1, 2):
        pool.take(1)
        pool.publish((h,), 16)
        pool.release((h,))
    assert pool.hits((1,), 16, 100) == 1
    pool.share((1,))
    pool.release((1,))
    pool.take(3)
    assert pool.hits((1,), 16, 100) == 1
    assert pool.hits((2,), 16, 100) == 0


def test_one_input_token_is_always_computed():
    pool = BlockPool(8)
    pool.take(2)
    pool.publish((1, 2), 16)
    assert pool.hits((1, 2), 16, 32) == 1
    assert pool.hits((1, 2), 16, 33) == 2


def test_chunks_side_by_side_have_the_pairs_of_one():
    q, p = one_chunk([Chunk(100, 0), Chunk(50, 300)])
    assert q == 150
    assert q * p + q * q / 2 == pytest.approx(100 * 50 + 50 * 325)
    q, p = one_chunk([Chunk(100, 0), Chunk(100, 0)])
    assert (p, q * q / 2) == (0.0, pytest.approx(2 * 5000))


def test_padding_stops_at_the_largest_graph():
    assert pad_sizes(0, 20).tolist() == list(range(21))
    assert pad_sizes(16, 20)[[3, 9, 16, 17]].tolist() == [4, 16, 16, 17]


def draws():
    router = build_router(RoutingSpec(family=RouterFamily.ZIPF, skew=0.6), 6, 32, 4)

    def sample(tokens, rng):
        counts = router.sample_counts(tokens, rng)
        hits = (counts > 0).sum(axis=1).astype(float)
        return Drawn(1e-5 * hits, hits, np.ones(6))

    return router, ExpertDraws(sample, 6, seed=1)


def test_drawn_experts_agree_with_the_router():
    router, drawn = draws()
    for tokens in (1, 5, 40, 300):
        want = 1e-5 * router.expected_distinct(tokens).sum()
        assert drawn.seconds(tokens, 0, 2000).mean() == pytest.approx(want, rel=0.06)


def test_a_pass_costs_the_same_alone_and_in_bulk():
    _, drawn = draws()
    together = drawn.seconds(10, 4090, 12)
    alone = [drawn.seconds(10, 4090 + i, 1)[0] for i in range(12)]
    assert together.tolist() == alone
    assert np.std(together) > 0
    _, again = draws()
    again.seconds(300, 0, 1)
    assert again.seconds(10, 4090, 12).tolist() == together.tolist()


def test_pass_cost_adds_up():
    table = AttentionTable.of(grid_rows())
    rest = np.arange(200) * 0.5
    cost = PassCost(rest, rest * 2, np.arange(65) * 0.1, table, 3, pad_sizes(8, 199))
    decode = cost.decode_s([RankWork(3, 300.0, 150.0, (), 3)], 2, 1.0, 0)
    assert decode[0] == pytest.approx(4 * 0.5 + 0.3 + 3 * (1 + 3 * 100 / 100))
    assert decode[1] == pytest.approx(4 * 0.5 + 0.3 + 3 * (1 + 3 * 101 / 100))
    mixed = cost.pass_s([RankWork(2, 200.0, 150.0, (Chunk(32, 100),), 3)], 0)
    assert mixed == pytest.approx(34 * 1.0 + 0.3 + 3 * (1 + 3.2 + 3.2 + 2))


def test_gap_histogram_quantiles():
    gaps = GapHistogram()
    values = np.random.default_rng(0).lognormal(-4, 0.5, 5000)
    for value in values:
        gaps.add(float(value), 1.0)
    for q in (0.5, 0.99):
        assert gaps.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.01)
    assert gaps.mean_s == pytest.approx(values.mean())


def test_time_bins_stay_bounded_and_lose_nothing():
    bins = TimeBins(1.0, most=8)
    for t in range(100):
        i = bins.index(float(t))
        bins.data[0, i] += 1
    assert bins.rows()["output_tokens"].sum() == 100
    assert bins.n_used <= 8
    assert bins.width_s == 16.0


@pytest.mark.parametrize(
    ("spec", "cv"),
    [
        ({"kind": "poisson"}, 1.0),
        ({"kind": "gamma", "cv": 3.0}, 3.0),
        ({"kind": "uniform"}, 0.0),
        ({"kind": "diurnal", "amplitude": 0.8, "period_s": 50.0}, None),
    ],
)
def test_arrivals_have_the_rate_and_burstiness_asked_for(spec, cv):
    arrivals = ArrivalSpec(rate_per_s=5.0, n_requests=40_000, **spec)
    times = np.concatenate(list(arrival_times(arrivals, np.random.default_rng(0))))
    assert len(times) == 40_000
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=0.06)
    if cv is not None:
        assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.1 * max(cv, 0.01))
    else:
        phase = np.histogram(times % 50.0, 2)[0]
        assert phase[0] / phase[1] == pytest.approx((1 + 0.8 * 2 / np.pi) / (1 - 0.8 * 2 / np.pi), rel=0.1)


def test_lengths():
    rng = np.random.default_rng(0)
    assert set(draw_lengths(LengthSpec(tokens=7), 5, rng)) == {7}
    drawn = draw_lengths(LengthSpec(kind="uniform", low=3, high=5), 3000, rng)
    assert set(drawn) == {3, 4, 5}
    drawn = draw_lengths(LengthSpec(kind="lognormal", median=200, sigma=0.5, high=900), 20_000, rng)
    assert np.median(drawn) == pytest.approx(200, rel=0.03)
    assert drawn.max() <= 900
    assert set(draw_lengths(LengthSpec(kind="empirical", values=(2, 9)), 100, rng)) == {2, 9}


def test_synthetic_requests_are_reproducible():
    def make():
        spec = ArrivalSpec(rate_per_s=5.0, n_requests=50)
        lengths = LengthSpec(kind="uniform", low=1, high=99)
        return list(synthetic_requests(spec, lengths, lengths, np.random.default_rng(4), 64))

    assert make() == make()
    assert make()[0].prefix_hashes == tuple(range(min(4, make()[0].input_tokens // 16)))
