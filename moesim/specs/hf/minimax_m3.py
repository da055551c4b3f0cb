"""MiniMax-M3: MiniMax-M2 with a shared expert, leading dense layers, and an index that picks blocks of keys.

Shapes are those of `modeling_minimax_m3_vl.py` in transformers 5.23.
"""

from __future__ import annotations

from moesim.specs.hf.deepseek import moe_plan
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.parts import FULL, Parts, assemble, base, dense_ffn, read_gqa, tied
from moesim.specs.hf.sparse import moe_ffn
from moesim.specs.model import Attention, Ffn, GqaAttention

__all__ = ["minimax_m3"]

#: Their names in `sparse_attention_config` and, in configs that transformers wrote, beside the other keys.
_INDEX = {"n_heads": ("sparse_num_index_heads", "index_n_heads"), "dim": ("sparse_index_dim", "index_head_dim"),
          "block": ("sparse_block_size", "index_block_size"), "top": ("sparse_topk_blocks", "index_topk_blocks")}  # fmt: skip


def minimax_m3(fields: Fields) -> Parts:
    """MiniMax-M3.

    Raises:
        InputError: an output gate, or an index that yields values of its own.
    """
    sizes = base(fields)
    n = sizes.n_layers
    if fields.flag("attention_output_gate"):
        raise fields.refuse("attention_output_gate", "is not modelled")
    norm = "head" if fields.flag("use_qk_norm", True) else "none"
    if norm == "head" and fields.text("qk_norm_type", "per_head") != "per_head":
        raise fields.refuse("qk_norm_type", "is not understood", "known: per_head")
    full = read_gqa(fields, sizes.hidden_size, head_dim=128, qk_norm=norm)
    attentions = _plan(fields, n, full)
    n_shared = fields.count("n_shared_experts", default=1, least=0)
    shared = n_shared * fields.count("shared_intermediate_size", default=0, least=0)
    width = "moe_intermediate_size" if fields.has("moe_intermediate_size") else "intermediate_size"
    fields.has("intermediate_size")
    moe = moe_ffn(fields, width=width, router_bias=fields.flag("use_routing_bias", True), n_shared_experts=n_shared,
                  shared_intermediate_size=shared)  # fmt: skip
    dense = dense_ffn(fields, "dense_intermediate_size")
    ffns: list[Ffn] = [moe if sparse else dense for sparse in moe_plan(fields, n)]
    n_mtp = fields.count("num_nextn_predict_layers", default=0, least=0)
    fields.has("num_mtp_modules")
    return assemble(sizes, attentions, ffns, tie=tied(fields), mtp_layers=n_mtp)


def _plan(fields: Fields, n_layers: int, full: GqaAttention) -> list[Attention]:
    """Full attention, or over blocks picked by an index, for each layer."""
    sparse = fields.sub("sparse_attention_config")
    for key in ("sparse_score_type", "sparse_init_block", "sparse_local_block", "use_sparse_attention"):
        sparse.has(key)  # the local block is one of those kept
    for key in ("index_local_blocks", "index_topk_blocks", "index_block_size", "index_n_heads", "index_head_dim"):
        fields.has(key)
    every = [1] * n_layers
    if sparse.data and sparse.any("use_sparse_attention", True) is False:
        return [full] * n_layers
    by_freq = sparse.kinds("sparse_attention_freq", n_layers, {0: False, 1: True})
    kinds = fields.kinds("layer_types", n_layers, {FULL: False, "minimax_m3_sparse": True})
    plan = kinds or by_freq
    if plan is None or not any(plan):
        return [full] * n_layers
    disabled = sparse.kinds("sparse_disable_index_value", n_layers, {0: 0, 1: 1}) or every
    if any(is_sparse and not off for is_sparse, off in zip(plan, disabled, strict=True)):
        raise sparse.refuse("sparse_disable_index_value", "an index with values of its own is not modelled")
    sizes = {}
    for name, (inside, outside) in _INDEX.items():
        sizes[name] = sparse.count(inside) if sparse.has(inside) else fields.count(outside)
    index = {"index_n_heads": sizes["n_heads"], "index_head_dim": sizes["dim"],
             "index_topk": sizes["top"] * sizes["block"]}  # fmt: skip
    picked = full.model_copy(update=index)
    return [picked if is_sparse else full for is_sparse in plan]
