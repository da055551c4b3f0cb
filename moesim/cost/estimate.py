"""The cost of every operator on given hardware: the one place where peaks meet efficiencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from moesim.cost.collectives import Network, collective_cost, exchange_cost
from moesim.cost.efficiency import DEFAULT_EFFICIENCY, EfficiencyTable
from moesim.cost.grouped import grouped_times
from moesim.cost.result import OpCost
from moesim.ops import COLLECTIVES, EXCHANGES, ElementwiseShape, Op, OpKind, maximum
from moesim.specs.base import Origin
from moesim.specs.hardware import DeviceSpec, Hardware

__all__ = ["CalibratedOps", "CostModel", "known_costs", "roofline"]


#: Half-width of the 90% interval of experts behind an exchange between domains on devices that no table times so.
APART_ERROR_FRAC = 0.3


class CalibratedOps(Protocol):
    """A calibration as the cost model sees it: the measured-and-fitted time of the operators it knows."""

    @property
    def name(self) -> str:
        """Device and stack, for the report."""
        ...

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The operator's cost, or None where the calibration has nothing on this kind."""
        ...


def known_costs(calibration: CalibratedOps, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
    """`cost` of each operator; all at once where the calibration has a method `cost_all` for that, which is quicker."""
    cost_all = getattr(calibration, "cost_all", None)
    return [calibration.cost(op, device) for op in ops] if cost_all is None else list(cost_all(ops, device))


def roofline(op: Op, device: DeviceSpec, table: EfficiencyTable = DEFAULT_EFFICIENCY) -> OpCost:
    """max(flops / achieved flop/s, bytes / achieved bytes/s) + empty-kernel time, and the small kernels around it at theirs.

    Assumes: compute and memory traffic overlap fully within a kernel; efficiencies do not depend on shape.
    Source: Williams et al., Roofline (2009); efficiencies are assumptions, see `EfficiencyTable`.
    """
    e = table.of(op.kind)
    compute_s = op.work.flops / (device.peak_flop_per_s.rate(op.dtype) * e.compute_frac)
    memory_s = (op.work.read_bytes + op.work.write_bytes) / (device.memory_bytes_per_s * e.memory_frac)
    n_kernels = op.shape.n_kernels if isinstance(op.shape, ElementwiseShape) else 1
    latency_s = e.kernel_s * n_kernels
    if not op.n_side_kernels:
        return OpCost(maximum(compute_s, memory_s) + latency_s, compute_s, memory_s, 0.0, latency_s)
    side_s = op.side_bytes / (device.memory_bytes_per_s * table.elementwise.memory_frac)
    latency_s += table.elementwise.kernel_s * op.n_side_kernels
    return OpCost(maximum(compute_s, memory_s) + side_s + latency_s, compute_s, memory_s + side_s, 0.0, latency_s)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of operators on one kind of hardware, calibrated where a calibration is given and knows the operator."""

    hardware: Hardware
    network: Network
    efficiency: EfficiencyTable = DEFAULT_EFFICIENCY
    calibration: CalibratedOps | None = None

    @classmethod
    def of(
        cls,
        hardware: Hardware,
        calibration: CalibratedOps | None = None,
        efficiency: EfficiencyTable = DEFAULT_EFFICIENCY,
    ) -> CostModel:
        """The cost model of `hardware` with the link efficiencies of `efficiency`."""
        network = Network.of(hardware, efficiency.scale_up_frac, efficiency.scale_out_frac, efficiency.library)
        return cls(hardware, network, efficiency, calibration)

    def cost(self, op: Op) -> OpCost:
        """Time of one operator on one rank and what it is bound by."""
        if self.calibration is not None and self.is_apart(op):
            return self.apart(op)
        if self.calibration is not None:
            known = self.calibration.cost(op, self.hardware.device)
            if known is not None:
                return known
        return self._uncalibrated(op)

    def costs(self, ops: Sequence[Op]) -> list[OpCost]:
        """`cost` of each operator; a calibration evaluates those of one kind together."""
        if self.calibration is None:
            return [self._uncalibrated(op) for op in ops]
        known = known_costs(self.calibration, ops, self.hardware.device)
        return [
            self.apart(op) if self.is_apart(op) else self._uncalibrated(op) if cost is None else cost
            for op, cost in zip(ops, known, strict=True)
        ]

    def is_apart(self, op: Op) -> bool:
        """Whether an operator is 8-bit experts behind an exchange that crosses scale-up domains.

        Stacks run grouped products there (DeepGEMM, with DeepEP), which tables of one fused call do not time: at EP32 those are
        1.6 to 2.5 times as long. A calibration with a true `knows_grouped` has measured them itself.
        """
        is_products = op.is_grouped and op.kind is OpKind.GROUPED_GEMM
        return is_products and not getattr(self.calibration, "knows_grouped", False)

    def apart(self, op: Op) -> OpCost:
        """The cost of such experts: by what SGLang's tables of them say of the device (`cost.grouped`), else by default."""
        device = self.hardware.device
        found = grouped_times(device)
        if found is None:
            return replace(self._uncalibrated(op), error_frac=APART_ERROR_FRAC)
        times, is_lent = found
        cost = roofline(op, device, times.within(self.efficiency))
        return replace(cost, error_frac=times.error_frac, origin=Origin.FITTED, is_extrapolated=is_lent)

    def _uncalibrated(self, op: Op) -> OpCost:
        if op.kind in COLLECTIVES:
            return collective_cost(op, self.network)
        if op.kind in EXCHANGES:
            return exchange_cost(op, self.network)
        return roofline(op, self.hardware.device, self.efficiency)

    @property
    def origin(self) -> Origin:
        """Weakest origin of an uncalibrated cost model."""
        return Origin.FITTED if self.calibration is not None else Origin.ASSUMPTION
