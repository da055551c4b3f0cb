"""A calibration: fitted families of operators of one device and software stack, and the cost of an `Op` by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from moesim.cost.forms import Correction, Form, Interval, Parameters, Prediction, Target, evaluate
from moesim.cost.forms_all import form_of
from moesim.cost.forms_collective import COLLECTIVES_FITTED
from moesim.cost.result import OpCost
from moesim.errors import InputError
from moesim.ops import AttentionShape, CollectiveShape, GemmShape, MoeShape, Num, Op, OpKind, Shape
from moesim.specs.base import Origin
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.hardware import DeviceSpec

__all__ = ["Calibration", "ErrorStats", "Family", "FamilyKey"]


@dataclass(frozen=True, slots=True)
class FamilyKey:
    """Rows of measurements that one set of parameters describes: one operator kind, number formats and kernel."""

    kind: str
    dtype: str = "bf16"
    act_dtype: str = "bf16"
    kv_dtype: str = ""
    kernel: str = ""

    @property
    def name(self) -> str:
        """Readable identity, unique within a calibration."""
        parts = (
            self.kind,
            self.dtype,
            self.act_dtype if self.act_dtype != self.dtype else "",
            self.kv_dtype,
            self.kernel,
        )
        return "/".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class ErrorStats:
    """Errors on points that the fit did not see; `left_out` says what was left out together."""

    n: int
    n_groups: int
    median_frac: float
    mean_frac: float
    bias_frac: float
    p90_frac: float
    coverage_frac: float
    left_out: str


@dataclass(frozen=True, slots=True)
class Family:
    """One fitted family."""

    key: FamilyKey
    params: Parameters
    target: Target
    n_points: int
    n_groups: int
    relative_sd: Mapping[str, float] = field(default_factory=dict)
    domain: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    correction: Correction | None = None
    interval: Interval | None = None
    held_out: ErrorStats | None = None

    @property
    def form(self) -> Form:
        """The form that the parameters belong to."""
        return form_of(self.key.kind)

    def predict(self, shape: Shape) -> Prediction:
        """Times for a shape of this family's kind."""
        return evaluate(self.form, self.params, shape, self.target, self.correction, self.interval)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted families of one device and stack; usable as `moesim.cost.CalibratedOps`."""

    device: str
    stack: str
    version: str
    families: tuple[Family, ...]
    source: str
    date: str
    note: str = ""

    @property
    def name(self) -> str:
        """Device, stack and version, for the report."""
        return f"{self.device}/{self.stack} {self.version}".strip()

    def candidates(self, kind: str, dtype: str, kv_dtype: str = "") -> tuple[Family, ...]:
        """Families of a kind for operands stored as `dtype`, those with most shapes first."""
        fits = [
            f
            for f in self.families
            if f.key.kind == kind and f.key.dtype == dtype and (not kv_dtype or f.key.kv_dtype in ("", kv_dtype))
        ]
        return tuple(sorted(fits, key=lambda f: (-f.n_groups, -f.n_points)))

    def nearest(self, kind: str, dtype: str, shape: Shape, kv_dtype: str = "") -> tuple[Family, Prediction] | None:
        """Of the fitting families the one whose measured points lie nearest to the shape, with its prediction.

        Stacks pick kernels by shape, and so does this (small families count as farther: distance * (1 + 1 / shapes)).
        A collective uses its best-covered family: a stack's own all-reduce before NCCL's.
        """
        fits = self.candidates(kind, dtype, kv_dtype)
        if not fits:
            return None
        if kind in COLLECTIVES_FITTED or len(fits) == 1:
            return fits[0], fits[0].predict(shape)
        tried = [(f, f.predict(shape)) for f in fits]
        return min(tried, key=lambda pair: float(np.median(pair[1].distance)) * (1.0 + 1.0 / max(1, pair[0].n_groups)))

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The operator's fitted cost, or None where this calibration has no family for it.

        Raises:
            InputError: the calibration belongs to another device.
        """
        if device.name != self.device:
            problem = f"calibration {self.name!r} belongs to another device"
            raise InputError(problem, field="calibration", value=device.name, allowed=self.device)
        request = _request(op)
        if request is None:
            return None
        kind, dtypes, kv_dtype = request
        for dtype in dtypes:
            found = self.nearest(kind, dtype, op.shape, kv_dtype)
            if found is not None:
                return _op_cost(found[0], found[1], is_link=isinstance(op.shape, CollectiveShape))
        return None


def _op_cost(family: Family, p: Prediction, *, is_link: bool) -> OpCost:
    memory = p.terms.memory_s + p.terms.streaming_s
    error = None
    if family.interval is not None:
        with np.errstate(over="ignore"):
            error = float(np.mean((p.upper_s - p.lower_s) / (2.0 * p.time_s)))
    zero = 0.0
    return OpCost(
        time_s=_num(p.time_s),
        compute_s=zero if is_link else _num(p.terms.compute_s),
        memory_s=zero if is_link else _num(memory),
        link_s=_num(memory) if is_link else zero,
        latency_s=_num(p.terms.overhead_s),
        origin=Origin.FITTED,
        error_frac=error,
        is_extrapolated=bool(np.any(p.distance > 1.0)),
    )


def _num(value: np.ndarray) -> Num:
    return float(value) if np.ndim(value) == 0 else np.asarray(value, dtype=np.float64)


def _request(op: Op) -> tuple[str, tuple[str, ...], str] | None:
    """Kind, storage formats to try in turn, and cache format of an operator; None if no form can cost it."""
    shape = op.shape
    if isinstance(shape, MoeShape):
        return "moe", _formats(op, _moe_weights(shape)), ""
    if isinstance(shape, GemmShape):
        return "gemm", _formats(op, shape.n * shape.k * shape.n_batch), ""
    if isinstance(shape, AttentionShape):
        if not _positive(shape.kv_len) or not _positive(shape.v_head_dim):
            return None
        kind = op.kind.value
        return (f"mla_{kind}" if shape.is_mla else kind), ("bf16",), _cache_format(op, shape)
    if isinstance(shape, CollectiveShape) and op.kind is not OpKind.SEND:
        return (op.kind.value, ("bf16",), "") if shape.stride == 1 and shape.n_ranks <= 8 else None
    return None


def _positive(value: Num) -> bool:
    return bool(np.all(np.asarray(value) > 0))


def _moe_weights(shape: MoeShape) -> Num:
    return shape.n_experts_hit * ((3.0 if shape.gated else 2.0) * shape.hidden_size * shape.inter_size)


def _formats(op: Op, n_weights: Num) -> tuple[str, ...]:
    """Formats whose stored size explains the bytes read best, the operator's arithmetic format first.

    `Op.dtype` picks the arithmetic, which for weight-only formats is not how the weights are stored; the bytes read tell.
    """
    per_weight = float(np.min(np.asarray(op.work.read_bytes) / np.maximum(np.asarray(n_weights), 1.0)))
    if op.dtype in (Dtype.FP8, Dtype.FP8_BLOCK, Dtype.INT8):
        first: tuple[str, ...] = (op.dtype.value,)
        return first if per_weight >= 0.9 else ("mxfp4", *first)
    if op.dtype in (Dtype.NVFP4, Dtype.MXFP4, Dtype.INT4):
        return (op.dtype.value,)
    if per_weight < 0.9 * Storage(dtype=Dtype.INT8).bytes_per_element:
        return ("mxfp4", "int4")
    return ("bf16",) if per_weight >= 1.9 else ("int8", "bf16")


def _cache_format(op: Op, shape: AttentionShape) -> str:
    """fp8 or bf16 cache, from the bytes a decode reads; prefill kernels differ less and take what there is."""
    if op.kind is not OpKind.ATTENTION_DECODE:
        return ""
    width = shape.qk_head_dim if shape.is_mla else shape.qk_head_dim + shape.v_head_dim
    rows = np.asarray(shape.batch) * np.asarray(shape.kv_len) * np.asarray(shape.n_kv_heads) * np.asarray(width)
    per_element = float(np.min(np.asarray(op.work.read_bytes) / np.maximum(rows, 1.0)))
    return "fp8" if per_element < 1.9 else "bf16"


def summary(families: Iterable[Family]) -> tuple[str, ...]:
    """Names of families, for messages."""
    return tuple(f.key.name for f in families)
