"""What an operator asks of a calibration: a kind of form, storage formats in order of preference, and a cache format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.ops import AttentionShape, CollectiveShape, GemmShape, MoeShape, Num, Op, OpKind
from moesim.specs.dtypes import Dtype

__all__ = ["Request", "request_of"]

_EIGHT_BIT = frozenset({Dtype.FP8, Dtype.FP8_BLOCK, Dtype.INT8})
_FOUR_BIT = frozenset({Dtype.NVFP4, Dtype.MXFP4, Dtype.INT4})


@dataclass(frozen=True, slots=True)
class Request:
    """Kind of form, formats of stored weights to try in turn, and format of the cache ('' where any will do)."""

    kind: str
    dtypes: tuple[str, ...]
    kv_dtype: str = ""


def request_of(op: Op) -> Request | None:
    """What the operator asks; None if no form can cost it."""
    shape = op.shape
    if isinstance(shape, MoeShape):
        return Request("moe", _formats(op, shape))
    if isinstance(shape, GemmShape):
        return Request("gemm", _formats(op, shape))
    if isinstance(shape, AttentionShape):
        if not _positive(shape.v_head_dim):
            return None
        kind = op.kind.value
        if not _positive(shape.kv_len):  # a state instead of keys
            return Request(f"linear_{kind}", ("bf16",))
        return Request(f"mla_{kind}" if shape.is_mla else kind, ("bf16",), _cache_format(op, shape))
    if isinstance(shape, CollectiveShape) and op.kind is not OpKind.SEND:
        return Request(op.kind.value, ("bf16",)) if shape.stride == 1 and shape.n_ranks <= 8 else None
    return None


def _positive(value: Num) -> bool:
    return value > 0.0 if isinstance(value, float) else bool(np.all(np.asarray(value) > 0))


def _formats(op: Op, shape: MoeShape | GemmShape) -> tuple[str, ...]:
    """The format of the stored weights first; then near ones of the same arithmetic.

    Four-bit weights under wider arithmetic: the other weight-only format stands in; eight-bit ones under bf16 arithmetic: bf16.
    """
    stored = op.weight_dtype if op.weight_dtype is not None else _stored(op, shape)
    if stored in (Dtype.FP32, Dtype.FP16):
        return (stored.value, "bf16")
    if stored is op.dtype:
        return (stored.value,)
    if stored in _FOUR_BIT:
        if op.dtype in _EIGHT_BIT:
            return (stored.value, "mxfp4", op.dtype.value) if stored is not Dtype.MXFP4 else ("mxfp4", op.dtype.value)
        return (stored.value, "int4" if stored is Dtype.MXFP4 else "mxfp4")
    return (stored.value, "bf16") if stored in _EIGHT_BIT else ("bf16",)


def _stored(op: Op, shape: MoeShape | GemmShape) -> Dtype:
    """Format of the weights by the bytes read, for operators that do not say it."""
    if op.dtype in _FOUR_BIT:
        return op.dtype
    if isinstance(shape, MoeShape):
        n_weights = shape.n_experts_hit * ((3.0 if shape.gated else 2.0) * shape.hidden_size * shape.inter_size)
    else:
        n_weights = shape.n * shape.k * shape.n_batch
    per_weight = _smallest(op.work.read_bytes, n_weights)
    if per_weight < 0.9:
        return Dtype.MXFP4
    if op.dtype in _EIGHT_BIT:
        return op.dtype
    return Dtype.BF16 if per_weight >= 1.9 else Dtype.INT8


def _cache_format(op: Op, shape: AttentionShape) -> str:
    """fp8 or bf16 cache, from the bytes a decode reads; prefill kernels differ less and take what there is."""
    if op.kind is not OpKind.ATTENTION_DECODE:
        return ""
    width = shape.qk_head_dim if shape.is_mla else shape.qk_head_dim + shape.v_head_dim
    rows = shape.batch * shape.kv_len * shape.n_kv_heads * width
    return "fp8" if _smallest(op.work.read_bytes, rows) < 1.9 else "bf16"


def _smallest(n_bytes: Num, n_elements: Num) -> float:
    if isinstance(n_bytes, float) and isinstance(n_elements, float):
        return n_bytes / max(n_elements, 1.0)
    return float(np.min(np.asarray(n_bytes) / np.maximum(np.asarray(n_elements), 1.0)))
