"""What a stack's cost says an operator is bound by, where a table's fit cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.cost.result import Bound, OpCost
from moesim.cost.stack import DEFAULT_STACK, StackedCalibration
from moesim.ops import GemmShape, Num, Op, OpKind, Work
from moesim.specs.catalog import load_device
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import DeviceSpec

DEVICE = load_device("h200_sxm")


class Table:
    """A table whose fit puts nearly all time on one side."""

    name = "table"

    def __init__(self, compute_s: Num, memory_s: Num) -> None:
        self.found = OpCost(compute_s + memory_s, compute_s, memory_s)

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        return self.found


def op(flop_s: Num, byte_s: Num) -> Op:
    work = Work(flop_s * DEVICE.peak_flop_per_s.rate(Dtype.BF16), byte_s * DEVICE.memory_bytes_per_s)
    return Op("experts", OpKind.GROUPED_GEMM, work, GemmShape(1.0, 1.0, 1.0), Dtype.BF16, "experts")


@pytest.mark.parametrize(
    ("flop_s", "byte_s", "bound"),
    [(1e-3, 1.5e-2, Bound.MEMORY), (1e-3, 1.5e-3, Bound.COMPUTE), (2e-2, 1e-3, Bound.COMPUTE)],
)
def test_peaks_decide_where_they_clearly_say(flop_s: float, byte_s: float, bound: Bound) -> None:
    cost = StackedCalibration(Table(1.7e-2, 1e-3), DEFAULT_STACK).cost(op(flop_s, byte_s), DEVICE)
    assert cost is not None
    assert cost.bound is bound
    assert cost.compute_s + cost.memory_s == pytest.approx(1.8e-2 * DEFAULT_STACK.experts_ratio)


def test_each_point_of_an_array_by_its_own_peaks() -> None:
    flop_s, byte_s = np.array([1e-3, 2e-2]), np.array([1.5e-2, 1e-3])
    table = Table(np.full(2, 1.7e-2), np.full(2, 1e-3))
    cost = StackedCalibration(table, DEFAULT_STACK).cost(op(flop_s, byte_s), DEVICE)
    assert cost is not None
    assert np.array_equal(np.asarray(cost.memory_s) > np.asarray(cost.compute_s), [True, False])
