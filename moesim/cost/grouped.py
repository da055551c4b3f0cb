"""Experts as grouped products behind an exchange, on devices where a table times them so.

Stacks run them there as two grouped products and small kernels around (DeepGEMM with DeepEP), not as the fused call that their
calibrations hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.cost.efficiency import Efficiency, EfficiencyTable
from moesim.specs.hardware import DeviceSpec

__all__ = ["GROUPED", "GroupedTimes", "grouped_times"]


@dataclass(frozen=True, slots=True)
class GroupedTimes:
    """Parts of peak flop/s and memory bytes/s that the products reach, and memory bytes/s that the kernels around them do.

    `kernel_s` is the time of an empty call, `error_frac` the half-width of the 90% interval (errors on left-out EP sizes).
    """

    compute_frac: float
    memory_frac: float
    side_frac: float
    kernel_s: float
    error_frac: float

    def within(self, table: EfficiencyTable) -> EfficiencyTable:
        """`table` with these efficiencies of grouped products and of the kernels around them."""
        grouped = Efficiency(self.compute_frac, self.memory_frac, self.kernel_s)
        return replace(table, grouped_gemm=grouped, elementwise=replace(table.elementwise, memory_frac=self.side_frac))


#: Fitted by benchmarks/grouped_fit.py to SGLang's wideep_context_moe and wideep_generation_moe in aiconfigurator-core 0.12.0
#: (0.5.10, on Hopper also 0.5.6.post2): DeepSeek-V3's experts in 8-bit blocks, EP2 to EP256. Errors are in docs/fabric.md.
GROUPED = {
    "h100_sxm": GroupedTimes(0.68, 0.82, 0.77, 22e-6, 0.19),
    "h200_sxm": GroupedTimes(0.67, 0.78, 0.72, 20e-6, 0.21),
    "b200_sxm": GroupedTimes(0.52, 0.68, 0.52, 17e-6, 0.20),
    "b300_sxm": GroupedTimes(0.53, 0.68, 0.55, 19e-6, 0.21),
    "gb200": GroupedTimes(0.49, 0.71, 0.53, 19e-6, 0.22),
    "gb300": GroupedTimes(0.52, 0.68, 0.50, 17e-6, 0.25),
}


def grouped_times(device: DeviceSpec) -> tuple[GroupedTimes, bool] | None:
    """What is known of the device, or of one with the same chip (then True); None for others."""
    own = GROUPED.get(device.name)
    if own is not None:
        return own, False
    lent = GROUPED.get(device.same_chip_as or "")
    return None if lent is None else (lent, True)
