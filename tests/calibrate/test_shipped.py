"""The calibrations in the repository: they load, say where they are from, and their held-out errors keep the promised size."""

import numpy as np
import pytest

from moesim.calibrate.store import calibration_names, find_calibration
from moesim.errors import CatalogError
from moesim.ops import MoeShape, Op, OpKind, Work
from moesim.specs.catalog import data_dir, load_device
from moesim.specs.dtypes import Dtype

FITTED = [n for n in calibration_names() if n.split("/")[1] in ("vllm", "sglang", "trtllm", "nccl")]


def test_the_promised_devices_and_stacks_are_there():
    for device in (
        "h100_sxm",
        "h200_sxm",
        "b200_sxm",
        "b300_sxm",
        "gb200",
        "gb300",
        "a100_sxm",
        "l40s",
        "rtx_pro_6000",
    ):
        for stack in ("vllm", "sglang", "trtllm"):
            assert f"{device}/{stack}" in FITTED


@pytest.mark.parametrize("name", FITTED)
def test_a_shipped_calibration_is_small_sourced_and_checked(name):
    calibration = find_calibration(name)
    assert calibration.device == name.split("/")[0]
    assert calibration.source
    assert calibration.date
    folder = data_dir() / "hardware" / "calibrations"
    for suffix in (".yaml", ".npz"):
        assert (folder / f"{name}{suffix}").stat().st_size < 300_000
    device = load_device(calibration.device)
    for family in calibration.families:
        assert family.target.memory_bytes_per_s == device.memory_bytes_per_s
        assert family.target.n_compute_units == device.n_compute_units
        assert family.correction is not None or family.n_points < 60
        assert family.held_out is not None
        assert 0.0 < family.held_out.median_frac < 0.35


@pytest.mark.parametrize("device", ["h100_sxm", "h200_sxm", "b200_sxm"])
@pytest.mark.parametrize("stack", ["vllm", "sglang", "trtllm"])
def test_moe_layers_of_well_covered_families_were_predicted_within_the_target(device, stack):
    families = [f for f in find_calibration(f"{device}/{stack}").families if f.key.kind == "moe" and f.n_groups >= 8]
    held_out = [f.held_out for f in families]
    n = np.array([h.n for h in held_out])
    assert len(families) >= 2
    assert np.average([h.median_frac for h in held_out], weights=n) <= 0.08
    assert abs(np.average([h.bias_frac for h in held_out], weights=n)) <= 0.05
    assert 0.85 <= np.average([h.coverage_frac for h in held_out], weights=n) <= 0.95


def test_more_tokens_never_make_an_unseen_moe_layer_much_faster():
    calibration, device = find_calibration("h100_sxm/vllm"), load_device("h100_sxm")
    tokens = np.array([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0])
    hit = np.minimum(160.0, 160.0 * (1 - (1 - 6 / 160) ** tokens)).clip(6.0)
    pairs = tokens * 6
    shape = MoeShape(
        tokens, pairs, pairs, hit, np.maximum(1.0, 2 * pairs / 160), 160.0, 5120.0, 1536.0, 6.0
    )  # DeepSeek-V2
    weights = hit * 3 * 5120 * 1536 * 2
    op = Op(
        "experts", OpKind.GROUPED_GEMM, Work(pairs * 6 * 5120 * 1536, weights + pairs * 5120 * 2), shape, Dtype.BF16
    )
    cost = calibration.cost(op, device)
    assert np.all(np.diff(cost.time_s) > -0.05 * cost.time_s[:-1])
    roof = np.maximum(op.work.flops / 989.4e12, weights / 3.35e12)
    assert np.all(cost.time_s > 0.9 * roof)
    assert np.all(cost.time_s < 12 * roof + 1e-4)
    assert not cost.is_extrapolated


def test_an_unknown_name_gets_near_ones():
    with pytest.raises(CatalogError, match="h100_sxm"):
        find_calibration("h100_sxm/vlm")
