"""What a serving stack adds to the kernels of its tables: few physical parameters of a backend on a GPU generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from moesim.cost.estimate import CalibratedOps, known_costs, roofline
from moesim.cost.forms_batch import is_scalar, price_quickest
from moesim.cost.forms_calibration import Calibration
from moesim.cost.result import OpCost
from moesim.ops import Op, OpKind, minimum
from moesim.specs.base import Origin
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import DeviceSpec

__all__ = [
    "DEFAULT_STACK",
    "LentCalibration",
    "QuickestKernel",
    "StackParams",
    "StackedCalibration",
    "with_quickest_experts",
]


@dataclass(frozen=True, slots=True)
class StackParams:
    """What a backend on a GPU generation adds to, or takes from, the operators of its tables.

    Factors on measured times: `*_call_ratio` on what a call costs whatever its size (tables time single calls; inside a captured
    graph launches overlap), the others on what grows with size; `prompt_ratio` on passes that carry prompts. `quantise_s` is
    spent before every product with 8- or 4-bit inputs. Host: `step_s` per pass, `prompt_pass_s` per pass that carries prompts and
    `prompt_s` per prompt begun in it; such passes run eagerly and last at least `launch_s` per operator. Client:
    `request_s` from the client and back, `wait_passes` between a request's arrival and the scheduler's look at it, in passes,
    `cold_s` and `other_client_s` more where the client did not warm the server up, or is not known.
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
    request_s: float = 4.5e-3
    wait_passes: float = 5.0
    cold_s: float = 2.2e-3
    other_client_s: float = 10e-3

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All parameters."""
        return tuple(f.name for f in fields(cls))


#: For stacks that nobody fitted: what the fitted ones have in common.
DEFAULT_STACK = StackParams()

_IN_EXPERTS = "permute"
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
    tokens by expert and summing the outputs cost nothing of their own. Of a grid of shapes each gets its own kernel `by_point`,
    else all of them the one that is quickest on average.
    """

    rest: CalibratedOps
    kernels: tuple[Calibration, ...]
    by_point: bool = False

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
        found = [_INCLUDED if op.group == _IN_EXPERTS else cost for op, cost in zip(ops, found, strict=True)]
        at = [i for i, op in enumerate(ops) if op.kind is OpKind.GROUPED_GEMM]
        if not at or not self.kernels:
            return found
        if self.by_point:
            grids = [i for i in at if not is_scalar(ops[i].shape)]
            for i in grids:
                found[i] = self._of_grid(ops[i], found[i])
            at = [i for i in at if i not in set(grids)]
        experts = [ops[i] for i in at]
        tried = [known_costs(kernel, experts, device) for kernel in self.kernels]
        for i, costs in zip(at, zip(*tried, strict=True), strict=True):
            inside = [cost for cost in costs if cost is not None and not cost.is_extrapolated]
            if inside:
                found[i] = min(inside, key=lambda cost: float(np.mean(cost.time_s)))
        return found

    def _of_grid(self, op: Op, rest: OpCost | None) -> OpCost | None:
        """The quickest kernel at each point of a grid; where none was measured nearby, what `rest` says."""
        families = [family for kernel in self.kernels for family in kernel.families_for(op)]
        return price_quickest(families, op.shape, rest) if families and rest is not None else rest


def with_quickest_experts(
    calibration: Calibration, expert_activation: Dtype, lenders: Sequence[Calibration] = (), *, by_point: bool = False
) -> QuickestKernel:
    """Experts by the quickest kernel of the stack that takes `expert_activation`, among its own and borrowed ones.

    Kernels of another activation format run only where the stack has none of the right one.
    """
    weights = {f.key.dtype for f in calibration.families if f.key.kind == "moe"}
    kernels: list[Calibration] = []
    for dtype in sorted(weights):
        own = [f for c in (calibration, *lenders) for f in c.families if f.key.kind == "moe" and f.key.dtype == dtype]
        right = [f for f in own if f.key.act_dtype == expert_activation.value] if dtype == Dtype.MXFP4.value else own
        kernels += [replace(calibration, families=(f,)) for f in right or own]
    return QuickestKernel(calibration, tuple(kernels), by_point)


@dataclass(frozen=True, slots=True)
class StackedCalibration:
    """Tables with a stack's factors on them: what size costs and what a call costs, by kind of operator.

    Small kernels, which no table times, are the roofline's with the stack's factor on their launches.
    """

    own: CalibratedOps
    stack: StackParams
    label: str = ""

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
            cost = roofline(op, device)
        body, call, extra_s = self._factors(op)
        call_s = minimum(cost.latency_s, cost.time_s)
        grows = (cost.compute_s * body, cost.memory_s * body, cost.link_s * body)
        return replace(
            cost, time_s=(cost.time_s - call_s) * body + call_s * call + extra_s, compute_s=grows[0], memory_s=grows[1],
            link_s=grows[2], latency_s=call_s * call + extra_s,
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
            return 1.0, s.elementwise_call_ratio, 0.0
        return s.comm_ratio, s.comm_ratio, 0.0
