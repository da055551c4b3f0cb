"""Model, split and pass to a `Program`: what every rank must do in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from moesim.lowering.attention import lower_attention
from moesim.lowering.common import Context, Pass, collective, elementwise, gemm
from moesim.lowering.ffn import lower_dense
from moesim.lowering.latent import lower_moe
from moesim.lowering.load import ExpertLayout, MoeLoad, drawn_load, expected_load, uniform_load
from moesim.lowering.residual import with_residual
from moesim.lowering.route import Routed, route_model
from moesim.ops import Num, Op, OpKind, Phase, Program, Segment
from moesim.specs.model import DenseFfn, GqaAttention, LayerSpec, ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec

__all__ = [
    "Context",
    "ExpertLayout",
    "MoeLoad",
    "Pass",
    "Routed",
    "Shared",
    "drawn_load",
    "expected_load",
    "expert_layout",
    "lower",
    "route_model",
    "uniform_load",
]

LoadFor = Callable[[MoeFfn, tuple[int, ...]], MoeLoad]
#: Operators by what they depend on, with the object that the key names by its identity.
Shared = dict[Hashable, tuple[Any, tuple[Op, ...]]]


def expert_layout(
    parallel: ParallelSpec, phase: Phase, domain_size: int, *, low_latency: bool | None = None
) -> ExpertLayout:
    """Where tokens start and experts live for a split.

    High-throughput exchanges deduplicate copies, low-latency ones do not; by default prefill uses the former, decode the latter.
    """
    return ExpertLayout(
        n_ranks=parallel.n_stage_ranks,
        ep_size=parallel.ep_size,
        etp_size=parallel.etp_size,
        domain_size=domain_size,
        tokens_are_everywhere=parallel.dp_size * parallel.cp_size == 1 or parallel.ep_size == 1,
        dedup=phase is Phase.PREFILL if low_latency is None else not low_latency,
        attention_dp_size=parallel.dp_size,
    )


def lower(
    model: ModelSpec, parallel: ParallelSpec, step: Pass, load_for: LoadFor | None = None, *, overlap: bool = False,
    shared: Shared | None = None,
) -> Program:  # fmt: skip
    """The program of one pass.

    Args:
        model: the architecture; MTP layers are not run.
        parallel: the split; `ParallelSpec.check` is the caller's business.
        step: the pass, for the whole instance.
        load_for: gives, for a MoE block and the indices of its layers among the model's layers, the load of its ranks.
            Needed for MoE models.
        overlap: whether operators marked `hidden_under` run beside communication.
        shared: keeps what depends on a rank's own tokens and its TP and CP alone (embedding, attention, dense blocks, head), for
            further splits of the same model: those operators are then the same objects.

    Raises:
        ValueError: a MoE model without `load_for`.
    """
    ctx = Context.of(model, parallel, step)
    parts = _Parts(ctx, shared)
    segments = [Segment("embedding", parts.of("embedding", model, lambda: _embedding(ctx)))]
    for layer, indices in model.layer_groups:
        segments.append(Segment(layer.kind, _layer(ctx, layer, indices, load_for, parts), indices))
    segments.append(Segment("head", parts.of("head", model, lambda: _head(ctx))))
    sends: tuple[Op, ...] = ()
    if parallel.pp_size > 1:
        sends = (_stage_send(ctx),)
    return Program(
        phase=step.phase, segments=tuple(segments), n_ranks=parallel.n_stage_ranks, n_tokens=step.n_tokens,
        n_sequences=step.batch, pp_size=parallel.pp_size, stage_sends=sends, overlap=overlap,
    )  # fmt: skip


class _Parts:
    """Operators of one pass that other splits may share."""

    __slots__ = ("key", "shared")

    def __init__(self, ctx: Context, shared: Shared | None) -> None:
        self.shared = shared if ctx.step.group_batch is None else None
        if self.shared is not None:
            p, step = ctx.parallel, ctx.step
            numbers = (ctx.sequences, ctx.tokens, step.new_tokens, step.cached_tokens)
            self.key = (step.phase, p.tp_size, p.cp_size, ctx.exchanges, *(_plain(x) for x in numbers))

    def of(self, name: str, owner: object, build: Callable[[], list[Op]]) -> tuple[Op, ...]:
        """The operators that `owner` (a model or block) makes of this pass."""
        if self.shared is None:
            return tuple(build())
        key = (name, id(owner), self.key)
        found = self.shared.get(key)
        if found is None:
            found = self.shared[key] = (owner, tuple(build()))
        return found[1]


def _plain(x: Num) -> Hashable:
    return (x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x


def _layer(
    ctx: Context, layer: LayerSpec, indices: tuple[int, ...], load_for: LoadFor | None, parts: _Parts
) -> tuple[Op, ...]:
    if layer.stack == "encoder" and ctx.step.phase is Phase.DECODE:
        return ()
    ops: tuple[Op, ...] = ()
    attention, crossing, ffn = layer.attention, layer.cross_attention, layer.ffn
    if attention is not None:
        # only what follows at once can take scattered tokens
        scatters = isinstance(ffn, MoeFfn) and crossing is None and ctx.exchanges
        name = "attention, scattered" if scatters else "attention"
        ops += parts.of(name, attention, lambda: lower_attention(ctx, attention, scatters=scatters))
    if crossing is not None:
        ops += parts.of("cross_attention", crossing, lambda: _cross_attention(ctx, crossing))
    if isinstance(ffn, MoeFfn):
        if load_for is None:
            raise ValueError("a MoE model needs the load of its experts")
        ops += tuple(lower_moe(ctx, ffn, load_for(ffn, indices)))
    elif isinstance(ffn, DenseFfn):
        ops += parts.of("dense", ffn, lambda: lower_dense(ctx, ffn))
    return with_residual(ctx, layer, ops)


def _cross_attention(ctx: Context, attention: GqaAttention) -> list[Op]:
    """A decoder's attention over the encoder's output: the cost of self-attention over as many keys (assumption)."""
    return lower_attention(ctx, attention)


def _embedding(ctx: Context) -> list[Op]:
    """Rows of the table; it is split over the vocabulary, so TP ranks sum what they found."""
    ops = [elementwise(ctx, "embedding", ctx.tokens, ctx.hidden, "head")]
    if ctx.parallel.tp_size > 1:
        message = ctx.tokens * (ctx.hidden * ctx.activation_bytes)
        ops.append(collective(ctx, "embedding_all_reduce", OpKind.ALL_REDUCE, ctx.parallel.tp_size, message))
    return ops


def _head(ctx: Context) -> list[Op]:
    """Final norm, logits of the last token of each sequence (of every token in decode), and sampling."""
    rows: Num = ctx.sequences if ctx.step.phase is Phase.PREFILL else ctx.tokens
    tp, vocab = ctx.parallel.tp_size, float(ctx.model.vocab_size)
    storage = ctx.model.storage
    head = storage.embedding if ctx.model.tie_word_embeddings else storage.lm_head
    ops = [
        elementwise(ctx, "final_norm", ctx.tokens, ctx.hidden, "norm", reads=2.0),
        gemm(ctx, "lm_head", rows, vocab / tp, ctx.hidden, head, "head"),
    ]
    if tp > 1:
        ops.append(collective(ctx, "logits_all_gather", OpKind.ALL_GATHER, tp, rows * (vocab * 2.0)))
    ops.append(elementwise(ctx, "sampling", rows, vocab, "head", reads=3.0, writes=1.0, n_kernels=3))
    return ops


def _stage_send(ctx: Context) -> Op:
    """Residual states to the next pipeline stage; ranks of a stage are `n_stage_ranks` apart from their peers."""
    message = ctx.tokens * (ctx.model.residual_width * ctx.activation_bytes / ctx.parallel.tp_size)
    return collective(ctx, "stage_send", OpKind.SEND, 2, message, ctx.parallel.n_stage_ranks)
