"""Devices that nobody measured borrow the kernels of the same chip on another board."""

from __future__ import annotations

import pytest

from moesim.cost import CostModel
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.specs.base import Origin
from moesim.specs.catalog import load_device, load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.study.calibrated import calibration_for
from moesim.study.instance import build_instance
from moesim.study.provenance import input_origins

SPLIT = ParallelSpec(tp_size=2)
STEP = Pass(Phase.DECODE, 16.0, 1.0, 1024.0)


def lines_on(hardware: str):
    hw = load_hardware(hardware, 2)
    calibration = calibration_for("sglang", hw.device.name)
    built = build_instance(load_model("qwen3-30b-a3b"), SPLIT, hw, cost=CostModel.of(hw, calibration))
    return {line.name: line for line in built.analytic(STEP).estimate.lines}


def test_kernels_take_as_long_as_the_lenders_and_are_marked():
    own, borrowed = lines_on("hgx_h100"), lines_on("hgx_h800")
    for name in ("experts", "qkv_proj", "attention_scores"):
        assert borrowed[name].time_s == own[name].time_s
        assert borrowed[name].is_extrapolated
    assert not own["qkv_proj"].is_extrapolated


def test_links_are_not_borrowed():
    own, borrowed = lines_on("hgx_h100"), lines_on("hgx_h800")
    assert own["attention_all_reduce"].origin is Origin.FITTED
    assert borrowed["attention_all_reduce"].origin is Origin.ASSUMPTION


def test_the_report_says_whose_they_are():
    hw = load_hardware("hgx_h800", 1)
    row = next(r for r in input_origins(hw, (), calibration_for(None, "h800_sxm")) if r.what == "efficiencies")
    assert "borrowed" in row.value
    assert row.origin is Origin.ASSUMPTION
    assert "h100_sxm" in row.source


def test_who_lends_to_whom():
    assert calibration_for(None, "a800_sxm") is not None
    assert calibration_for("none", "h800_sxm") is None
    assert calibration_for(None, "h20_sxm") is None
    for device in ("h800_sxm", "a800_sxm"):
        borrower = load_device(device)
        lender = load_device(str(borrower.same_chip_as))
        assert (borrower.peak_flop_per_s.bf16, borrower.memory_bytes_per_s) == (
            lender.peak_flop_per_s.bf16,
            lender.memory_bytes_per_s,
        )
    with pytest.raises(InputError):
        calibration_for("h200_sxm/vllm", "h800_sxm")
