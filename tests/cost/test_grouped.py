"""Experts behind an exchange: efficiencies of devices that a table times, by hand and against rows of it."""

from __future__ import annotations

import numpy as np

from moesim.calibrate.store import find_calibration
from moesim.cost import CostModel
from moesim.cost.efficiency import DEFAULT_EFFICIENCY
from moesim.cost.estimate import APART_ERROR_FRAC, roofline
from moesim.cost.grouped import GROUPED, grouped_times
from moesim.ops import MoeShape, Op, OpKind, Work
from moesim.specs.base import Origin
from moesim.specs.catalog import load_device, load_hardware
from moesim.specs.dtypes import Dtype

D, F = 7168.0, 2048.0


def _experts(pairs: float, hit: float, *, padded: float | None = None, side: float = 0.0, n_side: int = 1) -> Op:
    padded = pairs if padded is None else padded
    work = Work(padded * 6 * D * F, hit * 3 * D * F + pairs * (D + F), pairs * (D * 2 + F * 4))
    shape = MoeShape(pairs, pairs, padded, hit, pairs / hit, hit, D, F, 8.0)
    return Op("experts", OpKind.GROUPED_GEMM, work, shape, Dtype.FP8_BLOCK, "experts", side_bytes=side,
              n_side_kernels=n_side, is_grouped=True)  # fmt: skip


#: aiconfigurator-core 0.12.0, wideep_generation_moe, SGLang 0.5.10, uniform loads: device, experts hit, pairs, us.
ROWS = (
    ("h100_sxm", 8.0, 64.0, 151.0), ("h100_sxm", 2.0, 512.0, 55.0), ("h100_sxm", 1.0, 1024.0, 92.0),
    ("h100_sxm", 64.0, 512.0, 1050.0), ("h100_sxm", 32.0, 1024.0, 531.0), ("b200_sxm", 8.0, 64.0, 86.0),
    ("b200_sxm", 4.0, 256.0, 54.0), ("b200_sxm", 1.0, 1024.0, 64.0), ("b200_sxm", 64.0, 512.0, 519.0),
)  # fmt: skip


def test_decode_rows_of_the_table() -> None:
    off, default = [], []
    for device, hit, pairs, measured_us in ROWS:
        rows = 16.0 * max(1.0, pairs / hit / 16.0)
        op = _experts(pairs, hit, padded=rows * hit, side=pairs * F * (4 + 1 + 4 / 128))
        spec = load_device(device)
        found = roofline(op, spec, GROUPED[device].within(DEFAULT_EFFICIENCY)).time_s
        off.append(abs(float(found) * 1e6 / measured_us - 1))
        default.append(abs(float(roofline(op, spec).time_s) * 1e6 / measured_us - 1))
    assert max(off) < 0.25
    assert np.median(off) < 0.08
    assert np.median(default) > 0.12


def test_calibrated_models_take_them_where_experts_stand_apart() -> None:
    op = _experts(4096.0, 4.0)
    model = CostModel.of(load_hardware("h100_x12_nodes", 16), find_calibration("h100_sxm/sglang"))
    cost = model.cost(op)
    assert cost.origin is Origin.FITTED
    assert cost.error_frac == GROUPED["h100_sxm"].error_frac
    assert cost.time_s == roofline(op, model.hardware.device, GROUPED["h100_sxm"].within(DEFAULT_EFFICIENCY)).time_s
    # without a calibration everything is by default efficiencies, these too
    assert (
        CostModel.of(load_hardware("h100_x12_nodes", 16)).cost(op).time_s == roofline(op, model.hardware.device).time_s
    )


def test_the_same_chip_lends_and_others_go_by_default() -> None:
    assert grouped_times(load_device("h800_sxm")) == (GROUPED["h100_sxm"], True)
    assert grouped_times(load_device("h20_sxm")) is None
    model = CostModel.of(load_hardware("mi300x_8", 8))
    assert model.apart(_experts(4096.0, 4.0)).error_frac == APART_ERROR_FRAC
