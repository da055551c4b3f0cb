"""Whole passes of DeepSeek-V3 on measured fabrics against published figures; nothing was fitted to them."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.sim import simulate
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.instance import build_instance


def _rate_per_node(hardware: str, n: int, step: Pass) -> float:
    instance = build_instance(
        load_model("deepseek-v3"), ParallelSpec(dp_size=n, ep_size=n), load_hardware(hardware, n),
        RoutingSpec(family=RouterFamily.BALANCED), overlap=Overlap.TWO_BATCH,
    )  # fmt: skip
    program = instance.program(step, instance.draw(step, np.random.default_rng(1)))
    return float(step.n_tokens) / simulate(program, instance.cost, record=False).time_s / (n / 8)


def test_decode_profile_with_two_micro_batches() -> None:
    # deepseek-ai/profile-data: EP128, 128 requests per GPU at 4096 tokens on H800, 18,598 tokens/s per node
    step = Pass(Phase.DECODE, 128.0 * 128, 1.0, 4096.0)
    assert _rate_per_node("h800_x40_nodes", 128, step) == pytest.approx(18_598, rel=0.10)


def test_prefill_profile_is_a_quarter_too_quick() -> None:
    # the same source: EP32, 16k tokens per GPU, 62,713. Misses its target of 10%: see docs/fabric.md.
    step = Pass(Phase.PREFILL, 32.0 * 4, 4096.0, 0.0)
    assert 1.10 < _rate_per_node("h800_x40_nodes", 32, step) / 62_713 < 1.35


def test_two_micro_batches_at_ep72() -> None:
    # SGLang, 5 May 2025, H100: 26% faster with two micro-batches at 256 requests per GPU, 27% slower at 32
    gains = {}
    for per_rank in (32, 256):
        times = []
        for mode in (Overlap.NONE, Overlap.TWO_BATCH):
            instance = build_instance(
                load_model("deepseek-v3"), ParallelSpec(dp_size=64, ep_size=64), load_hardware("h100_x128_nodes", 64),
                RoutingSpec(family=RouterFamily.BALANCED), overlap=mode,
            )  # fmt: skip
            step = Pass(Phase.DECODE, 64.0 * per_rank, 1.0, 2000.0)
            program = instance.program(step, instance.draw(step, np.random.default_rng(1)))
            times.append(simulate(program, instance.cost, record=False).time_s)
        gains[per_rank] = times[0] / times[1]
    assert gains[256] > 1.1
    assert gains[32] < 1.05
