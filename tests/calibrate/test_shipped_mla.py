"""Shipped MLA families are of the programs that are lowered: prompts over expanded heads, decode over the latent."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.calibrate.store import find_calibration
from moesim.ops import AttentionShape
from moesim.specs.catalog import load_device

DEVICES = ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300")
PROMPT = AttentionShape(4.0, 4096.0, 4096.0, 128.0, 128.0, 192.0, 128.0, None, True)
DECODE = AttentionShape(128.0, 1.0, 8192.0, 16.0, 1.0, 576.0, 512.0, None, True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stack", ["vllm", "sglang", "trtllm"])
def test_prompts_over_expanded_heads_reach_what_such_kernels_do(device: str, stack: str) -> None:
    n_flop = 4.0 * 4096.0 * 4097.0 / 2.0 * 2.0 * 128.0 * (192.0 + 128.0)
    peak = load_device(device).peak_flop_per_s.bf16
    for kv_dtype in ("bf16", "fp8"):
        found = find_calibration(f"{device}/{stack}").nearest("mla_attention_prefill", "bf16", PROMPT, kv_dtype)
        assert found is not None
        # attention over the latent would need 3.4 times the work: 0.17 of peak on an H200
        assert 0.3 < n_flop / float(found[1].time_s) / peak < 0.9


@pytest.mark.parametrize("device", ["h100_sxm", "h200_sxm"])
def test_an_8_bit_cache_is_read_no_slower_on_hopper_by_vllm(device: str) -> None:
    times = []
    for kv_dtype in ("bf16", "fp8"):
        found = find_calibration(f"{device}/vllm").nearest("mla_attention_decode", "bf16", DECODE, kv_dtype)
        assert found is not None
        times.append(float(np.max(found[1].time_s)))
    assert 0.5 < times[1] / times[0] < 1.1
