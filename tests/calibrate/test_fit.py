"""Fits on synthetic tables with known parameters: recovery, held-out errors, coverage, outliers, bad input."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.check import check
from moesim.calibrate.fit import FitSettings, fit_tables, target_of
from moesim.calibrate.fit_errors import HeldOut, conformal_interval, cross_coverage
from moesim.calibrate.fit_params import fit_params
from moesim.calibrate.store import load_calibration, save_calibration
from moesim.calibrate.tables import MeasurementTable, shape_of
from moesim.cost.forms import physical_time
from moesim.cost.forms_calibration import FamilyKey
from moesim.cost.forms_gemm import GEMM, GemmParams
from moesim.errors import InputError
from moesim.ops import GemmShape, Op, OpKind, Work
from moesim.specs.catalog import load_device

DEVICE = load_device("h100_sxm")
TARGET = target_of(FamilyKey("gemm"), DEVICE)
TRUE = GemmParams(
    compute_frac=0.66, tile_half=20.0, depth_half=200.0, wave_frac=0.4, split_power=0.2, memory_frac=0.82, bytes_half=2e6,
    streaming=0.3, overhead_s=5e-6, depth_s=1e-8, power=4.0,
)  # fmt: skip
SETTINGS = FitSettings(max_points=1500, n_folds=4, n_centres=60)


def gemm_frame(noise=0.03, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(n, k) for n in (512, 1024, 4096, 8192, 14336) for k in (512, 2048, 4096, 8192)]
    m = np.unique(np.round(2 ** np.linspace(0, 13, 40)))
    rows = [(mm, n, k) for n, k in sizes for mm in m]
    frame = pd.DataFrame(rows, columns=["m", "n", "k"]).astype(float)
    shape = GemmShape(*(frame[c].to_numpy() for c in ("m", "n", "k")))
    times = physical_time(GEMM.terms(shape, TRUE, TARGET), TRUE.power) * np.exp(noise * rng.standard_normal(len(frame)))
    fixed = {
        "op_kind": "gemm",
        "device": "h100_sxm",
        "stack": "toy",
        "version": "1",
        "dtype": "bf16",
        "source": "synthetic, x",
    }
    return frame.assign(measured_s=times, **fixed)


def errors_of(params, frame):
    t = physical_time(GEMM.terms(shape_of("gemm", frame), params, TARGET), params.power)
    return np.abs(t / frame["measured_s"].to_numpy() - 1)


def test_the_fit_recovers_parameters_that_made_the_data():
    frame = gemm_frame(noise=0.01)
    fitted = fit_params(GEMM, shape_of("gemm", frame), TARGET, frame["measured_s"].to_numpy())
    for name, tolerance in (("compute_frac", 0.03), ("memory_frac", 0.03), ("overhead_s", 0.05)):
        assert getattr(fitted.params, name) == pytest.approx(getattr(TRUE, name), rel=tolerance)
        assert fitted.relative_sd[name] < 0.1
    assert fitted.converged


def test_outliers_do_not_pull_the_fit():
    frame = gemm_frame(noise=0.01)
    bad = frame.copy()
    hit = np.random.default_rng(1).choice(len(bad), len(bad) // 20, replace=False)
    bad.loc[hit, "measured_s"] *= 20.0
    fitted = fit_params(GEMM, shape_of("gemm", bad), TARGET, bad["measured_s"].to_numpy())
    assert np.median(errors_of(fitted.params, frame)) < 0.02
    assert fitted.params.memory_frac == pytest.approx(TRUE.memory_frac, rel=0.05)


def test_held_out_errors_and_coverage_match_the_noise(tmp_path):
    table = MeasurementTable.of(gemm_frame(noise=0.05))
    (calibration,) = fit_tables(table, DEVICE, settings=SETTINGS, date="2026-01-01").calibrations
    held_out = calibration.families[0].held_out
    assert held_out.n_groups == 20
    assert 0.025 < held_out.median_frac < 0.06  # noise of 5% has a median of 3.4%
    assert 0.85 <= held_out.coverage_frac <= 0.95
    assert abs(held_out.bias_frac) < 0.02

    save_calibration(calibration, tmp_path / "toy.yaml")
    again = load_calibration(tmp_path / "toy.yaml")
    old, new = check(calibration, table).rows[0], check(again, table).rows[0]
    assert new.median_frac == pytest.approx(old.median_frac, rel=1e-3)
    assert 0.85 <= new.coverage_frac <= 0.97
    assert new.n_outside_domain <= 0.02 * new.n
    assert again.families[0].held_out == replace(held_out, **{
        n: float(f"{getattr(held_out, n):.5g}") for n in ("median_frac", "mean_frac", "bias_frac", "p90_frac", "coverage_frac")
    })  # fmt: skip


def test_a_calibration_costs_operators_and_says_when_it_extrapolates():
    (calibration,) = fit_tables(MeasurementTable.of(gemm_frame()), DEVICE, settings=SETTINGS).calibrations
    m, n, k = 256.0, 4096.0, 4096.0
    op = Op("x", OpKind.GEMM, Work(2 * m * n * k, (n * k + m * k) * 2, m * n * 2), GemmShape(m, n, k))
    cost = calibration.cost(op, DEVICE)
    frame = gemm_frame(noise=0.0)
    near = frame[(frame.n == 4096) & (frame.k == 4096)].sort_values("m")
    assert cost.time_s == pytest.approx(np.interp(m, near.m, near.measured_s), rel=0.1)
    assert not cost.is_extrapolated
    assert 0.0 < cost.error_frac < 0.2
    far = replace(op, shape=GemmShape(3e6, 64.0, 5e5))
    assert calibration.cost(far, DEVICE).is_extrapolated
    with pytest.raises(InputError, match="another device"):
        calibration.cost(op, load_device("b200_sxm"))


def test_too_few_points_and_wrong_devices_are_told():
    frame = gemm_frame()
    with pytest.raises(InputError, match="too few points"):
        fit_tables(MeasurementTable.of(frame.head(8)), DEVICE)
    with pytest.raises(InputError, match="another device"):
        fit_tables(MeasurementTable.of(frame), load_device("b200_sxm"))
    one_shape = frame[(frame.n == 512) & (frame.k == 512)]
    (calibration,) = fit_tables(MeasurementTable.of(one_shape), DEVICE, settings=SETTINGS).calibrations
    assert calibration.families[0].held_out is None  # one shape: nothing to leave out, and it says so


def test_conformal_intervals_cover_nine_in_ten():
    rng = np.random.default_rng(2)
    n = 6000
    which = rng.integers(0, 3, n)
    error = rng.standard_normal(n) * np.array([0.02, 0.1, 0.3])[which]
    held_out = HeldOut(error, which, rng.integers(0, 6, n), np.zeros(n), 20, "shapes")
    covered = cross_coverage(held_out)
    for k in range(3):
        assert 0.87 < covered[which == k].mean() < 0.93
    interval = conformal_interval(held_out)
    assert interval.compute[1] < interval.memory[1] < interval.latency[1]


def test_the_kernel_whose_measurements_lie_nearest_is_used():
    frame = gemm_frame(noise=0.0)
    small, large = frame[frame.n <= 1024].assign(kernel="small"), frame[frame.n >= 4096].assign(kernel="large")
    large = large.assign(measured_s=large.measured_s * 2)
    (calibration,) = fit_tables(MeasurementTable.of(pd.concat([small, large])), DEVICE, settings=SETTINGS).calibrations
    for n, kernel in ((700.0, "small"), (9000.0, "large")):
        family, _ = calibration.nearest("gemm", "bf16", GemmShape(64.0, n, 2048.0))
        assert family.key.kernel == kernel
