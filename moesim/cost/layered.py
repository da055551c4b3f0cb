"""Several calibrations as one: the first that knows an operator costs it; and calibrations that another device lends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moesim.cost.estimate import CalibratedOps, known_costs
from moesim.cost.result import OpCost
from moesim.ops import COLLECTIVES, EXCHANGES, Op
from moesim.specs.hardware import DeviceSpec

__all__ = ["BorrowedCalibration", "LayeredCalibration"]


@dataclass(frozen=True, slots=True)
class LayeredCalibration:
    """Calibrations of one device in order of preference, such as a serving stack and the collectives library under it."""

    layers: tuple[CalibratedOps, ...]

    @property
    def name(self) -> str:
        """All names, for the report."""
        return " + ".join(layer.name for layer in self.layers)

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The cost by the first calibration that knows the operator, or None."""
        for layer in self.layers:
            found = layer.cost(op, device)
            if found is not None:
                return found
        return None

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator, those that one calibration knows together."""
        found: list[OpCost | None] = [None] * len(ops)
        left = list(range(len(ops)))
        for layer in self.layers:
            for i, cost in zip(left, known_costs(layer, [ops[i] for i in left], device), strict=True):
                found[i] = cost
            left = [i for i in left if found[i] is None]
        return found


@dataclass(frozen=True, slots=True)
class BorrowedCalibration:
    """Kernels of a device with the same chip, for a device that nobody measured: taken as they are, marked as extrapolated.

    What runs over links is not borrowed: that is where such boards differ. Assumes: equal clocks under load.
    """

    own: CalibratedOps
    lender: DeviceSpec

    @property
    def name(self) -> str:
        """Whose it is, and that it is borrowed."""
        return f"{self.own.name} (borrowed: the same chip)"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The lender's cost."""
        return self.cost_all((op,), device)[0]

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator."""
        at = [i for i, op in enumerate(ops) if op.kind not in COLLECTIVES and op.kind not in EXCHANGES]
        found: list[OpCost | None] = [None] * len(ops)
        for i, cost in zip(at, known_costs(self.own, [ops[i] for i in at], self.lender), strict=True):
            found[i] = None if cost is None else replace(cost, is_extrapolated=True)
        return found
