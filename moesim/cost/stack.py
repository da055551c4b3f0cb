"""What a serving stack adds to the kernels of its tables: few physical parameters of a backend on a GPU generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from moesim.cost.estimate import CalibratedOps, known_costs, roofline
from moesim.cost.forms_batch import is_scalar, price_quickest
from moesim.cost.forms_calibration import Calibration
from moesim.cost.result import OpCost
from moesim.ops import Num, Op, OpKind, minimum
from moesim.specs.base import Origin
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import DeviceSpec

__all__ = [
    "DEFAULT_STACK",
    "LAUNCH_SHARPNESS",
    "LentCalibration",
    "QuickestKernel",
    "StackParams",
    "StackedCalibration",
    "eager_s",
    "n_launches",
    "with_quickest_experts",
]


@dataclass(frozen=True, slots=True)
class StackParams:
    """What a backend on a GPU generation adds to, or takes from, the operators of its tables.

    Factors on measured times: `*_call_ratio` on what a call costs whatever its size (tables time single calls; inside a captured
    graph launches overlap), the others on what grows with size; `prompt_ratio` on passes that carry prompts. `quantise_s` is
    spent before every product with 8- or 4-bit inputs. Host: `step_s` per pass, `prompt_pass_s` per pass that carries prompts and
    `prompt_s` per prompt begun in it; such passes run eagerly and take `launch_s` per kernel (`n_launches`), beside the device.
    Client: `request_s` from the client and back, `token_s` to split a prompt into tokens, per token, `wait_passes` between a
    request's arrival and the scheduler's look at it, in passes, `cold_s` and `other_client_s` more where the client did not warm
    the server up, or is not known.
    """

    gemm_ratio: float = 0.91
    gemm_call_ratio: float = 0.8
    experts_ratio: float = 0.89
    experts_call_ratio: float = 0.75
    attention_ratio: float = 1.1
    attention_call_ratio: float = 0.64
    elementwise_call_ratio: float = 4.5
    comm_ratio: float = 0.9
    quantise_s: float = 0.5e-6
    step_s: float = 0.1e-3
    prompt_ratio: float = 1.15
    launch_s: float = 11e-6
    prompt_pass_s: float = 1.9e-3
    prompt_s: float = 1.2e-3
    request_s: float = 1e-3
    token_s: float = 3e-6
    wait_passes: float = 1.0
    cold_s: float = 2.2e-3
    other_client_s: float = 10e-3

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All parameters."""
        return tuple(f.name for f in fields(cls))


#: For stacks that nobody fitted: what the fitted ones have in common.
DEFAULT_STACK = StackParams()

#: Half-width of the interval of a small kernel, whose launches a stack's fit scales together. Assumption.
SMALL_KERNELS_ERROR_FRAC = 0.5
#: Time of launches and device time of an eager pass meet in a smooth maximum with this exponent: the host runs ahead of the
#: device where kernels are long, and the device waits where they are short (assumption; chosen with all rows in view).
LAUNCH_SHARPNESS = 1.5
#: Kernels that an eager pass launches for fused experts (gates, ordering, two casts, two products, activation, sum, and what the
#: Python around them launches) and for the state of linear attention in chunks (assumptions from the code of these stacks).
EXPERT_KERNELS, CHUNKED_STATE_KERNELS = 17.0, 12.0
_IN_EXPERTS = "permute"
_WITH_WORK = frozenset({OpKind.GEMM, OpKind.GROUPED_GEMM, OpKind.ATTENTION_PREFILL, OpKind.ATTENTION_DECODE})
#: Ratio of the peaks' two times from which on a device is clearly bound by one of them.
CLEARLY = 2.0
_INCLUDED = OpCost(0.0, origin=Origin.FITTED, error_frac=0.0)


@dataclass(frozen=True, slots=True)
class LentCalibration:
    """Tables of a sibling device that stand in: the same chip on another board. Costs are taken as they are (assumption).

    Kinds in `without` are left to others.
    """

    own: CalibratedOps
    sibling: DeviceSpec
    without: frozenset[OpKind] = frozenset()

    @property
    def name(self) -> str:
        """Whose tables they are."""
        return f"{self.own.name} (lent)"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The sibling's cost."""
        return None if op.kind in self.without else self.own.cost(op, self.sibling)

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator."""
        found = known_costs(self.own, ops, self.sibling)
        return [None if op.kind in self.without else cost for op, cost in zip(ops, found, strict=True)]


@dataclass(frozen=True, slots=True)
class QuickestKernel:
    """Experts by the quickest of several kernels that were measured near the shape; everything else by `rest`.

    Serving stacks pick among kernels by timing them (autotuning) or by rules that were found so; nearest-measured would not.
    Where no kernel was measured near the shape, `rest` decides. The tables time the whole call of fused experts, so ordering
    tokens by expert and summing the outputs cost nothing of their own, but for experts that no such call runs (`Op.is_grouped`).
    Of a grid of shapes each gets its own kernel `by_point`,
    else all of them the one that is quickest on average. A launch may force a kernel that was measured at other shapes only
    (`forced`): reading the weights takes as long as with the quickest one, and where its products take longer than all of that,
    they count (its fixed cost per call, which does not carry over between shapes, is left out; assumption).
    """

    rest: CalibratedOps
    kernels: tuple[Calibration, ...]
    by_point: bool = False
    forced: tuple[Calibration, ...] = ()

    @property
    def name(self) -> str:
        """Of the tables."""
        return self.rest.name

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The quickest kernel's cost for experts."""
        return self.cost_all((op,), device)[0]

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator."""
        found = known_costs(self.rest, ops, device)
        found = [_INCLUDED if _is_included(op) else cost for op, cost in zip(ops, found, strict=True)]
        at = [i for i, op in enumerate(ops) if op.kind is OpKind.GROUPED_GEMM]
        if not at or not self.kernels:
            return found
        if self.by_point:
            grids = [i for i in at if not is_scalar(ops[i].shape)]
            for i in grids:
                found[i] = self._of_grid(ops[i], found[i])
        else:
            grids = []
        experts_at, at = at, [i for i in at if i not in set(grids)]
        experts = [ops[i] for i in at]
        tried = [known_costs(kernel, experts, device) for kernel in self.kernels]
        for i, costs in zip(at, zip(*tried, strict=True), strict=True):
            inside = [cost for cost in costs if cost is not None and not cost.is_extrapolated]
            if inside:
                found[i] = min(inside, key=lambda cost: float(np.mean(cost.time_s)))
        return self._with_forced(found, ops, experts_at, device)

    def _with_forced(
        self, found: list[OpCost | None], ops: Sequence[Op], at: Sequence[int], device: DeviceSpec
    ) -> list[OpCost | None]:
        for kernel in self.forced:
            for i, cost in zip(at, known_costs(kernel, [ops[i] for i in at], device), strict=True):
                found[i] = _at_least(found[i], cost)
        return found

    def _of_grid(self, op: Op, rest: OpCost | None) -> OpCost | None:
        """The quickest kernel at each point of a grid; where none was measured nearby, what `rest` says."""
        families = [family for kernel in self.kernels for family in kernel.families_for(op)]
        return price_quickest(families, op.shape, rest) if families and rest is not None else rest


def with_quickest_experts(
    calibration: Calibration, expert_activation: Dtype, lenders: Sequence[Calibration] = (), *, by_point: bool = False,
    forced: str = "",
) -> QuickestKernel:  # fmt: skip
    """Experts by the quickest kernel of the stack that takes `expert_activation`, among its own and borrowed ones.

    Kernels of another activation format run only where the stack has none of the right one. `forced` is part of the name of a
    kernel for MXFP4 weights that the launch demands ('' lets the stack choose).
    """
    weights = {f.key.dtype for f in calibration.families if f.key.kind == "moe"}
    kernels: list[Calibration] = []
    demanded: list[Calibration] = []
    for dtype in sorted(weights):
        own = [f for c in (calibration, *lenders) for f in c.families if f.key.kind == "moe" and f.key.dtype == dtype]
        right = [f for f in own if f.key.act_dtype == expert_activation.value] if dtype == Dtype.MXFP4.value else own
        kernels += [replace(calibration, families=(f,)) for f in right or own]
        if forced and dtype == Dtype.MXFP4.value:
            demanded += [replace(calibration, families=(f,)) for f in own if forced in f.key.kernel]
    return QuickestKernel(calibration, tuple(kernels), by_point, tuple(demanded))


def _at_least(quickest: OpCost | None, forced: OpCost | None) -> OpCost | None:
    """A call that takes at least what a forced kernel computes for."""
    if quickest is None or forced is None:
        return quickest
    body = np.asarray(forced.time_s) - np.minimum(np.asarray(forced.latency_s), np.asarray(forced.time_s))
    return replace(quickest, time_s=np.maximum(np.asarray(quickest.time_s), body))


def _is_included(op: Op) -> bool:
    """Whether the time of a fused call of experts contains an operator."""
    return op.group == _IN_EXPERTS and not op.is_grouped


def n_launches(op: Op) -> float:
    """Kernels that the host launches for one operator of an eager pass."""
    if op.kind is OpKind.GROUPED_GEMM:
        return EXPERT_KERNELS
    if op.name == "linear_attention_state":
        return CHUNKED_STATE_KERNELS
    return 1.0 + op.n_side_kernels


def eager_s(stack: StackParams, device_s: Any, kernels: Any) -> Any:
    """Seconds of an eager pass: device time x `prompt_ratio` and `kernels` x `launch_s`, smoothly the longer of the two."""
    device, floor = np.asarray(device_s) * stack.prompt_ratio, np.asarray(kernels) * stack.launch_s
    largest = np.maximum(np.maximum(device, floor), 1e-30)
    power = LAUNCH_SHARPNESS
    return largest * ((device / largest) ** power + (floor / largest) ** power) ** (1.0 / power)


def _bounds(op: Op, cost: OpCost, device: DeviceSpec) -> tuple[Num, Num]:
    """Parts by arithmetic and by memory, the larger where the device's peaks clearly say (by `CLEARLY`) that it is bound.

    Fitted forms tell the two apart by curvature only, and tables of fused experts hardly do: their sum is sound, their split not.
    """
    compute_s, memory_s = cost.compute_s, cost.memory_s
    if op.kind not in _WITH_WORK:
        return compute_s, memory_s
    flop_s = op.work.flops / device.peak_flop_per_s.rate(op.dtype)
    byte_s = op.work.moved_bytes / device.memory_bytes_per_s
    turned = (byte_s > CLEARLY * flop_s) & (compute_s > memory_s) | (flop_s > CLEARLY * byte_s) & (memory_s > compute_s)
    if isinstance(turned, (bool, np.bool_)):
        return (memory_s, compute_s) if turned else (compute_s, memory_s)
    return np.where(turned, memory_s, compute_s), np.where(turned, compute_s, memory_s)


@dataclass(frozen=True, slots=True)
class StackedCalibration:
    """Tables with a stack's factors on them: what size costs and what a call costs, by kind of operator.

    Small kernels, which no table times, are the roofline's with the stack's factor on their launches; those that calls of the
    stack contain (`contained`, names as in `Op.inside`) are not launched.
    """

    own: CalibratedOps
    stack: StackParams
    label: str = ""
    contained: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Tables and stack."""
        return f"{self.own.name} with {self.label or 'a stack'}"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The adjusted cost; None where the tables have nothing and no factor is known."""
        return self.cost_all((op,), device)[0]

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator."""
        found = known_costs(self.own, ops, device)
        return [self._adjusted(op, cost, device) for op, cost in zip(ops, found, strict=True)]

    def _adjusted(self, op: Op, cost: OpCost | None, device: DeviceSpec) -> OpCost | None:
        if cost is None:
            if op.kind is not OpKind.ELEMENTWISE:
                return None
            cost = replace(roofline(op, device), origin=Origin.FITTED, error_frac=SMALL_KERNELS_ERROR_FRAC)
        body, call, extra_s = self._factors(op)
        call_s = minimum(cost.latency_s, cost.time_s)
        compute_s, memory_s = _bounds(op, cost, device)
        return OpCost(
            (cost.time_s - call_s) * body + call_s * call + extra_s, compute_s * body, memory_s * body, cost.link_s * body,
            call_s * call + extra_s, cost.origin, cost.error_frac, cost.is_extrapolated, cost.outside,
        )  # fmt: skip

    def _factors(self, op: Op) -> tuple[float, float, float]:
        s = self.stack
        if op.kind is OpKind.GEMM:
            wide = op.dtype in (Dtype.BF16, Dtype.FP16, Dtype.FP32)
            return s.gemm_ratio, s.gemm_call_ratio, 0.0 if wide else s.quantise_s
        if op.kind is OpKind.GROUPED_GEMM:
            return s.experts_ratio, s.experts_call_ratio, 0.0
        if op.kind in (OpKind.ATTENTION_PREFILL, OpKind.ATTENTION_DECODE):
            return s.attention_ratio, s.attention_call_ratio, 0.0
        if op.kind is OpKind.ELEMENTWISE:
            return 1.0, 0.0 if op.inside in self.contained else s.elementwise_call_ratio, 0.0
        return s.comm_ratio, s.comm_ratio, 0.0
