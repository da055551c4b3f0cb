"""NCCL's calibrations within a node: errors on left-out sizes within the target, and sane times between the sizes of a table."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.calibrate.store import find_calibration
from moesim.cost import CostModel
from moesim.ops import CollectiveShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware

DEVICES = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300", "l40s", "rtx_pro_6000")
KINDS = (OpKind.ALL_REDUCE, OpKind.ALL_GATHER, OpKind.REDUCE_SCATTER)


@pytest.mark.parametrize("device", DEVICES)
def test_left_out_sizes_are_within_the_target(device: str) -> None:
    families = {f.key.kind: f for f in find_calibration(f"{device}/nccl").families}
    assert set(families) == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"}
    for kind, family in families.items():
        assert family.held_out is not None
        assert family.held_out.left_out == "shapes"
        assert family.held_out.n_groups == 21
        assert family.held_out.median_frac <= 0.08, kind
        assert abs(family.held_out.bias_frac) <= 0.03, kind


@pytest.mark.parametrize("device", DEVICES)
def test_between_two_sizes_lies_the_time_between_theirs(device: str) -> None:
    calibration = find_calibration(f"{device}/nccl")
    sizes = 2.0 ** np.arange(9, 29)
    for n in (2, 4, 8):
        model = CostModel.of(load_hardware(device, n), calibration)
        for kind in KINDS:

            def times(size: np.ndarray, n: int = n, kind: OpKind = kind, model: CostModel = model) -> np.ndarray:
                op = Op("x", kind, Work(), CollectiveShape(n, size))  # type: ignore[arg-type]
                return np.asarray(model.cost(op).time_s)

            low, middle, high = times(sizes), times(sizes * 2**0.5), times(sizes * 2.0)
            assert (middle > 0.93 * np.minimum(low, high)).all(), (kind, n)
            assert (middle < 1.07 * np.maximum(low, high)).all(), (kind, n)
