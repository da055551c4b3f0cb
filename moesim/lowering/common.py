"""What every lowering needs: the pass, the split, and constructors of common operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from moesim.ops import (
    CollectiveShape,
    ElementwiseShape,
    GemmShape,
    Num,
    Op,
    OpKind,
    Phase,
    Work,
    minimum,
)
from moesim.specs.dtypes import ELEMENT_BYTES, Dtype, Storage
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec

__all__ = ["Context", "Pass", "after_reduce", "collective", "elementwise", "gemm"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of an instance: `batch` sequences with `new_tokens` each, over `cached_tokens` already in the cache.

    In decode `new_tokens` is 1 (or more with speculation) and `cached_tokens` is the context so far; in prefill
    `cached_tokens` is a reused prefix or the chunks before. `batch` and `cached_tokens` may be arrays: one axis of points, or
    grids that end in two axes of length 1, which stand for layers and ranks.

    `group_batch` and `group_cached` give every attention-DP group its own sequences (`batch` is their sum) and its own mean
    context, where groups are not alike. `low_latency` picks the kernels of expert exchanges: by default those of decode.

    Raises:
        ValueError: a grid whose last two axes would be taken for layers and ranks; groups that do not add up.
    """

    phase: Phase
    batch: Num
    new_tokens: Num = 1.0
    cached_tokens: Num = 0.0
    group_batch: tuple[int, ...] | None = None
    group_cached: tuple[float, ...] | None = None
    low_latency: bool | None = None

    def __post_init__(self) -> None:
        if self.group_batch is not None:
            if sum(self.group_batch) != self.batch or min(self.group_batch) < 0:
                raise ValueError("group_batch must add up to batch")
            if self.group_cached is not None and len(self.group_cached) != len(self.group_batch):
                raise ValueError("group_cached needs a context for each group")
            return
        for value in (self.batch, self.new_tokens, self.cached_tokens):
            if isinstance(value, np.ndarray) and value.ndim > 1 and value.shape[-2:] != (1, 1):
                raise ValueError(
                    f"a grid must end in two axes of length 1, for layers and ranks; got shape {value.shape}"
                )

    @property
    def is_low_latency(self) -> bool:
        """Which of the two modes expert exchanges run in."""
        return self.phase is Phase.DECODE if self.low_latency is None else self.low_latency

    @property
    def n_tokens(self) -> Num:
        """New tokens of the whole instance."""
        return self.batch * self.new_tokens

    @property
    def kv_len(self) -> Num:
        """Keys that the last new token sees."""
        return self.cached_tokens + self.new_tokens


@dataclass(frozen=True, slots=True)
class Context:
    """A pass on one rank: `tokens` and `sequences` of the most loaded attention-DP rank, after context parallelism."""

    model: ModelSpec
    parallel: ParallelSpec
    step: Pass
    sequences: Num
    tokens: Num
    row_width: float | None = None

    @classmethod
    def of(cls, model: ModelSpec, parallel: ParallelSpec, step: Pass) -> Context:
        """Split the pass: whole sequences over attention-DP ranks (the fullest one counts), prefill tokens over CP ranks."""
        dp, cp = parallel.dp_size, parallel.cp_size
        if step.group_batch is not None:
            return cls._of_groups(model, parallel, step, step.group_batch)
        sequences = step.batch if dp == 1 else ceil_div(step.batch, dp)
        tokens = sequences * step.new_tokens
        if cp > 1 and step.phase is Phase.PREFILL:
            tokens = tokens / cp
        return cls(model, parallel, step, sequences, tokens)

    @classmethod
    def _of_groups(cls, model: ModelSpec, parallel: ParallelSpec, step: Pass, groups: tuple[int, ...]) -> Context:
        """Every rank's own share, [1, R]: groups of neighbouring ranks differ in sequences and contexts."""
        if len(groups) != parallel.dp_size:
            raise ValueError(f"{len(groups)} groups for {parallel.dp_size} attention-DP ranks")
        n_inside = parallel.n_stage_ranks // parallel.dp_size
        sequences = np.repeat(np.asarray(groups, dtype=float), n_inside)[None, :]
        if step.group_cached is not None:
            cached = np.repeat(np.asarray(step.group_cached, dtype=float), n_inside)[None, :]
            step = replace(step, cached_tokens=cached)
        tokens = sequences * step.new_tokens
        if parallel.cp_size > 1 and step.phase is Phase.PREFILL:
            tokens = tokens / parallel.cp_size
        return cls(model, parallel, step, sequences, tokens)

    @property
    def exchanges(self) -> bool:
        """Whether tokens travel to experts on other ranks."""
        return self.parallel.dp_size * self.parallel.cp_size > 1 and self.parallel.ep_size > 1

    @property
    def hidden(self) -> float:
        """Width of the residual stream, or of rows of another width where one is set."""
        return float(self.model.hidden_size) if self.row_width is None else self.row_width

    @property
    def activation(self) -> Dtype:
        """Format of activations between operators."""
        return self.model.storage.activation

    @property
    def activation_bytes(self) -> float:
        """Bytes of one activation element; the residual stream is never narrower than 16 bits."""
        return max(2.0, ELEMENT_BYTES[self.activation])


def ceil_div(a: Num, b: float) -> Num:
    """Ceiling of a / b, for floats and arrays."""
    quotient = a / b
    return float(math.ceil(quotient)) if isinstance(quotient, float) else np.ceil(quotient)


def gemm(
    ctx: Context,
    name: str,
    m: Num,
    n: Num,
    k: Num,
    storage: Storage,
    group: str,
    *,
    n_batch: float = 1.0,
    under: str | None = None,
) -> Op:
    """A matrix product with a stored weight: 2 m n k flops; weight, input and output each cross memory once.

    Where the product takes 8-bit inputs, a kernel before it reads the activations and writes them narrow (as SGLang's
    `per_token_group_quant_fp8` before DeepGEMM's; tables of such products time both).
    """
    act = ctx.activation_bytes
    weight_bytes = n * k * (n_batch * storage.bytes_per_element)
    # weight-only formats, int4 among them: activations stay as they are
    is_plain = storage.weight_only or storage.dtype is Dtype.INT4
    narrow = act if is_plain else min(act, max(1.0, ELEMENT_BYTES[storage.dtype]))
    input_bytes = m * k * (n_batch * narrow)
    work = Work(m * n * k * (2.0 * n_batch), weight_bytes + input_bytes, m * n * (n_batch * act))
    is_cast = narrow < act
    cast_bytes = m * k * (n_batch * (act + narrow)) if is_cast else 0.0
    shape = GemmShape(m, n, k, n_batch)
    return Op(name, OpKind.GEMM, work, shape, storage.arithmetic, group, under, storage.dtype, cast_bytes, int(is_cast))


def elementwise(
    ctx: Context,
    name: str,
    tokens: Num,
    width: Num,
    group: str,
    *,
    reads: Num = 1.0,
    writes: Num = 1.0,
    n_kernels: int = 1,
    under: str | None = None,
    inside: str = "",
) -> Op:
    """A pass over rows of activations: `reads` and `writes` count how often `width` elements cross memory per token."""
    row = width * ctx.activation_bytes
    work = Work(tokens * width, tokens * reads * row, tokens * writes * row)
    shape = ElementwiseShape(tokens, width, n_kernels)
    return Op(name, OpKind.ELEMENTWISE, work, shape, ctx.activation, group, under, inside=inside)


def after_reduce(ctx: Context, what: str) -> str:
    """Name of the all-reduce of `what` (attention, ffn) that precedes a norm; '' where ranks hold whole sums."""
    if ctx.parallel.tp_size == 1:
        return ""
    return f"moe_{what}" if ctx.model.is_moe else what


def collective(ctx: Context, name: str, kind: OpKind, n_ranks: int, message_bytes: Num, stride: int = 1) -> Op:
    """A collective over `n_ranks` ranks; `message_bytes` is the full buffer of one rank."""
    work = Work(0.0, message_bytes, message_bytes)
    shape = CollectiveShape(n_ranks, message_bytes, stride)
    return Op(name, kind, work, shape, ctx.activation, "communication")


def causal_pairs(new_tokens: Num, cached_tokens: Num, window: int | None) -> Num:
    """Query-key pairs of one sequence under a causal mask: each new token sees all before it, at most `window`.

    >>> causal_pairs(4.0, 10.0, None)
    50.0
    >>> causal_pairs(4.0, 0.0, 2)
    7.0
    """
    if window is None:
        return new_tokens * cached_tokens + new_tokens * (new_tokens + 1.0) * 0.5
    width = float(window)
    growing = minimum(new_tokens, _at_least_zero(width - cached_tokens))
    seen: Num = (
        growing * minimum(cached_tokens, width) + growing * (growing + 1.0) * 0.5 + (new_tokens - growing) * width
    )
    return seen


def _at_least_zero(x: Num) -> Num:
    return (x if x > 0.0 else 0.0) if isinstance(x, float) else np.maximum(x, 0.0)
