"""Every command prices by the same tables and parameters as `validate`, and one can choose or turn that off."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.cost import CostModel
from moesim.cost.estimate import known_costs
from moesim.cost.stack import StackedCalibration
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.ops import OpKind, Phase
from moesim.specs.catalog import load_hardware
from moesim.specs.parallel import ParallelSpec
from moesim.study.calibrated import basis_of, calibration_for
from moesim.study.instance import build_instance
from moesim.study.kernels import as_run, calibration_of
from moesim.study.stack_files import save_stack, shipped_stacks
from moesim.study.uncertainty import Basis
from moesim.study.validate.setup import model_of

CASES = [
    ("openai/gpt-oss-120b", "fp4", "b200_sxm"), ("openai/gpt-oss-120b", "fp4", "h200_sxm"),
    ("deepseek-ai/DeepSeek-V3", "fp8", "b200_sxm"), ("deepseek-ai/DeepSeek-V3", "fp4", "b200_sxm"),
    ("Qwen/Qwen3-235B-A22B-FP8", "fp8", "h100_sxm"), ("meta-llama/Llama-3.1-70B", "fp8", "h100_sxm"),
    ("meta-llama/Llama-3.1-70B", "", "h200_sxm"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(("name", "precision", "device"), CASES)
def test_every_operator_costs_what_it_costs_in_validate(name: str, precision: str, device: str, backend: str) -> None:
    model = model_of(name, precision, backend, device)
    assert as_run(model, device) == model
    hardware = load_hardware(device, 4)
    used = calibration_for(backend, device)
    assert isinstance(used, StackedCalibration)
    assert used.stack == shipped_stacks()[f"{backend}_{'blackwell' if device == 'b200_sxm' else 'hopper'}"]
    tables = calibration_of(backend, device, model.storage.expert_activation)
    assert tables is not None
    instance = build_instance(model, ParallelSpec(tp_size=4), hardware, cost=CostModel.of(hardware, used))
    for step in (Pass(Phase.DECODE, 48.0, 1.0, 1500.0), Pass(Phase.PREFILL, 2.0, 1024.0, 0.0)):
        ops = [op for _, op in instance.program(step).ops()]
        ours = [used.own.cost(op, hardware.device) for op in ops]
        theirs = known_costs(tables, ops, hardware.device)
        assert ours == theirs


def test_a_grid_costs_what_its_points_cost() -> None:
    hardware = load_hardware("b200_sxm", 1)
    used = calibration_for("vllm", "b200_sxm")
    model = model_of("openai/gpt-oss-120b", "fp4", "vllm", "b200_sxm")
    instance = build_instance(model, ParallelSpec(), hardware, cost=CostModel.of(hardware, used))
    batches = np.asarray([1.0, 7.0, 64.0, 300.0, 4000.0, 60000.0])
    grid = instance.program(Pass(Phase.DECODE, batches[:, None, None], 1.0, 1000.0))
    op = next(op for _, op in grid.ops() if op.kind is OpKind.GROUPED_GEMM)
    seconds = np.broadcast_to(np.asarray(instance.cost.cost(op).time_s), (6, 1, 1)).ravel()
    for batch, got in zip(batches, seconds, strict=True):
        one = instance.program(Pass(Phase.DECODE, float(batch), 1.0, 1000.0))
        own = next(op for _, op in one.ops() if op.kind is OpKind.GROUPED_GEMM)
        assert float(instance.cost.cost(own).time_s) == pytest.approx(float(got), rel=1e-9)


def test_one_can_choose_and_turn_off() -> None:
    default, tables = calibration_for(None, "h100_sxm"), calibration_for("tables", "h100_sxm")
    assert default is not None
    assert tables is not None
    assert "with vllm_hopper" in default.name
    assert "with" not in tables.name
    assert calibration_for("none", "h100_sxm") is None
    for name in ("sglang", "h100_sxm/sglang"):
        assert "with sglang_hopper" in calibration_for(name, "h100_sxm").name  # type: ignore[union-attr]
    assert "sglang" in calibration_for("sglang:tables", "h100_sxm").name  # type: ignore[union-attr]
    assert "with trtllm_hopper" in calibration_for(None, "h100_sxm", prefer="trtllm").name  # type: ignore[union-attr]
    with pytest.raises(InputError, match="another device"):
        calibration_for("h200_sxm/vllm", "h100_sxm")


def test_what_stands_behind_it() -> None:
    basis = {d: basis_of(calibration_for(None, d)) for d in ("h100_sxm", "a100_sxm", "gb200", "h20_sxm", "mi300x")}
    assert basis["h100_sxm"] is Basis.RUNS
    assert basis["a100_sxm"] is Basis.LENT
    assert basis["gb200"] is Basis.LENT
    # the H20 computes a seventh of its sibling: its tables would be wrong
    assert basis["h20_sxm"] is basis["mi300x"] is Basis.ASSUMPTION
    assert basis_of(calibration_for("tables", "h100_sxm")) is Basis.KERNELS


def test_a_file_of_own_runs_takes_the_place_of_the_shipped_parameters(tmp_path) -> None:
    stack = shipped_stacks()["vllm_hopper"]
    save_stack(tmp_path / "mine.yaml", "mine", stack, source="own", base="h100_sxm/vllm")
    found = calibration_for(str(tmp_path / "mine.yaml"), "h100_sxm")
    assert isinstance(found, StackedCalibration)
    assert found.label == "mine of mine.yaml"
    assert basis_of(found) is Basis.RUNS
