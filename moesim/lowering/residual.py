"""What residual connections cost beyond an addition: hyper-connections (DeepSeek-V4) and attention over depth (Kimi-K3).

Letters: t tokens on the rank, D hidden size, n streams.
"""

from __future__ import annotations

from collections.abc import Iterable

from moesim.lowering.common import Context, elementwise, gemm
from moesim.ops import Op
from moesim.specs.model import LayerSpec

__all__ = ["lower_residual", "with_residual"]

GROUP = "norm"


def with_residual(ctx: Context, layer: LayerSpec, ops: Iterable[Op]) -> tuple[Op, ...]:
    """The operators of a layer with those of its residual connections before them."""
    return (*lower_residual(ctx, layer), *ops)


def lower_residual(ctx: Context, layer: LayerSpec) -> list[Op]:
    """Operators that mix residual states around each block of a layer; none for a plain addition.

    Hyper-connections (arXiv 2512.24880): per block a product with n D -> n (n + 2) that yields the mixing weights, n streams
    to one before it, and one and n to n after it. Attention over depth (arXiv 2607.24653): scores and the weighted sum of the
    earlier states in one kernel, so that each is read once (assumption). Neither is split by tensor parallelism.
    """
    n_blocks = int(layer.attention is not None) + int(layer.ffn is not None)
    ops: list[Op] = []
    if layer.residual_streams > 1:
        n, t = float(layer.residual_streams), ctx.tokens
        one = [
            gemm(ctx, "hyper_connection_weights", t, n * (n + 2.0), n * ctx.hidden, ctx.model.storage.router, GROUP),
            elementwise(ctx, "hyper_connection_in", t, ctx.hidden, GROUP, reads=n),
            elementwise(ctx, "hyper_connection_out", t, ctx.hidden, GROUP, reads=n + 1.0, writes=n),
        ]
        ops += one * n_blocks
    if layer.depth_sources > 0.0:
        mix = elementwise(ctx, "depth_attention", ctx.tokens, ctx.hidden, GROUP, reads=layer.depth_sources)
        ops += [mix] * n_blocks
    return ops
