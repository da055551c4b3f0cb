"""Experts that work on a latent of the hidden state (LatentMoE): tokens travel, and experts compute, at the latent's width."""

from __future__ import annotations

from dataclasses import replace

from moesim.lowering.common import Context, gemm
from moesim.lowering.ffn import lower_moe as lower_plain
from moesim.lowering.load import MoeLoad
from moesim.ops import Op
from moesim.specs.model import MoeFfn

__all__ = ["lower_moe"]

#: What handles rows of routed tokens; router, shared experts, norm and the sum over ranks stay at the hidden width.
_ROUTED = frozenset({"permute", "dispatch", "expert_all_gather", "experts", "unpermute", "combine",
                     "expert_reduce_scatter"})  # fmt: skip


def lower_moe(ctx: Context, ffn: MoeFfn, load: MoeLoad) -> list[Op]:
    """A Mixture-of-Experts block, with the projections into and out of its latent if it has one.

    Both projections are on every rank: a token is projected before it travels and after its experts' outputs are summed
    (as in TensorRT-LLM's and vLLM's Nemotron-H). Where ranks hold partial sums of all tokens, they are added up after the
    projection.
    """
    wide = lower_plain(ctx, ffn, load)
    if ffn.latent_size is None:
        return wide
    latent = float(ffn.latent_size)
    narrow = lower_plain(replace(ctx, row_width=latent), ffn, load)
    ops = [n if w.name in _ROUTED else w for w, n in zip(wide, narrow, strict=True)]
    storage, seen = ctx.model.storage.shared_experts, ctx.tokens
    if ctx.exchanges:
        seen = seen / ctx.parallel.tp_size
    first = next(i for i, op in enumerate(ops) if op.name in _ROUTED)
    last = max(i for i, op in enumerate(ops) if op.name in _ROUTED)
    into = gemm(ctx, "latent_in_proj", seen, latent, ctx.hidden, storage, "shared_experts")
    out = gemm(ctx, "latent_out_proj", seen, ctx.hidden, latent, storage, "shared_experts")
    return [*ops[:first], into, *ops[first : last + 1], out, *ops[last + 1 :]]
