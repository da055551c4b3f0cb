"""Roofline, energy and dollars on a device of 100 TFLOP/s, 1 TB/s, 500 W and 2 USD/h."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moesim.cost import (
    Bound,
    CostModel,
    Efficiency,
    EfficiencyTable,
    OpCost,
    pass_energy,
    roofline,
    usd_per_million_tokens,
)
from moesim.cost.energy import DYNAMIC_FRAC, IDLE_FRAC
from moesim.ops import ElementwiseShape, GemmShape, Op, OpKind, Work
from moesim.specs.base import Origin
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import DeviceSpec
from moesim.testing import IDEAL, toy_cost, toy_device, toy_hardware


def _gemm(flops: float, moved: float, dtype: Dtype = Dtype.BF16) -> Op:
    return Op("x", OpKind.GEMM, Work(flops, moved, 0.0), GemmShape(1.0, 1.0, 1.0), dtype)


def test_the_slower_of_compute_and_memory_counts() -> None:
    device = toy_device()
    compute = roofline(_gemm(100e12, 0.5e12), device, IDEAL)
    assert (compute.time_s, compute.compute_s, compute.memory_s, compute.bound) == (1.0, 1.0, 0.5, Bound.COMPUTE)
    memory = roofline(_gemm(50e12, 2e12), device, IDEAL)
    assert (memory.time_s, memory.bound) == (2.0, Bound.MEMORY)


def test_efficiency_divides_peaks_and_kernels_add() -> None:
    table = replace(IDEAL, gemm=Efficiency(0.5, 0.25, 3e-6), elementwise=Efficiency(1.0, 1.0, 2e-6))
    cost = roofline(_gemm(100e12, 0.1e12), toy_device(), table)
    assert cost.compute_s == 2.0
    assert cost.memory_s == pytest.approx(0.4)
    assert cost.time_s == pytest.approx(2.0 + 3e-6)
    three = Op("x", OpKind.ELEMENTWISE, Work(), ElementwiseShape(1.0, 1.0, 3))
    assert roofline(three, toy_device(), table).time_s == pytest.approx(6e-6)


def test_reads_and_writes_both_cross_memory() -> None:
    op = Op("x", OpKind.GEMM, Work(0.0, 0.3e12, 0.7e12), GemmShape(1.0, 1.0, 1.0))
    assert roofline(op, toy_device(), IDEAL).time_s == pytest.approx(1.0)


def test_stored_format_picks_the_arithmetic() -> None:
    device = toy_device()
    assert roofline(_gemm(200e12, 0.0, Dtype.FP8), device, IDEAL).time_s == 1.0
    # without fp8 units, fp8 weights run as bf16
    assert roofline(_gemm(200e12, 0.0, Dtype.FP8), toy_device(fp8_flop_per_s=None), IDEAL).time_s == 2.0
    # a weight-only format is unpacked to bf16
    assert roofline(_gemm(200e12, 0.0, Dtype.INT4), device, IDEAL).time_s == 2.0


def test_bound_of_arrays_is_that_of_the_slowest() -> None:
    cost = OpCost(np.array([1.0, 5.0]), compute_s=np.array([1.0, 0.1]), memory_s=np.array([0.2, 5.0]))
    assert cost.bound is Bound.MEMORY


def test_defaults_say_that_they_are_assumptions() -> None:
    model = CostModel.of(toy_hardware())
    assert model.cost(_gemm(1e12, 1e9)).origin is Origin.ASSUMPTION
    assert model.origin is Origin.ASSUMPTION
    table = EfficiencyTable()
    for kind in (
        OpKind.GEMM,
        OpKind.GROUPED_GEMM,
        OpKind.ATTENTION_PREFILL,
        OpKind.ATTENTION_DECODE,
        OpKind.ELEMENTWISE,
    ):
        e = table.of(kind)
        assert 0 < e.compute_frac < 1
        assert 0 < e.memory_frac < 1
        assert 0 < e.kernel_s < 1e-4


class _Known:
    """A calibration that knows GEMMs only."""

    name = "known"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        return OpCost(42.0, origin=Origin.FITTED, error_frac=0.1) if op.kind is OpKind.GEMM else None


def test_a_calibration_counts_where_it_knows_the_operator() -> None:
    model = CostModel.of(toy_hardware(), _Known(), IDEAL)
    assert model.cost(_gemm(1e12, 1e9)).time_s == 42.0
    other = Op("x", OpKind.ELEMENTWISE, Work(0.0, 1e12, 0.0), ElementwiseShape(1.0, 1.0))
    assert model.cost(other).time_s == pytest.approx(1.0)
    assert model.cost(other).origin is Origin.ASSUMPTION


def test_energy_by_hand() -> None:
    # idle 75 W; dynamic 425 W for 0.5 s at full draw and 0.25 s of a memory-bound kernel
    energy = pass_energy(toy_device(), 4, 1.0, {Bound.COMPUTE: 0.5, Bound.MEMORY: 0.25})
    assert energy is not None
    assert energy.idle_j == pytest.approx(4 * IDLE_FRAC * 500)
    assert energy.dynamic_j == pytest.approx(4 * 425 * (0.5 + 0.25 * DYNAMIC_FRAC[Bound.MEMORY]))
    assert energy.total_j == energy.idle_j + energy.dynamic_j
    assert energy.origin is Origin.ASSUMPTION


def test_energy_never_exceeds_board_power() -> None:
    energy = pass_energy(toy_device(), 1, 1.0, {Bound.COMPUTE: 3.0})
    assert energy is not None
    assert energy.total_j == pytest.approx(500.0)
    assert pass_energy(toy_device(board_power_w=None), 1, 1.0, {}) is None


def test_dollars_by_hand() -> None:
    # 8 devices at 2 USD/h are 16/3600 USD/s; at 1,000 tokens/s a million takes 1,000 s
    assert usd_per_million_tokens(toy_hardware(), 8, 1000.0) == pytest.approx(16 / 3.6)
    assert usd_per_million_tokens(toy_hardware(), 8, 0.0) is None
    free = toy_hardware(device=toy_device(price_usd_per_h=None))
    assert usd_per_million_tokens(free, 8, 1000.0) is None


def test_a_faster_device_is_never_slower() -> None:
    slow, fast = toy_cost(), toy_cost(toy_hardware(device=toy_device(memory_bytes_per_s=2e12, bf16_flop_per_s=200e12)))
    for flops, moved in ((1e12, 1e9), (1e9, 1e10)):
        assert fast.cost(_gemm(flops, moved)).time_s == pytest.approx(slow.cost(_gemm(flops, moved)).time_s / 2)
