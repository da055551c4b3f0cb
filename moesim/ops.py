"""What must be done: operators with their work and shape, and the program of one forward pass.

An `Op` says nothing about time; `moesim.cost` does. Fields typed `Num` are floats, or arrays that broadcast over
``[..., L, R]`` (layers of a segment, ranks of a stage), so that one code path serves a single estimate, every rank of every
layer, and grids of thousands of points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.specs.dtypes import Dtype

__all__ = [
    "REDUCES",
    "SCORES",
    "AttentionShape",
    "CollectiveShape",
    "ElementwiseShape",
    "ExchangeShape",
    "GemmShape",
    "Lane",
    "MoeShape",
    "Num",
    "Op",
    "OpKind",
    "Phase",
    "Program",
    "Segment",
    "Shape",
    "Work",
    "experts_call",
    "maximum",
    "minimum",
]

Num: TypeAlias = float | NDArray[np.float64]


class Phase(StrEnum):
    """Which kind of forward pass."""

    PREFILL = "prefill"
    DECODE = "decode"


class Lane(StrEnum):
    """The engine of a rank that an operator occupies."""

    COMPUTE = "compute"
    COMM = "comm"


class OpKind(StrEnum):
    """Kinds of operators that cost alike."""

    GEMM = "gemm"
    GROUPED_GEMM = "grouped_gemm"
    ATTENTION_PREFILL = "attention_prefill"
    ATTENTION_DECODE = "attention_decode"
    ELEMENTWISE = "elementwise"
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    DISPATCH = "dispatch"
    COMBINE = "combine"
    SEND = "send"


COLLECTIVES = frozenset({OpKind.ALL_REDUCE, OpKind.ALL_GATHER, OpKind.REDUCE_SCATTER, OpKind.SEND})
EXCHANGES = frozenset({OpKind.DISPATCH, OpKind.COMBINE})
#: Partial sums of a layer that tensor-parallel ranks add up, in dense models and in mixtures.
REDUCES = ("attention", "ffn", "moe_attention", "moe_ffn")
#: Attention over cached keys.
SCORES = "scores"


def experts_call(weights: Dtype, ep_size: int) -> str:
    """Name of the call that runs experts of a format, all of them on each rank or split over ranks.

    >>> experts_call(Dtype.MXFP4, 1), experts_call(Dtype.MXFP4, 8)
    ('mxfp4_experts', 'mxfp4_experts, split')
    """
    return f"{weights.value}_experts" + (", split" if ep_size > 1 else "")


@dataclass(frozen=True, slots=True)
class Work:
    """Arithmetic and memory traffic of an operator on one rank; it adds and scales.

    >>> (Work(2.0, 3.0, 5.0) + Work(7.0, 11.0, 13.0)).moved_bytes
    32.0
    """

    flops: Num = 0.0
    read_bytes: Num = 0.0
    write_bytes: Num = 0.0

    @property
    def moved_bytes(self) -> Num:
        """Bytes read and written."""
        return self.read_bytes + self.write_bytes

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.read_bytes + other.read_bytes, self.write_bytes + other.write_bytes)

    def __mul__(self, n: float) -> Work:
        return Work(self.flops * n, self.read_bytes * n, self.write_bytes * n)


@dataclass(frozen=True, slots=True)
class GemmShape:
    """[m, k] x [k, n], `n_batch` times with different operands."""

    m: Num
    n: Num
    k: Num
    n_batch: Num = 1.0


@dataclass(frozen=True, slots=True)
class MoeShape:
    """Routed experts on one rank: the load it got and the expert slices it holds.

    `n_assignments` token-expert pairs arrived, `n_experts_hit` of `n_local_experts` got at least one, `n_padded` is the pairs
    after each hit expert's count is rounded up to the GEMM's tile, `max_expert_tokens` the most any local expert got.
    """

    n_tokens: Num
    n_assignments: Num
    n_padded: Num
    n_experts_hit: Num
    max_expert_tokens: Num
    n_local_experts: Num
    hidden_size: Num
    inter_size: Num
    top_k: Num
    gated: bool = True


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Scores and values of `batch` sequences, `q_len` new tokens each, over `kv_len` keys, on one rank's heads."""

    batch: Num
    q_len: Num
    kv_len: Num
    n_heads: Num
    n_kv_heads: Num
    qk_head_dim: Num
    v_head_dim: Num
    window: int | None = None
    is_mla: bool = False


@dataclass(frozen=True, slots=True)
class CollectiveShape:
    """A collective over `n_ranks` ranks that are `stride` apart; `message_bytes` is one rank's full buffer."""

    n_ranks: int
    message_bytes: Num
    stride: int = 1


@dataclass(frozen=True, slots=True)
class ExchangeShape:
    """Traffic of an expert dispatch or combine, per rank: through scale-up ports and through NICs, out and in.

    `message_bytes` is one token's row, `token_bytes` the rows of the rank's own tokens, `n_experts` the layer's experts. In low
    latency mode a row travels per assignment, straight to its rank; in normal mode (`is_low_latency` False) once per rank, and
    across domains in two hops. `pairs` are bytes by layer and pair of ranks, [L, R, R] through scale-up ports and through NICs,
    for simulations that ask.
    """

    n_ranks: int
    up_out_bytes: Num
    up_in_bytes: Num
    nic_out_bytes: Num
    nic_in_bytes: Num
    n_messages: Num
    message_bytes: Num = 0.0
    token_bytes: Num = 0.0
    n_experts: Num = 1.0
    is_low_latency: bool = True
    pairs: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


@dataclass(frozen=True, slots=True)
class ElementwiseShape:
    """`n_tokens` rows of `width` elements, in `n_kernels` launches."""

    n_tokens: Num
    width: Num
    n_kernels: int = 1


Shape: TypeAlias = GemmShape | MoeShape | AttentionShape | CollectiveShape | ExchangeShape | ElementwiseShape


@dataclass(frozen=True, slots=True)
class Op:
    """One operator of one layer on one rank.

    `dtype` is how the operands are stored (it picks the arithmetic), `hidden_under` names an operator of the same layer that
    this one runs beside when overlap is on, `group` the row of the breakdown it belongs to. `weight_dtype` is the format of
    stored weights, which for weight-only formats is not that of the arithmetic; None where there are none. `side_bytes` is what
    `n_side_kernels` small kernels around it move, which measured tables time together with it: they are not in `work`.
    `is_grouped` tells experts that run as grouped products, not as one fused call, and the kernels around them. `inside` names
    what may contain a small kernel, so that stacks do not launch it: a norm the all-reduce before it (`REDUCES`), rotation and
    writing of keys the attention call (`SCORES`), choosing experts the call that runs them (`experts_call`).
    """

    name: str
    kind: OpKind
    work: Work
    shape: Shape
    dtype: Dtype = Dtype.BF16
    group: str = "other"
    hidden_under: str | None = None
    weight_dtype: Dtype | None = None
    side_bytes: Num = 0.0
    n_side_kernels: int = 0
    is_grouped: bool = False
    inside: str = ""

    @property
    def lane(self) -> Lane:
        """The engine it occupies."""
        return Lane.COMM if self.kind in COLLECTIVES or self.kind in EXCHANGES else Lane.COMPUTE


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive work of equal shape: `layers` are the indices of the model layers that `ops` is done for.

    Arrays inside `ops` have one row per layer in `layers`, or broadcast over them. Embedding and head are segments without
    layers and run once.
    """

    name: str
    ops: tuple[Op, ...]
    layers: tuple[int, ...] = ()

    @property
    def n_repeat(self) -> int:
        """How often `ops` is done."""
        return max(1, len(self.layers))

    @property
    def is_moe(self) -> bool:
        """True if the segment holds routed experts."""
        return any(op.kind is OpKind.GROUPED_GEMM for op in self.ops)


@dataclass(frozen=True, slots=True)
class Program:
    """One forward pass as one rank of each pipeline stage sees it.

    `n_tokens` is the new tokens of the whole instance (all attention-DP ranks), `n_sequences` its sequences; `pp_size` stages
    share the segments' layers in order. With `micro_batches` the layers are run by these programs, interleaved, instead: halves
    of the pass, or a forward and another program as in DualPipe.
    """

    phase: Phase
    segments: tuple[Segment, ...]
    n_ranks: int
    n_tokens: Num
    n_sequences: Num
    pp_size: int = 1
    stage_sends: tuple[Op, ...] = ()
    overlap: bool = False
    micro_batches: tuple[Program, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def ops(self) -> Iterator[tuple[Segment, Op]]:
        """Every operator with its segment."""
        for segment in self.segments:
            for op in segment.ops:
                yield segment, op


def maximum(a: Any, b: Any) -> Any:
    """The larger of two numbers or arrays; plain floats stay plain, which is ten times quicker."""
    if isinstance(a, float) and isinstance(b, float):
        return a if a >= b else b
    return np.maximum(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two numbers or arrays; plain floats stay plain."""
    if isinstance(a, float) and isinstance(b, float):
        return a if a <= b else b
    return np.minimum(a, b)
