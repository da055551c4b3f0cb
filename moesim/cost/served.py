"""Tables of a serving stack for all number formats at once: experts of 8-bit operands by the kernels that take those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.cost.estimate import CalibratedOps, known_costs
from moesim.cost.result import OpCost
from moesim.cost.stack import StackedCalibration, StackParams
from moesim.ops import Op, OpKind
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import DeviceSpec

__all__ = ["ServedTables", "stack_of"]

_NARROW = (Dtype.FP8, Dtype.FP8_BLOCK)


@dataclass(frozen=True, slots=True)
class ServedTables:
    """`narrow` costs experts whose arithmetic is in 8 bits, `wide` everything else; it is loaded when there are any."""

    wide: CalibratedOps
    load_narrow: Callable[[], CalibratedOps]

    @property
    def narrow(self) -> CalibratedOps:
        """Tables of experts whose arithmetic is in 8 bits."""
        return self.load_narrow()

    @property
    def name(self) -> str:
        """Whose tables they are."""
        return self.wide.name

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The operator's cost by the tables for its format."""
        return self.cost_all((op,), device)[0]

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator."""
        narrow = [op.kind is OpKind.GROUPED_GEMM and op.dtype in _NARROW for op in ops]
        if not any(narrow):
            return known_costs(self.wide, ops, device)
        wide = iter(known_costs(self.wide, [op for op, n in zip(ops, narrow, strict=True) if not n], device))
        own = iter(known_costs(self.narrow, [op for op, n in zip(ops, narrow, strict=True) if n], device))
        return [next(own) if n else next(wide) for n in narrow]


def stack_of(calibration: CalibratedOps | None) -> StackParams | None:
    """The fitted parameters that stand behind a calibration, also where something is laid around it; None without."""
    while calibration is not None and not isinstance(calibration, StackedCalibration):
        calibration = getattr(calibration, "inner", None)
    return None if calibration is None else calibration.stack
