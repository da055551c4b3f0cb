"""Costs by a calibration: many at once as one by one, remembered within bounds, and asked for by the stored format."""

from dataclasses import replace

import numpy as np
import pytest

import moesim.cost.forms_calibration as forms_calibration
from moesim.calibrate.store import find_calibration
from moesim.cost import CostModel
from moesim.cost.forms_request import request_of
from moesim.cost.layered import LayeredCalibration
from moesim.lowering import Pass
from moesim.ops import AttentionShape, GemmShape, MoeShape, Op, OpKind, Phase, Work
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.dtypes import Dtype
from moesim.specs.parallel import ParallelSpec
from moesim.study.calibrated import calibration_for
from moesim.study.grid import time_grid
from moesim.study.instance import build_instance

HARDWARE = load_hardware("hgx_h200", 8)
DECODE = Pass(Phase.DECODE, 32.0, 1.0, 4096.0)


def instance(calibration, model="deepseek-v3"):
    cost = CostModel.of(HARDWARE, calibration)
    return build_instance(load_model(model), ParallelSpec(tp_size=8), HARDWARE, cost=cost)


def fresh():
    """A calibration that remembers nothing yet."""
    return replace(find_calibration("h200_sxm/vllm"))


@pytest.mark.parametrize("model", ["deepseek-v3", "qwen3-30b-a3b"])
@pytest.mark.parametrize("step", [DECODE, Pass(Phase.PREFILL, 2.0, 1024.0, 0.0)])
def test_together_is_as_one_by_one(model, step):
    ops = [op for _, op in instance(None, model).program(step).ops()]
    together, device = fresh().cost_all(ops, HARDWARE.device), HARDWARE.device
    assert sum(cost is not None for cost in together) >= 8
    for op, cost in zip(ops, together, strict=True):
        alone = fresh().cost(op, device)
        assert (alone is None) == (cost is None)
        if alone is not None:
            assert cost.time_s == pytest.approx(alone.time_s, rel=1e-12)
            assert cost.error_frac == pytest.approx(alone.error_frac, rel=1e-9)
            assert (cost.is_extrapolated, cost.bound) == (alone.is_extrapolated, alone.bound)


def test_a_grid_is_as_points_one_by_one_also_where_points_repeat():
    rng = np.random.default_rng(0)
    batch, context = rng.integers(1, 40, 600).astype(float), rng.choice([100.0, 900.0, 5000.0], 600)
    grid = time_grid(instance(fresh()), Phase.DECODE, batch, context)
    assert grid.shape == (600,)
    single = instance(fresh())
    for i in range(0, 600, 97):
        alone = single.analytic(Pass(Phase.DECODE, batch[i], 1.0, context[i] - 1.0)).time_s
        assert grid[i] == pytest.approx(alone, rel=1e-9)


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(forms_calibration, "_MOST_SHAPES", 10)
    calibration = fresh()
    for m in range(1, 50):
        op = Op("x", OpKind.GEMM, Work(1.0, 1e9, 1.0), GemmShape(float(m), 4096.0, 4096.0), Dtype.BF16)
        first, again = calibration.cost(op, HARDWARE.device), calibration.cost(op, HARDWARE.device)
        assert first == again
        assert len(calibration._memory.costs) <= 10


def test_sources_that_know_only_single_costs_can_be_layered():
    class OneByOne:
        name = "one"

        def cost(self, op, device):
            return None

    layered = LayeredCalibration((OneByOne(), fresh()))
    ops = [op for _, op in instance(None).program(DECODE).ops()]
    found = layered.cost_all(ops, HARDWARE.device)
    assert found == fresh().cost_all(ops, HARDWARE.device)


def test_whole_layers_contain_router_and_permute():
    cpu = calibration_for(None, "cpu_epyc_1core")
    hardware = load_hardware("cpu_epyc_1core", 1)
    built = build_instance(load_model("olmoe-1b-7b"), ParallelSpec(), hardware, cost=CostModel.of(hardware, cpu))
    lines = built.analytic(Pass(Phase.DECODE, 4.0, 1.0, 512.0)).estimate.lines
    times = {line.name: line.time_s for line in lines}
    assert {n for n, t in times.items() if t == 0.0} == {"router", "top_k", "permute", "unpermute"}
    assert times["experts"] > 0.5 * sum(times.values())


MOE = MoeShape(8.0, 64.0, 64.0, 32.0, 4.0, 64.0, 1024.0, 512.0, 8.0)


def ask(shape, dtype, weight, bytes_per_weight=2.0):
    n = 32.0 * 3.0 * 1024.0 * 512.0 if isinstance(shape, MoeShape) else 4096.0 * 4096.0
    kind = OpKind.GROUPED_GEMM if isinstance(shape, MoeShape) else OpKind.GEMM
    return request_of(Op("x", kind, Work(1.0, n * bytes_per_weight, 1.0), shape, dtype, weight_dtype=weight)).dtypes


def test_the_stored_format_is_asked_for_first():
    gemm = GemmShape(8.0, 4096.0, 4096.0)
    assert ask(MOE, Dtype.BF16, Dtype.INT4, 0.52) == ("int4", "mxfp4")
    assert ask(MOE, Dtype.BF16, Dtype.MXFP4, 0.53) == ("mxfp4", "int4")
    assert ask(MOE, Dtype.FP8, Dtype.INT4, 0.52) == ("int4", "mxfp4", "fp8")
    assert ask(MOE, Dtype.BF16, Dtype.INT8, 1.0) == ("int8", "bf16")
    assert ask(gemm, Dtype.FP8_BLOCK, Dtype.FP8_BLOCK, 1.0) == ("fp8_block",)
    assert ask(gemm, Dtype.FP32, Dtype.FP32, 4.0) == ("fp32", "bf16")
    # operators that do not say: by the bytes they read
    assert ask(MOE, Dtype.BF16, None, 0.52) == ("mxfp4", "int4")
    assert ask(gemm, Dtype.BF16, None, 2.0) == ("bf16",)
    assert ask(gemm, Dtype.BF16, None, 1.0) == ("int8", "bf16")


def test_lowering_says_the_stored_format():
    ops = {op.name: op for _, op in instance(None).program(DECODE).ops()}
    assert ops["experts"].weight_dtype is Dtype.FP8_BLOCK
    assert ops["o_proj"].weight_dtype is Dtype.FP8_BLOCK
    assert ops["router"].weight_dtype is Dtype.BF16
    assert ops["attention_norm"].weight_dtype is None
    oss = {op.name: op for _, op in instance(None, "gpt-oss-120b").program(DECODE).ops()}
    assert (oss["experts"].dtype, oss["experts"].weight_dtype) == (Dtype.BF16, Dtype.MXFP4)


def test_without_corrections_the_domain_is_the_box_of_what_was_seen():
    family = replace(find_calibration("cpu_epyc_1core/pytorch").families[0], correction=None)
    assert family.key.kind == "attention_decode"
    low, high = family.domain["kv_len"]
    seen = {n: family.domain[n][1] for n in ("batch", "q_len", "n_heads", "n_kv_heads", "qk_head_dim", "v_head_dim")}
    sizes = [seen[n] for n in ("n_heads", "n_kv_heads", "qk_head_dim", "v_head_dim")]
    inside = family.predict(AttentionShape(seen["batch"], 1.0, np.array([low, high, 4.0 * high]), *sizes)).distance
    assert inside.tolist() == pytest.approx([0.5, 0.5, 3.0])
