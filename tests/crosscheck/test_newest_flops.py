"""Flops of the architectures of 2026 as lowered, against what PyTorch counts in `transformers`' own code of small models."""

from __future__ import annotations

from collections import Counter

import pytest
from test_transformers_params import SMALL, build

from moesim.lowering.attention import lower_attention
from moesim.lowering.common import Context, Pass
from moesim.lowering.residual import lower_residual
from moesim.ops import OpKind, Phase
from moesim.specs import hf
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

T = 256
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}
BASE = {k: v for k, v in SMALL.items() if k != "num_hidden_layers"} | {"max_position_embeddings": 1024, **TOKENS}
CASES = {
    "deepseek_v4": {
        "model_type": "deepseek_v4", **BASE, **EXPERTS, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 32,
        "qk_rope_head_dim": 8, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 12, "sliding_window": 16,
        "compress_ratios": [0, 4, 128], "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "num_hash_layers": 1,
        "hc_mult": 4, "num_nextn_predict_layers": 0,
    },
    "minimax_m3": {
        "model_type": "minimax_m3", **BASE, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 48, "dense_intermediate_size": 96, "shared_intermediate_size": 48, "n_shared_experts": 1,
        "num_local_experts": 8, "num_experts_per_tok": 2, "moe_layer_freq": [0, 1],
        "sparse_attention_config": {
            "use_sparse_attention": True, "sparse_index_dim": 16, "sparse_num_index_heads": 2, "sparse_topk_blocks": 2,
            "sparse_block_size": 8, "sparse_attention_freq": [0, 1], "sparse_local_block": 1,
        },
    },
    "nemotron_h": {
        "model_type": "nemotron_h", **BASE, **EXPERTS, "hybrid_override_pattern": "M*E-", "num_key_value_heads": 2,
        "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "chunk_size": 8,
        "conv_kernel": 4, "intermediate_size": 96, "moe_shared_expert_intermediate_size": 64, "moe_latent_size": 32,
    },
    "kimi_linear": {
        "model_type": "kimi_linear", **BASE, "num_hidden_layers": 2, "num_key_value_heads": 4, "intermediate_size": 96,
        "moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_token": 2, "num_shared_experts": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "linear_attn_config": {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4, "full_attn_layers": [2],
                               "kda_layers": [1]},
    },
}  # fmt: skip


def counted(name: str) -> dict[str, int]:
    """Flops of one pass by kind of product: ``mm`` (with weights) and ``bmm`` (batched)."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    model = build(CASES[name], device="cpu", attn_implementation="eager", experts_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(T).reshape(1, T) % 32, use_cache=False)
    return {str(op).rpartition(".")[2]: n for op, n in counter.get_flop_counts()["Global"].items()}


def lowered(spec: ModelSpec) -> tuple[float, Counter[str]]:
    """Flops of all products with weights, experts and head included, and those of each operator outside FFNs."""
    ctx = Context.of(spec, ParallelSpec(), Pass(Phase.PREFILL, 1.0, float(T)))
    by_name: Counter[str] = Counter()
    products = 2.0 * T * spec.lm_head_params
    for layer in spec.layers:
        attention = lower_attention(ctx, layer.attention) if layer.attention is not None else []
        for op in [*attention, *lower_residual(ctx, layer)]:
            by_name[op.name] += op.work.flops
            products += op.work.flops if op.kind is OpKind.GEMM else 0.0
        if isinstance(layer.ffn, MoeFfn):
            bias = layer.ffn.n_routed_experts if layer.ffn.router_bias else 0
            products += 2.0 * T * (layer.ffn.n_active_params(spec.hidden_size) - bias)
        elif layer.ffn is not None:
            products += 2.0 * T * layer.ffn.n_params(spec.hidden_size)
    return products, by_name


@pytest.mark.parametrize("name", ["minimax_m3", "nemotron_h", "kimi_linear"])
def test_products_with_weights_are_those_that_pytorch_counts(name):
    products, _ = lowered(hf.import_config(CASES[name], name))
    assert counted(name)["mm"] == products


def test_products_of_deepseek_v4_are_those_that_pytorch_counts():
    """The grouped output projection is batched there; the streams are collapsed once more before the head."""
    products, by_name = lowered(hf.import_config(CASES["deepseek_v4"], "v4"))
    n, hidden = 4, 64
    found = counted("deepseek_v4")
    assert found["mm"] == products - by_name["o_a_proj"] + 2 * T * n * (n * hidden)
    scores = sum(
        4 * T * (T + rows) * 4 * 32 for rows in (0, T // 4, T // 128)
    )  # the eager code masks, it does not skip
    index, mixing = 2 * T * (T // 4) * 2 * 16, 3 * 2 * (2 * T * n * n * hidden)
    assert found["bmm"] == scores + index + by_name["o_a_proj"] + mixing


def test_scores_of_deepseek_v4_count_what_the_mask_keeps():
    """By hand, query by query: a window, and of the rows that are complete, all (heavy) or the best (sparse)."""
    _, by_name = lowered(hf.import_config(CASES["deepseek_v4"], "v4"))
    window = sum(min(t + 1, 16) for t in range(T))
    sparse = sum(min((t + 1) / 4, 8) for t in range(T))
    heavy = sum((t + 1) / 128 for t in range(T))
    pairs = 3 * window + sparse + heavy
    assert by_name["attention_scores"] == pytest.approx(4 * 4 * 32 * pairs, rel=1e-9)
    assert by_name["index_scores"] == pytest.approx(2 * 2 * 16 * sum((t + 1) / 4 for t in range(T)), rel=1e-9)


def test_scores_of_minimax_m3_count_the_blocks_kept():
    _, by_name = lowered(hf.import_config(CASES["minimax_m3"], "m3"))
    full, picked = sum(t + 1 for t in range(T)), sum(min(t + 1, 16) for t in range(T))
    assert by_name["attention_scores"] == pytest.approx(2 * 4 * 32 * (full + picked), rel=1e-9)
    assert by_name["index_scores"] == pytest.approx(2 * 2 * 16 * full, rel=1e-9)
