"""Attention: flops and bytes against formulas written out by hand."""

from __future__ import annotations

import pytest

from moesim.lowering.common import causal_pairs
from moesim.ops import AttentionShape, Op, OpKind, Program
from moesim.specs.catalog import load_model
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.model import GqaAttention, LinearAttention, MlaAttention, WeightStorage
from moesim.specs.parallel import ParallelSpec
from moesim.testing import decode, prefill, toy_dense_model, toy_program

ONE = ParallelSpec()


def _op(program: Program, name: str) -> Op:
    found = {id(op): op for _, op in program.ops() if op.name == name}
    assert len(found) == 1, f"{name}: {len(found)}"
    return next(iter(found.values()))


@pytest.mark.parametrize(
    ("new", "cached", "window", "pairs"),
    [
        (1, 0, None, 1),
        (1, 9, None, 10),  # one token sees 9 cached and itself
        (4, 0, None, 10),  # 1 + 2 + 3 + 4
        (3, 5, None, 21),  # 6 + 7 + 8
        (4, 0, 2, 7),  # 1 + 2 + 2 + 2
        (3, 5, 4, 12),  # the window is full from the start
        (3, 2, 4, 11),  # 3 + 4 + 4
        (1, 100, 16, 16),
        (1, 3, 16, 4),
    ],
)
def test_causal_pairs_by_counting(new: int, cached: int, window: int | None, pairs: int) -> None:
    by_hand = sum(min(cached + i + 1, window or 10**9) for i in range(new))
    assert by_hand == pairs
    assert causal_pairs(float(new), float(cached), window) == pairs


def test_gqa_decode() -> None:
    # 4 heads and 2 key-value heads of 16; 3 sequences of 10 tokens
    op = _op(toy_program(toy_dense_model(), ONE, decode(3, 10)), "attention_scores")
    assert op.kind is OpKind.ATTENTION_DECODE
    assert op.work.flops == 2 * 4 * (16 + 16) * 3 * 10
    cache = 3 * 10 * 2 * (16 + 16) * 2  # sequences, tokens, key-value heads, key and value, bf16
    assert op.work.read_bytes == cache + 3 * 4 * 16 * 2  # and the queries
    assert op.work.write_bytes == 3 * 4 * 16 * 2


def test_gqa_prefill_with_a_cached_prefix() -> None:
    op = _op(toy_program(toy_dense_model(), ONE, prefill(2, 5, 7)), "attention_scores")
    pairs = 2 * (8 + 9 + 10 + 11 + 12)
    assert op.work.flops == 2 * 4 * 32 * pairs
    assert op.work.read_bytes == 2 * 12 * 2 * 32 * 2 + 2 * 5 * 4 * 16 * 2


def test_projections_of_gqa() -> None:
    program = toy_program(toy_dense_model(), ONE, decode(3, 10))
    # D = 64; q 4 x 16, k and v 2 x 16 each: 128 columns
    qkv, out = _op(program, "qkv_proj"), _op(program, "o_proj")
    assert qkv.work.flops == 2 * 3 * 64 * 128
    assert qkv.work.read_bytes == 64 * 128 * 2 + 3 * 64 * 2
    assert qkv.work.write_bytes == 3 * 128 * 2
    assert out.work.flops == 2 * 3 * 64 * 64


def test_key_value_heads_are_split_down_to_one() -> None:
    model = toy_dense_model()
    reads = {}
    for tp in (1, 2, 4):
        op = _op(toy_program(model, ParallelSpec(tp_size=tp), decode(1, 1000)), "attention_scores")
        reads[tp] = op.work.read_bytes - 4 / tp * 16 * 2
    assert reads[1] == 1000 * 2 * 32 * 2
    assert reads[2] == reads[1] / 2
    assert reads[4] == reads[2]  # the second pair of ranks holds copies


def test_a_layer_that_reuses_keys_projects_queries_only() -> None:
    own = GqaAttention(n_heads=4, n_kv_heads=2, head_dim=16, v_head_dim=16)
    reused = own.model_copy(update={"reuses_kv": True})
    program = toy_program(toy_dense_model(attention=reused), ONE, decode(1, 10))
    assert _op(program, "qkv_proj").work.flops == 2 * 64 * 64
    # it still reads the keys and values of the layer it borrows from
    assert _op(program, "attention_scores").work.read_bytes == 10 * 2 * 32 * 2 + 4 * 16 * 2


def test_window_caps_flops_and_bytes() -> None:
    windowed = GqaAttention(n_heads=4, n_kv_heads=2, head_dim=16, v_head_dim=16, sliding_window=8)
    model = toy_dense_model(attention=windowed)
    op = _op(toy_program(model, ONE, decode(1, 1000)), "attention_scores")
    assert op.work.flops == 2 * 4 * 32 * 8
    assert op.work.read_bytes == 8 * 2 * 32 * 2 + 4 * 16 * 2
    short = _op(toy_program(model, ONE, decode(1, 5)), "attention_scores")
    assert short.work.flops == 2 * 4 * 32 * 5


MLA = MlaAttention(
    n_heads=8, q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12
)  # latent 32 + 8 = 40 elements per token


def test_mla_decode_is_absorbed() -> None:
    program = toy_program(toy_dense_model(attention=MLA), ONE, decode(3, 10))
    scores = _op(program, "attention_scores")
    assert scores.work.flops == 2 * 8 * (40 + 32) * 3 * 10  # every head scores the latent and sums its first 32
    assert scores.work.read_bytes == 3 * 10 * 40 * 2 + 3 * 8 * 40 * 2  # one latent for all heads
    assert _op(program, "q_absorb").work.flops == 2 * 3 * 8 * 16 * 32
    assert _op(program, "v_absorb").work.flops == 2 * 3 * 8 * 32 * 12
    assert _op(program, "q_kv_a_proj").work.flops == 2 * 3 * 64 * (48 + 40)
    assert _op(program, "q_b_proj").work.flops == 2 * 3 * 48 * 8 * 24
    assert _op(program, "o_proj").work.flops == 2 * 3 * 8 * 12 * 64
    assert "kv_b_proj" not in {op.name for _, op in program.ops()}


def test_mla_prefill_is_naive_and_unpacks_the_cache_too() -> None:
    program = toy_program(toy_dense_model(attention=MLA), ONE, prefill(2, 5, 7))
    assert _op(program, "kv_b_proj").work.flops == 2 * (2 * 12) * 32 * 8 * (16 + 12)
    scores = _op(program, "attention_scores")
    assert scores.work.flops == 2 * 8 * (24 + 12) * 2 * (8 + 9 + 10 + 11 + 12)
    assert scores.work.read_bytes == 2 * 12 * 8 * (24 + 12) * 2 + 2 * 5 * 8 * 24 * 2
    assert "q_absorb" not in {op.name for _, op in program.ops()}


def test_mla_latent_is_not_split_by_tensor_parallelism() -> None:
    model = toy_dense_model(attention=MLA)
    one = _op(toy_program(model, ONE, decode(1, 1000)), "attention_scores")
    two = _op(toy_program(model, ParallelSpec(tp_size=2), decode(1, 1000)), "attention_scores")
    assert two.work.flops == one.work.flops / 2
    assert two.work.read_bytes == 1000 * 40 * 2 + 4 * 40 * 2


def test_context_parallel_mla_gathers_latents() -> None:
    program = toy_program(toy_dense_model(attention=MLA), ParallelSpec(cp_size=2), prefill(1, 10))
    gather = _op(program, "context_parallel_gather")
    assert gather.work.read_bytes == 10 * 40 * 2  # not the 8 x (24 + 12) elements of keys and values
    assert _op(program, "kv_b_proj").work.flops == 2 * 10 * 32 * 8 * (16 + 12)  # so each rank unpacks all


SPARSE = MLA.model_copy(update={"index_n_heads": 4, "index_head_dim": 6, "index_topk": 16})


def test_sparse_index_scores_all_and_keeps_some() -> None:
    program = toy_program(toy_dense_model(attention=SPARSE), ONE, decode(1, 1000))
    scores = _op(program, "index_scores")
    assert scores.work.flops == 2 * 4 * 6 * 1000
    # keys in 8 bits with a scale of 4 bytes each, and queries in 8 bits, beside a cache of 16 bits
    assert scores.work.read_bytes == pytest.approx(1000 * (6 + 4) + 4 * 6)
    assert scores.dtype is Dtype.FP8
    # four passes over the scores, of 4 bytes each
    assert _op(program, "index_top_k").work.read_bytes == 1000 * 4 * 4
    assert _op(program, "attention_scores").work.flops == 2 * 8 * (40 + 32) * 16


def test_sparse_prompts_are_absorbed_and_run_whole_tiles() -> None:
    """Queries of one prompt over the latents their index picked; kernels take 64 heads and all 16 places at a time."""
    program = toy_program(toy_dense_model(attention=SPARSE), ONE, prefill(2, 20))
    names = {op.name for _, op in program.ops()}
    assert {"q_absorb", "v_absorb"} <= names
    assert "kv_b_proj" not in names
    scores = _op(program, "attention_scores")
    assert scores.work.flops == 2 * (2 * 8 * (40 + 32)) * (16 * 17 / 2 + 4 * 16)
    assert scores.work.read_bytes == 2 * 20 * 40 * 2 + 2 * 20 * 8 * 40 * 2
    shape = scores.shape
    assert isinstance(shape, AttentionShape)
    assert (shape.n_heads, shape.n_kv_heads, shape.qk_head_dim, shape.v_head_dim) == (64, 1, 40, 32)
    assert causal_pairs(20.0, float(shape.kv_len) - 20.0, None) == 20 * 16


def test_context_ranks_share_the_index_of_sparse_attention() -> None:
    model, two = toy_dense_model(attention=SPARSE), ParallelSpec(cp_size=2)
    for step in (decode(2, 1000), prefill(2, 200, 800)):
        whole, part = toy_program(model, ONE, step), toy_program(model, two, step)
        for name in ("index_scores", "attention_scores"):
            assert _op(part, name).work.flops == _op(whole, name).work.flops / 2, name
        assert _op(part, "index_top_k").work.read_bytes == _op(whole, "index_top_k").work.read_bytes / 2
    gather = _op(toy_program(model, two, prefill(1, 10)), "context_parallel_gather")
    assert gather.work.read_bytes == 10 * (40 * 2 + 6)  # latents, and the index's keys


LINEAR = LinearAttention(
    variant="gated_delta_net", n_heads=4, n_weight_params=9000, n_proj_params=64 * 128, state_elements=4 * 16 * 16,
    flops_per_token=5000,
)  # fmt: skip


def test_linear_attention_does_not_see_the_context() -> None:
    model = toy_dense_model(attention=LINEAR)
    for context in (10, 10_000):
        op = _op(toy_program(model, ONE, decode(3, context)), "linear_attention_state")
        assert op.work.flops == 3 * 5000
        # the state of each sequence, fp32, in and out
        assert op.work.write_bytes == 3 * 4 * 16 * 16 * 4
        assert op.work.read_bytes == 3 * 4 * 16 * 16 * 4 + 3 * 2
    ops = toy_program(model, ONE, decode(3, 10)).ops()
    proj = [op for _, op in ops if op.name.startswith("linear_attention") and op.kind is OpKind.GEMM]
    first = {op.name: op.work.flops for op in proj}
    assert sum(first.values()) == pytest.approx(2 * 3 * 64 * 128)


def test_a_narrow_cache_is_read_in_fewer_bytes() -> None:
    storage = WeightStorage().model_copy(update={"kv_cache": Storage(dtype=Dtype.FP8)})
    wide = _op(toy_program(toy_dense_model(), ONE, decode(1, 1000)), "attention_scores")
    narrow = _op(toy_program(toy_dense_model(storage=storage), ONE, decode(1, 1000)), "attention_scores")
    assert wide.work.read_bytes - narrow.work.read_bytes == 1000 * 2 * 32
    assert wide.work.flops == narrow.work.flops


def test_int4_weights_read_16_bit_activations() -> None:
    storage = WeightStorage().model_copy(update={"attention": Storage(dtype=Dtype.INT4)})
    op = _op(toy_program(toy_dense_model(storage=storage), ONE, decode(3, 10)), "qkv_proj")
    # half a byte and its share of one fp16 scale per 128; activations stay bf16
    assert op.work.read_bytes == pytest.approx(64 * 128 * (0.5 + 2 / 128) + 3 * 64 * 2)


def test_deepseek_v3_absorbed_decode_by_hand() -> None:
    # 128 heads, latent 512 + 64; 61 layers, of which two kinds differ only in their FFN
    program = toy_program(load_model("deepseek-v3"), ONE, decode(32, 4096))
    flops = sum(op.work.flops * s.n_repeat for s, op in program.ops() if op.name == "attention_scores")
    read = sum(op.work.read_bytes * s.n_repeat for s, op in program.ops() if op.name == "attention_scores")
    assert flops == 61 * 2 * 128 * (576 + 512) * 32 * 4096
    assert read == 61 * 32 * (4096 * 576 * 2 + 128 * 576 * 2)
