"""Memory per rank: a sum of named parts, checked with primes, published figures and hand formulas."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from moesim.memory import (
    MemoryBytes,
    Serving,
    WeightBytes,
    kv_bytes_per_sequence,
    rank_memory,
    rank_weights,
    stage_layers,
)
from moesim.specs.catalog import load_model, names
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.model import GqaAttention, LinearAttention, MlaAttention, ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.testing import toy_dense_model, toy_moe_model

ONE = ParallelSpec()
PRIMES = (2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0)


def _weights(model: ModelSpec, parallel: ParallelSpec = ONE) -> WeightBytes:
    return rank_weights(model, parallel, range(len(model.layers)), first=True, last=True)


def test_no_part_is_dropped() -> None:
    weights = WeightBytes(*PRIMES)
    assert weights.total == sum(PRIMES)
    doubled = weights + weights
    assert [getattr(doubled, f.name) for f in fields(doubled)] == [2 * p for p in PRIMES]
    memory = MemoryBytes(weights, 23.0, 29.0, 31.0, 37.0)
    assert memory.total == sum(PRIMES) + 23 + 29 + 31 + 37
    assert memory.without_kv == sum(PRIMES) + 29 + 31 + 37


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        # 61 layers x (512 + 64) x bf16: 70 kB per token (DeepSeek, Insights into DeepSeek-V3, arXiv 2505.09343, table 1)
        ("deepseek-v3", 70_272),
        # 80 layers x 8 heads x 128 x key and value x bf16 (same table has 516,096 for the 405B model below)
        ("llama-3.1-70b", 327_680),
        ("llama-3.1-405b", 516_096),
        ("mixtral-8x7b", 131_072),
        ("qwen3-32b", 262_144),
    ],
)
def test_kv_bytes_per_token_as_published(name: str, kv_bytes: int) -> None:
    model = load_model(name)
    bf16 = model.model_copy(
        update={"storage": model.storage.model_copy(update={"kv_cache": Storage(dtype=Dtype.BF16)})}
    )
    assert kv_bytes_per_sequence(bf16, ONE, 4096.0) / 4096 == kv_bytes


def test_windows_cap_what_a_layer_keeps() -> None:
    attention = GqaAttention(n_heads=4, n_kv_heads=2, head_dim=16, v_head_dim=16, sliding_window=100)
    model = toy_dense_model(attention=attention)
    row = 2 * (16 + 16) * 2  # per layer and token
    assert kv_bytes_per_sequence(model, ONE, 50.0) == 2 * 50 * row
    assert kv_bytes_per_sequence(model, ONE, 5000.0) == 2 * 100 * row
    # pages: 100 tokens are 7 pages of 16
    assert kv_bytes_per_sequence(model, ONE, 5000.0, block_tokens=16) == 2 * 112 * row


def test_gpt_oss_alternates_windows() -> None:
    # 36 layers, every other one with a window of 128; 8 heads of 64
    model = load_model("gpt-oss-120b")
    row = 8 * 128 * model.storage.kv_cache.bytes_per_element
    assert kv_bytes_per_sequence(model, ONE, 8192.0) == 18 * row * (8192 + 128)


def test_linear_layers_keep_a_state_of_fixed_size() -> None:
    linear = LinearAttention(
        variant="mamba", n_heads=4, n_weight_params=9000, n_proj_params=8192, state_elements=1024, flops_per_token=1
    )
    model = toy_dense_model(attention=linear)
    assert kv_bytes_per_sequence(model, ONE, 10.0) == kv_bytes_per_sequence(model, ONE, 1e6) == 2 * 1024 * 4


def test_reused_keys_are_not_cached_again() -> None:
    own = GqaAttention(n_heads=4, n_kv_heads=2, head_dim=16, v_head_dim=16)
    reused = own.model_copy(update={"reuses_kv": True})
    assert kv_bytes_per_sequence(toy_dense_model(attention=reused), ONE, 100.0) == 0
    full, less = (_weights(toy_dense_model(attention=a), ParallelSpec(tp_size=2)).attention for a in (own, reused))
    assert full - less == 2 * 64 * 1 * 32 * 2  # 2 layers, D x one head per rank x (16 + 16), bf16


def test_mla_cache_is_copied_and_gqa_split_over_tensor_ranks() -> None:
    mla = MlaAttention(
        n_heads=8, q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12
    )
    for tp in (1, 2, 4):
        split = ParallelSpec(tp_size=tp)
        assert kv_bytes_per_sequence(toy_dense_model(attention=mla), split, 10.0) == 2 * 10 * 40 * 2
        heads = max(1, 2 // tp)
        assert kv_bytes_per_sequence(toy_dense_model(), split, 10.0) == 2 * 10 * heads * 32 * 2
    assert kv_bytes_per_sequence(toy_dense_model(), ParallelSpec(cp_size=2), 10.0) == 2 * 5 * 2 * 32 * 2


@pytest.mark.parametrize("name", names("model"))
def test_weights_of_one_rank_are_all_parameters_in_their_formats(name: str) -> None:
    model = load_model(name)
    # in one format of one byte the bytes are the parameters
    one_byte = Storage(dtype=Dtype.FP8)
    kinds = ("attention", "dense_ffn", "routed_experts", "shared_experts", "router", "embedding", "lm_head", "norm")
    storage = model.storage.model_copy(update=dict.fromkeys(kinds, one_byte))
    counted = _weights(model.model_copy(update={"storage": storage})).total
    assert counted == pytest.approx(model.n_params, rel=1e-9)


def test_expert_weights_are_spread_and_others_copied() -> None:
    model = toy_moe_model(n_experts=8, shared_inter_size=128)
    one = _weights(model)
    assert one.routed_experts == 2 * 8 * 3 * 64 * 128 * 2
    assert one.router == 2 * 8 * 64 * 2
    assert one.shared_experts == 2 * 3 * 64 * 128 * 2
    spread = _weights(model, ParallelSpec(dp_size=4, ep_size=4))
    assert spread.routed_experts == one.routed_experts / 4
    assert (spread.router, spread.shared_experts, spread.attention) == (one.router, one.shared_experts, one.attention)
    sliced = _weights(model, ParallelSpec(tp_size=4))
    assert sliced.routed_experts == one.routed_experts / 4
    assert sliced.shared_experts == one.shared_experts / 4
    redundant = _weights(model, ParallelSpec(dp_size=4, ep_size=4, redundant_experts=4))
    assert redundant.routed_experts == one.routed_experts / 8 * 12 / 4


def test_a_dense_block_is_a_moe_of_one_expert() -> None:
    dense = toy_dense_model(inter_size=256)
    moe = toy_moe_model(inter_size=256, n_experts=1, top_k=1)
    for parallel in (ONE, ParallelSpec(tp_size=2), ParallelSpec(pp_size=2)):
        a = rank_memory(dense, parallel, Serving(4, 100), 80e9)
        b = rank_memory(moe, parallel, Serving(4, 100), 80e9)
        assert a.weights.dense_ffn == b.weights.routed_experts
        assert b.weights.total - a.weights.total == b.weights.router
        assert (a.kv_cache, a.comm_buffers, a.runtime_reserve) == (b.kv_cache, b.comm_buffers, b.runtime_reserve)


@pytest.mark.parametrize(("n", "pp"), [(5, 1), (5, 2), (61, 4), (61, 61), (32, 8)])
def test_stages_cover_the_layers_once(n: int, pp: int) -> None:
    stages = stage_layers(n, pp)
    assert [i for stage in stages for i in stage] == list(range(n))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


def test_tied_embeddings_are_held_by_both_ends_of_a_pipeline() -> None:
    model = toy_dense_model().model_copy(update={"tie_word_embeddings": True})
    table = 512 * 64 * 2
    both = _weights(model)
    assert (both.embedding, both.lm_head) == (table, 0)
    last = rank_weights(model, ParallelSpec(pp_size=2), range(1, 2), first=False, last=True)
    assert (last.embedding, last.lm_head) == (0, table)


def test_the_fullest_stage_counts() -> None:
    model = toy_dense_model(n_layers=3, vocab_size=16)
    memory = rank_memory(model, ParallelSpec(pp_size=2), Serving(1, 16), 80e9)
    per_layer = _weights(model).attention / 3
    assert memory.weights.attention == 2 * per_layer


def test_serving_scales_what_it_should() -> None:
    model = toy_dense_model()
    base = rank_memory(model, ONE, Serving(4, 160), 80e9)
    twice = rank_memory(model, ONE, Serving(8, 160), 80e9)
    assert base.kv_cache == 4 * 160 * 2 * 2 * 32 * 2
    assert twice.kv_cache == 2 * base.kv_cache
    assert twice.weights == base.weights
    # 17 tokens take two pages of 16
    assert rank_memory(model, ONE, Serving(1, 17), 80e9).kv_cache == 32 * 2 * 2 * 32 * 2
    # attention-DP ranks share sequences out, the fullest has one more
    shared = rank_memory(model, ParallelSpec(dp_size=4), Serving(9, 160), 80e9)
    assert shared.kv_cache == base.kv_cache / 4 * math.ceil(9 / 4)
    assert base.runtime_reserve == 1.5e9 + 0.03 * 80e9
