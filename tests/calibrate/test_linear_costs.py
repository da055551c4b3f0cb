"""State kernels of linear attention are costed by measured families where a model says the heads."""

from __future__ import annotations

import pytest

from moesim.calibrate.store import find_calibration
from moesim.cost.forms_request import request_of
from moesim.ops import AttentionShape, Op, OpKind, Work
from moesim.specs.catalog import load_device, load_model
from moesim.specs.dtypes import Dtype


def state_op(kind: OpKind, tokens: float, width: float = 128.0) -> Op:
    shape = AttentionShape(8.0, tokens, 0.0, 16.0, 4.0, width, width, None, False)
    return Op("linear_attention_state", kind, Work(1.0, 1.0, 1.0), shape, Dtype.BF16, "attention")


@pytest.mark.parametrize("stack", ["vllm", "sglang"])
def test_a_state_kernel_has_a_measured_cost(stack: str) -> None:
    calibration, device = find_calibration(f"h200_sxm/{stack}"), load_device("h200_sxm")
    prefill = calibration.cost(state_op(OpKind.ATTENTION_PREFILL, 1024.0), device)
    decode = calibration.cost(state_op(OpKind.ATTENTION_DECODE, 1.0), device)
    assert prefill is not None
    assert decode is not None
    assert 1e-6 < float(decode.time_s) < float(prefill.time_s) < 1e-2


def test_without_widths_of_heads_nothing_is_asked() -> None:
    assert request_of(state_op(OpKind.ATTENTION_PREFILL, 64.0, 0.0)) is None
    assert request_of(state_op(OpKind.ATTENTION_PREFILL, 64.0)) is not None


def test_models_with_gated_delta_nets_say_their_heads() -> None:
    mixers = [a.attention for a in load_model("qwen3-next-80b-a3b").layers if a.attention.kind == "linear"]  # type: ignore[union-attr]
    assert {(m.n_heads, m.n_key_heads, m.key_head_dim, m.value_head_dim) for m in mixers} == {(32, 16, 128, 128)}  # type: ignore[union-attr]
