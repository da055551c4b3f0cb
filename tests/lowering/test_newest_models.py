"""Operators of the architectures of 2026: latents that travel, streams, attention over depth, DeepSeek-V4's published flops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moesim.lowering import ExpertLayout, MoeLoad, Pass, expert_layout, lower, uniform_load
from moesim.lowering.common import Context, gemm
from moesim.lowering.residual import lower_residual
from moesim.ops import OpKind, Phase, Program
from moesim.specs import catalog
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec

NEWEST = ("deepseek-v4-flash", "deepseek-v4-pro", "kimi-k3", "kimi-linear-48b-a3b", "minimax-m3",
          "nemotron-3-nano-30b-a3b", "nemotron-3-super-120b-a12b", "nemotron-3-ultra-550b-a55b", "nemotron-h-56b",
          "llama-3.3-nemotron-super-49b", "glm-5.2", "qwen3.6-35b-a3b")  # fmt: skip
TP1, TP8 = ParallelSpec(), ParallelSpec(tp_size=8)
EP8 = ParallelSpec(dp_size=8, ep_size=8)


def program(model: ModelSpec, parallel: ParallelSpec, step: Pass) -> Program:
    layout = expert_layout(parallel, step.phase, 8)
    return lower(model, parallel, step, lambda ffn, _: _load(ffn, step, layout))


def _load(ffn: MoeFfn, step: Pass, layout: ExpertLayout) -> MoeLoad:
    experts, top_k = float(ffn.n_routed_experts), float(ffn.num_experts_per_tok)
    return uniform_load(step.n_tokens, experts, top_k, layout, step.n_tokens / layout.attention_dp_size, balanced=True)


def flops_by_name(made: Program) -> Counter[str]:
    found: Counter[str] = Counter()
    for segment in made.segments:
        for op in segment.ops:
            found[op.name] += len(segment.layers or (0,)) * op.work.flops
    return found


def equivalent_fp8_flops(name: str, context: float) -> float:
    """Flops of one token, in 8-bit ones as the DeepSeek-V4 report counts: 16-bit scores double, V4's 4-bit index half."""
    model = catalog.load_model(name)
    found = flops_by_name(program(model, TP1, Pass(Phase.DECODE, 1.0, 1.0, context)))
    experts = sum(
        2.0 * layer.ffn.n_active_params(model.hidden_size) for layer in model.layers if layer.ffn.kind == "moe"
    )
    outside = {
        "experts",
        "router",
        "shared_experts_up",
        "shared_experts_down",
        "shared_experts_act",
        "unpermute",
        "permute",
    }
    rest = sum(n for op, n in found.items() if op not in outside)
    index = -0.5 if name.startswith("deepseek-v4") else 0.0
    return experts + rest + found["attention_scores"] + index * found["index_scores"]


@pytest.mark.parametrize(("name", "percent"), [("deepseek-v4-pro", 27), ("deepseek-v4-flash", 10)])
def test_flops_of_deepseek_v4_are_the_published_share_of_v3_2(name, percent):
    """Section 1 of the report: 27% and 10% of DeepSeek-V3.2's flops per token at a million tokens."""
    million = float(2**20)
    found = 100 * equivalent_fp8_flops(name, million) / equivalent_fp8_flops("deepseek-v3.2", million)
    assert found == pytest.approx(percent, abs=0.6)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", NEWEST)
def test_lowered_flops_are_two_per_active_weight_and_token(name, phase):
    """Products with weights alone, on one rank; the embedding is looked up, and prefill has one row of logits a sequence."""
    model = catalog.load_model(name)
    step = Pass(phase, 4.0, 1.0 if phase is Phase.DECODE else 64.0, 0.0)
    made = program(model, TP1, step)
    found = 0.0
    for segment in made.segments:
        for op in segment.ops:
            if op.kind is OpKind.GEMM and op.name != "lm_head":
                found += len(segment.layers or (0,)) * op.work.flops
    inside = model.n_active_params - model.embedding_params - model.lm_head_params - model.other_params
    routed = sum(
        layer.ffn.num_experts_per_tok * layer.ffn.expert_params(model.hidden_size)
        for layer in model.layers
        if layer.ffn is not None and layer.ffn.kind == "moe"
    )
    assert found == pytest.approx(2.0 * step.n_tokens * (inside - routed), rel=0.01)


@pytest.mark.parametrize("name", [name for name in NEWEST if name != "glm-5.2"])
def test_tensor_ranks_share_the_work(name):
    model = catalog.load_model(name)
    step = Pass(Phase.DECODE, 8.0, 1.0, 4096.0)
    one, eight = (flops_by_name(program(model, p, step)) for p in (TP1, TP8))
    for op in ("attention_scores", "o_a_proj", "linear_attention_state", "output_gate_proj"):
        heads_left = 2.0 if name == "nemotron-3-nano-30b-a3b" else 1.0  # its two key heads are not split in eight
        assert eight[op] <= one[op] / 8 * heads_left + 1e-6, op
    assert eight["compressor_proj"] == one["compressor_proj"]


@pytest.mark.parametrize(("name", "latent"), [("nemotron-3-ultra-550b-a55b", 2048), ("kimi-k3", 3584)])
def test_tokens_travel_at_the_width_of_the_latent(name, latent):
    model = catalog.load_model(name)
    plain = model.model_dump()
    for layer in plain["layers"]:
        if layer["ffn"] is not None:
            layer["ffn"].pop("latent_size", None)
    wide = ModelSpec.model_validate(plain)
    step = Pass(Phase.PREFILL, 8.0, 1024.0)
    sent = {}
    for which, one in (("latent", model), ("hidden", wide)):
        ops = [op for segment in program(one, EP8, step).segments for op in segment.ops]
        sent[which] = next(op.work.read_bytes for op in ops if op.name == "combine")
        assert any(op.name == "latent_in_proj" for op in ops) is (which == "latent")
    expected = (latent * 2.0 + 16.0) / (model.hidden_size * 2.0 + 16.0)
    assert float(sent["latent"] / sent["hidden"]) == pytest.approx(expected)


def test_weight_only_formats_multiply_in_16_bits():
    model = catalog.load_model("kimi-k3")
    narrow = Storage(dtype=Dtype.NVFP4, weight_only=True)
    storage = model.storage.model_copy(update={"attention": narrow})
    ctx = Context.of(model.model_copy(update={"storage": storage}), TP1, Pass(Phase.DECODE, 8.0, 1.0, 100.0))
    op = gemm(ctx, "some", 8.0, 256.0, 512.0, narrow, "attention")
    assert (op.dtype, op.weight_dtype) == (Dtype.BF16, Dtype.NVFP4)
    assert op.work.read_bytes == 256 * 512 * 0.5625 + 8 * 512 * 2


def test_streams_are_read_and_written_around_both_blocks():
    model = catalog.load_model("deepseek-v4-pro")
    ctx = Context.of(model, TP1, Pass(Phase.DECODE, 32.0, 1.0, 100.0))
    moved = sum(
        op.work.read_bytes + op.work.write_bytes
        for op in lower_residual(ctx, model.layers[0])
        if "weights" not in op.name
    )
    assert moved == 2 * 32 * 7168 * 2 * ((4 + 1) + (5 + 4))
    assert lower_residual(ctx, catalog.load_model("deepseek-v3").layers[0]) == []


def test_depth_sources_of_kimi_k3_by_walking_its_layers():
    """Blocks of 12 layers are sealed at 0, 12, ...; each attention and each FFN reads those sealed and the running sum."""
    model = catalog.load_model("kimi-k3")
    sealed, read = 0, 0
    for i in range(93):
        read += sealed + 1 if sealed else 0
        sealed += i % 12 == 0
        read += sealed + 1
    assert sum(2 * layer.depth_sources for layer in model.layers) == pytest.approx(read)


def test_pipeline_stages_hand_over_all_streams():
    model = catalog.load_model("deepseek-v4-flash")
    made = program(model, ParallelSpec(pp_size=2), Pass(Phase.DECODE, 8.0, 1.0, 100.0))
    (send,) = made.stage_sends
    assert send.work.read_bytes == 8 * 4 * 4096 * 2


def test_a_million_tokens_of_deepseek_v4_by_hand():
    """Flash: 2 windows alone, 21 layers that keep 512 rows, 20 that read a row for each 128 tokens; 64 heads of 512."""
    model = catalog.load_model("deepseek-v4-flash")
    context = 2.0**20
    found = flops_by_name(program(model, TP1, Pass(Phase.DECODE, 1.0, 1.0, context - 1.0)))
    keys = 43 * 128 + 21 * 512 + 20 * context / 128
    assert found["attention_scores"] == pytest.approx(4 * 64 * 512 * keys, rel=1e-6)
    assert found["index_scores"] == pytest.approx(21 * 2 * 64 * 128 * context / 4, rel=1e-6)


@pytest.mark.parametrize("name", ["deepseek-v3.2", "deepseek-v4-flash", "glm-5", "minimax-m3"])
@pytest.mark.parametrize("phase", Phase)
def test_context_ranks_share_scores_and_index(name, phase):
    model = catalog.load_model(name)
    step = Pass(phase, 4.0, 1.0 if phase is Phase.DECODE else 4096.0, 4096.0)
    one, two = (flops_by_name(program(model, p, step)) for p in (TP1, ParallelSpec(cp_size=2)))
    for op in ("attention_scores", "index_scores"):
        assert two[op] == pytest.approx(one[op] / 2), op


def test_groups_without_sequences_cost_nothing_and_break_nothing():
    """Attention ranks may hold no sequence of a small batch."""
    model = catalog.load_model("deepseek-v4-flash")
    step = Pass(Phase.DECODE, 3.0, 1.0, 1000.0, group_batch=(3, 0, 0, 0))
    made = program(model, ParallelSpec(dp_size=4, ep_size=4), step)
    scores = [
        op for s in made.segments for op in s.ops if op.name in ("attention_scores", "index_scores", "index_top_k")
    ]
    assert scores
    for op in scores:
        assert np.isfinite(np.asarray(op.work.flops, dtype=float)).all()
        assert np.ravel(op.work.flops)[-1] == 0.0
