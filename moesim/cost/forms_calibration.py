"""A calibration: fitted families of operators of one device and software stack, and the cost of an `Op` by them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moesim.cost.forms import Array, Correction, Form, Interval, Parameters, Prediction, Target, evaluate
from moesim.cost.forms_all import form_of
from moesim.cost.forms_batch import identity, is_scalar, price_array, price_scalars
from moesim.cost.forms_collective import COLLECTIVES_FITTED
from moesim.cost.forms_eager import EAGER_KERNELS
from moesim.cost.forms_request import request_of
from moesim.cost.result import OpCost
from moesim.errors import InputError
from moesim.ops import Op, Shape
from moesim.specs.base import Origin
from moesim.specs.hardware import DeviceSpec

__all__ = ["Calibration", "ErrorStats", "Family", "FamilyKey"]

_MOST_SHAPES = 20_000
#: Groups of operators that a whole MoE layer's measured time contains.
_IN_WHOLE_LAYERS = frozenset({"router", "permute"})
_INCLUDED = OpCost(0.0, origin=Origin.FITTED, error_frac=0.0)


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
    is_converged: bool = True

    @property
    def form(self) -> Form:
        """The form that the parameters belong to."""
        return form_of(self.key.kind, self.key.kernel)

    @property
    def is_eager(self) -> bool:
        """Whether whole MoE layers of an eager kernel were measured."""
        return self.key.kind == "moe" and self.key.kernel in EAGER_KERNELS

    def predict(self, shape: Shape) -> Prediction:
        """Times for a shape of this family's kind; without a correction the domain is the box of the sizes that were seen."""
        found = evaluate(self.form, self.params, shape, self.target, self.correction, self.interval)
        if self.correction is not None or not self.domain:
            return found
        return replace(found, distance=np.broadcast_to(box_distance(self.domain, shape), found.time_s.shape))


@dataclass(frozen=True, slots=True)
class _Memory:
    """What a calibration has answered before: families by what was asked, and costs of shapes (at most `_MOST_SHAPES`)."""

    candidates: dict[tuple[str, str, str], tuple[Family, ...]]
    costs: dict[Hashable, OpCost]

    def keep(self, key: Hashable, cost: OpCost) -> None:
        """Remember a cost; all are forgotten when there are too many."""
        if len(self.costs) >= _MOST_SHAPES:
            self.costs.clear()
        self.costs[key] = cost


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted families of one device and stack; usable as `moesim.cost.CalibratedOps`.

    `moe_kernel` names the eager kernel that answers for MoE layers where whole layers were measured ('' for a serving stack).
    """

    device: str
    stack: str
    version: str
    families: tuple[Family, ...]
    source: str
    date: str
    note: str = ""
    moe_kernel: str = ""
    _memory: _Memory = field(default_factory=lambda: _Memory({}, {}), init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Device, stack and version, for the report."""
        return f"{self.device}/{self.stack} {self.version}".strip()

    def candidates(self, kind: str, dtype: str, kv_dtype: str = "") -> tuple[Family, ...]:
        """Families of a kind for operands stored as `dtype`, those with most shapes first.

        Of eager kernels only `moe_kernel`, never a mixture; of collectives the best-covered family, a stack's own before NCCL's.
        """
        found = self._memory.candidates.get((kind, dtype, kv_dtype))
        if found is None:
            fits = [
                f
                for f in self.families
                if f.key.kind == kind and f.key.dtype == dtype and (not kv_dtype or f.key.kv_dtype in ("", kv_dtype))
            ]
            fits.sort(key=lambda f: (-f.n_groups, -f.n_points))
            found = tuple(f for f in fits if not f.is_eager or f.key.kernel == self.moe_kernel)
            found = found[:1] if kind in COLLECTIVES_FITTED else found
            self._memory.candidates[kind, dtype, kv_dtype] = found
        return found

    def with_kernel(self, kernel: str) -> Calibration:
        """The same calibration answering for MoE layers with another of its eager kernels.

        Raises:
            InputError: it has no such kernel.
        """
        known = [f.key.kernel for f in self.families if f.is_eager]
        if kernel not in known:
            raise InputError(
                "calibration has no such eager kernel",
                field="calibration",
                value=kernel,
                allowed=", ".join(known) or "none",
            )
        return replace(self, moe_kernel=kernel)

    def nearest(self, kind: str, dtype: str, shape: Shape, kv_dtype: str = "") -> tuple[Family, Prediction] | None:
        """Of the fitting families the one whose measured points lie nearest to the shapes (by the median), with its prediction.

        Stacks pick kernels by shape, and so does this (small families count as farther: distance * (1 + 1 / shapes)).
        """
        fits = self.candidates(kind, dtype, kv_dtype)
        if not fits:
            return None
        if len(fits) == 1:
            return fits[0], fits[0].predict(shape)
        tried = [(f, f.predict(shape)) for f in fits]
        return min(tried, key=lambda pair: float(np.median(pair[1].distance)) * _remoteness(pair[0]))

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The operator's fitted cost, or None where this calibration has no family for it.

        Raises:
            InputError: the calibration belongs to another device.
        """
        return self.cost_all((op,), device)[0]

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator; those that one set of families costs are evaluated together, and shapes are remembered.

        Of several families, each shape (each point of a grid) gets the nearest, see `nearest`. Where MoE layers were measured
        whole (`moe_kernel`), their router, permute and combine are in that time, and cost nothing of their own.

        Raises:
            InputError: the calibration belongs to another device.
        """
        if device.name != self.device:
            problem = f"calibration {self.name!r} belongs to another device"
            raise InputError(problem, field="calibration", value=device.name, allowed=self.device)
        found: list[OpCost | None] = [None] * len(ops)
        waiting: dict[int, tuple[tuple[Family, ...], dict[Shape, list[int]]]] = {}
        arrays: dict[Hashable, OpCost] = {}
        for i, op in enumerate(ops):
            if self.moe_kernel and op.group in _IN_WHOLE_LAYERS:
                found[i] = _INCLUDED
                continue
            fits = self.families_for(op)
            if not fits:
                continue
            if is_scalar(op.shape):
                known = self._memory.costs.get((id(fits), op.shape))
                if known is None:
                    waiting.setdefault(id(fits), (fits, {}))[1].setdefault(op.shape, []).append(i)
                found[i] = known
                continue
            key = (id(fits), *identity(op.shape))
            if key not in arrays:
                arrays[key] = price_array(fits, op.shape)
            found[i] = arrays[key]
        for fits, shapes in waiting.values():
            for (shape, places), cost in zip(shapes.items(), price_scalars(fits, list(shapes)), strict=True):
                self._memory.keep((id(fits), shape), cost)
                for i in places:
                    found[i] = cost
        return found

    def families_for(self, op: Op) -> tuple[Family, ...]:
        """Families that can cost it: of the first format that has any."""
        request = request_of(op)
        if request is None:
            return ()
        for dtype in request.dtypes:
            fits = self.candidates(request.kind, dtype, request.kv_dtype)
            if fits:
                return fits
        return ()


def _remoteness(family: Family) -> float:
    return 1.0 + 1.0 / max(1, family.n_groups)


def box_distance(domain: Mapping[str, tuple[float, float]], shape: Shape) -> Array:
    """0.5 inside the box of sizes that were seen, 1 + log2 of how far outside it the farthest size is."""
    beyond: Array = np.zeros(())
    for name, (low, high) in domain.items():
        size = getattr(shape, name, None)
        if low > 0.0 and size is not None:
            values = np.asarray(size, dtype=np.float64)
            beyond = np.maximum(beyond, np.maximum(values / high, low / np.maximum(values, 1e-9)))
    outside = np.maximum(beyond, 1.0)
    return np.asarray(np.where(outside > 1.0 + 1e-9, 1.0 + np.log2(outside), 0.5))
