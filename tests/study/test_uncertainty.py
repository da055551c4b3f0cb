"""Intervals: what adds, what compensates, numbers and arrays alike."""

import math

import numpy as np
import pytest

from moesim.study.stack_files import Bands
from moesim.study.uncertainty import Basis, Exposure, Kinship, Spread, quotient, spread_of, verdict

BANDS = Bands(tpot_moe=(-0.3, 0.2), tpot_dense=(-0.1, 0.1), ttft_warm=(-0.4, 0.6))


def test_runs_contain_the_kernels_and_the_rest_adds_in_quadrature():
    plain = spread_of(Basis.RUNS, Exposure(kernels=9.0), BANDS, is_moe=True)
    assert (plain.low, plain.high) == (0.3, 0.2)
    seeds = spread_of(Basis.RUNS, Exposure(seeds=0.4), BANDS, is_moe=True)
    assert seeds.low == pytest.approx(0.5)
    assert spread_of(Basis.RUNS, Exposure(outside_frac=1.0), BANDS, is_moe=True).low > 0.5
    assert spread_of(Basis.LENT, Exposure(), BANDS, is_moe=True).low > plain.low
    assert spread_of(Basis.KERNELS, Exposure(kernels=0.05), BANDS, is_moe=True).high == pytest.approx(0.05)


def test_nothing_measured_is_no_interval():
    for basis, exposure in ((Basis.ASSUMPTION, Exposure()), (Basis.KERNELS, Exposure(assumed_frac=0.6))):
        spread = spread_of(basis, exposure, BANDS, is_moe=False)
        assert math.isnan(spread.low)
        assert spread.interval(3.0) is None
        assert "assumption only" in verdict("a", "b", 2.0, spread)


def test_arrays_are_as_numbers():
    frac, seeds = np.asarray([0.0, 0.5, 1.0]), np.asarray([0.0, 0.1, 0.2])
    links = np.asarray([0.0, 0.05, 0.3])
    arrays = spread_of(Basis.LENT, Exposure(0.1, links, frac, frac, seeds), BANDS, is_moe=True, is_ttft=True)
    for i in range(3):
        e = Exposure(0.1, float(links[i]), float(frac[i]), float(frac[i]), float(seeds[i]))
        one = spread_of(Basis.LENT, e, BANDS, is_moe=True, is_ttft=True)
        assert np.allclose([arrays.low[i], arrays.high[i]], [one.low, one.high], equal_nan=True)
    both = quotient(arrays, arrays, Kinship.MODEL)
    assert both.low[0] < np.hypot(arrays.low[0], arrays.high[0])


def test_a_ratio_is_narrower_the_more_its_sides_share():
    side = Spread(0.2, 0.2)
    widths = [quotient(side, side, k).low for k in (Kinship.STRANGERS, Kinship.MODEL, Kinship.SPLIT)]
    assert widths == sorted(widths, reverse=True)
    # two models: quadrature, and what seven pairs of left-out groups ask for on top of it
    assert widths[0] == pytest.approx(1.27 * 0.2 * math.sqrt(2))


def test_verdicts_say_who_or_that_nobody_knows():
    assert verdict("MoE", "dense", 1.7, Spread(0.2, 0.2)).startswith("MoE is cheaper than dense, 1.70x [1.39")
    assert verdict("MoE", "dense", 1 / 1.7, Spread(0.2, 0.2)).startswith("dense is cheaper than MoE, 1.70x [1.39")
    assert verdict("MoE", "dense", 1.1, Spread(0.2, 0.2)).startswith("too close to call")
    # ends need not be equal: the advantage of the other is bounded by the upper end
    assert "too close" in verdict("MoE", "dense", 0.8, Spread(0.1, 0.4))
    assert "too close" not in verdict("MoE", "dense", 0.8, Spread(0.4, 0.1))
