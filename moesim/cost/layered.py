"""Several calibrations as one: the first that knows an operator costs it."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.cost.estimate import CalibratedOps
from moesim.cost.result import OpCost
from moesim.ops import Op
from moesim.specs.hardware import DeviceSpec

__all__ = ["LayeredCalibration"]


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
