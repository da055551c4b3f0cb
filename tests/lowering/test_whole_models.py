"""Whole passes: flops are twice the parameters at work per token, and splits only move work between ranks."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.lowering.attention import GROUP as ATTENTION
from moesim.ops import OpKind, Program
from moesim.specs.catalog import load_model
from moesim.specs.model import MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily
from moesim.testing import decode, prefill, toy_dense_model, toy_moe_model, toy_program

ONE = ParallelSpec()
MATMULS = (OpKind.GEMM, OpKind.GROUPED_GEMM)


def _flops(program: Program, kinds: tuple[OpKind, ...]) -> float:
    return float(sum(op.work.flops * s.n_repeat for s, op in program.ops() if op.kind in kinds))


def test_llama_decode_is_two_flops_per_parameter_and_token() -> None:
    model = load_model("llama-3.1-8b")
    norms = sum(layer.norm_params for layer in model.layers) + model.other_params
    weights = model.n_params - model.embedding_params - norms  # a lookup and scales are no products
    # by hand: 32 x (4096 x (4096 + 2 x 1024) + 4096 x 4096 + 3 x 4096 x 14336) + 4096 x 128256
    assert weights == 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336) + 4096 * 128256
    program = toy_program(model, ONE, decode(7, 1000))
    assert _flops(program, MATMULS) == 2 * weights * 7
    scores = _flops(program, (OpKind.ATTENTION_DECODE,))
    assert scores == 32 * 2 * 32 * (128 + 128) * 7 * 1000


def test_llama_prefill_needs_logits_of_the_last_token_only() -> None:
    model = load_model("llama-3.1-8b")
    layers = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    program = toy_program(model, ONE, prefill(2, 512))
    assert _flops(program, MATMULS) == 2 * layers * 1024 + 2 * 4096 * 128256 * 2
    assert _flops(program, (OpKind.ATTENTION_PREFILL,)) == 32 * 2 * 32 * 256 * 2 * 512 * 513 / 2


def test_mixtral_decode_follows_active_parameters() -> None:
    model = load_model("mixtral-8x7b")
    norms = sum(layer.norm_params for layer in model.layers) + model.other_params
    weights = model.n_active_params - model.embedding_params - norms
    # balanced, and 512 tokens x 2 / 8 = 128 per expert: whole tiles
    program = toy_program(model, ONE, decode(512, 1000), family=RouterFamily.BALANCED)
    assert _flops(program, MATMULS) == pytest.approx(2 * weights * 512, rel=1e-12)


def test_deepseek_prefill_follows_active_parameters() -> None:
    # naive MLA multiplies with every weight once per token; 4096 x 8 / 256 = 128 tokens per expert
    model = load_model("deepseek-v3")
    counted = model.n_active_params - model.embedding_params - model.lm_head_params - model.other_params
    norms = sum(layer.norm_params for layer in model.layers) + 61 * (1536 + 512)  # norms of the two latents
    biases = 58 * 256  # score corrections
    program = toy_program(model, ONE, prefill(1, 4096), family=RouterFamily.BALANCED)
    layers = _flops(program, MATMULS) - 2 * 7168 * 129280
    assert layers == pytest.approx(2 * 4096 * (counted - norms - biases), rel=1e-12)


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("step", [decode(64, 100), prefill(2, 64)])
def test_tensor_parallelism_moves_flops_and_makes_none(tp: int, step: object) -> None:
    # key-value heads are not copied up to 4 of them
    from moesim.specs.model import GqaAttention

    model = toy_dense_model(attention=GqaAttention(n_heads=4, n_kv_heads=4, head_dim=16, v_head_dim=16))
    kinds = (*MATMULS, OpKind.ATTENTION_DECODE, OpKind.ATTENTION_PREFILL)
    one = _flops(toy_program(model, ONE, step), kinds)  # type: ignore[arg-type]
    split = _flops(toy_program(model, ParallelSpec(tp_size=tp), step), kinds)  # type: ignore[arg-type]
    assert split * tp == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelSpec(tp_size=4, ep_size=4),
        ParallelSpec(tp_size=4),
        ParallelSpec(dp_size=4, ep_size=4),
        ParallelSpec(dp_size=4, ep_size=2),
        ParallelSpec(dp_size=4),
        ParallelSpec(tp_size=2, dp_size=2, ep_size=4),
        ParallelSpec(dp_size=8, ep_size=8),
    ],
)
def test_expert_flops_and_bytes_are_the_same_under_every_split(parallel: ParallelSpec) -> None:
    model = toy_moe_model()
    n_sources = 1 if parallel.dp_size == 1 or parallel.ep_size == 1 else parallel.n_stage_ranks
    # 8 experts, 128 x 8 assignments each expert in all: whole tiles on every rank, from n sources
    counts = np.full((2, n_sources, 8), 1024 // n_sources)
    program = toy_program(model, parallel, decode(4096, 10), counts=counts)
    op = next(op for _, op in program.ops() if op.kind is OpKind.GROUPED_GEMM)
    flops = np.broadcast_to(op.work.flops, (2, parallel.n_stage_ranks)).sum(axis=1)
    np.testing.assert_allclose(flops, 2 * 3 * 64 * 128 * 8192, rtol=1e-12)
    shape = op.shape
    weights = (
        np.broadcast_to(shape.n_experts_hit, (*flops.shape, parallel.n_stage_ranks)).sum(axis=1) / parallel.etp_size
    )  # type: ignore[union-attr]
    np.testing.assert_allclose(weights, 8)  # every expert is read once, whole or in slices


def test_sequences_are_split_over_attention_data_parallel_ranks() -> None:
    model = toy_moe_model()
    program = toy_program(model, ParallelSpec(dp_size=4, ep_size=4), decode(10, 100))
    op = next(op for _, op in program.ops() if op.name == "qkv_proj")
    assert op.shape.m == 3.0  # type: ignore[union-attr]
    assert op.group == ATTENTION


def test_a_program_says_what_it_serves() -> None:
    program = toy_program(toy_dense_model(), ParallelSpec(tp_size=2, pp_size=2), prefill(3, 10))
    assert (program.n_tokens, program.n_sequences, program.n_ranks, program.pp_size) == (30.0, 3.0, 2, 2)
    assert not any(segment.is_moe for segment in program.segments)


def test_a_moe_needs_a_load() -> None:
    from moesim.lowering import lower

    with pytest.raises(ValueError, match="load of its experts"):
        lower(toy_moe_model(), ONE, decode(1, 1))


def test_every_layer_is_lowered_once_and_in_its_segment() -> None:
    model = load_model("deepseek-v3")
    program = toy_program(model, ONE, decode(1, 100))
    covered = sorted(i for s in program.segments for i in s.layers)
    assert covered == list(range(61))
    moe = [i for s in program.segments if s.is_moe for i in s.layers]
    assert moe == [i for i, layer in enumerate(model.layers) if isinstance(layer.ffn, MoeFfn)] == list(range(3, 61))
