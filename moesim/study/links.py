"""Faster or slower links: achieved rates times a factor, latencies unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moesim.cost import CalibratedOps, CostModel, OpCost
from moesim.cost.estimate import known_costs
from moesim.ops import CollectiveShape, Op
from moesim.specs.hardware import DeviceSpec

__all__ = ["ScaledCollectives", "scaled_cost"]


@dataclass(frozen=True, slots=True)
class ScaledCollectives:
    """A calibration on links that are `factor` times as fast: the link part of its collectives shrinks by as much.

    Calibrated collectives stay inside a scale-up domain, so the factor is that of scale-up links.
    """

    inner: CalibratedOps
    factor: float

    @property
    def name(self) -> str:
        """The calibration's, with the factor."""
        return f"{self.inner.name}, links x {self.factor:g}"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The cost with its link part scaled."""
        return self._scaled(op, self.inner.cost(op, device))

    def cost_all(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """`cost` of each operator."""
        return [self._scaled(op, cost) for op, cost in zip(ops, known_costs(self.inner, ops, device), strict=True)]

    def _scaled(self, op: Op, cost: OpCost | None) -> OpCost | None:
        if cost is None or not isinstance(op.shape, CollectiveShape):
            return cost
        link_s = cost.link_s / self.factor
        return replace(cost, time_s=cost.time_s - cost.link_s + link_s, link_s=link_s, is_extrapolated=True)


def scaled_cost(cost: CostModel, up_scale: float, nic_scale: float) -> CostModel:
    """The cost model with scale-up ports and NICs that many times as fast."""
    if up_scale == 1.0 and nic_scale == 1.0:
        return cost
    old = cost.network
    network = replace(
        old, up_bytes_per_s=old.up_bytes_per_s * up_scale, nic_bytes_per_s=old.nic_bytes_per_s * nic_scale,
        shared_bytes_per_s=None if old.shared_bytes_per_s is None else old.shared_bytes_per_s * up_scale,
    )  # fmt: skip
    calibration = cost.calibration
    if calibration is not None and up_scale != 1.0:
        calibration = ScaledCollectives(calibration, up_scale)
    return CostModel(cost.hardware, network, cost.efficiency, calibration)
