"""Default efficiencies: the part of a data sheet's peak that kernels reach where no calibration says better.

All of these are assumptions, rounded from what well-tuned public kernels reach on recent data-centre GPUs; results that use them
say so. A calibration (`moesim.calibrate`) replaces them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moesim.cost.library import LIBRARIES, LibraryTimes
from moesim.ops import OpKind

__all__ = ["DEFAULT_EFFICIENCY", "Efficiency", "EfficiencyTable"]


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Achieved fractions of peak compute and memory bandwidth, and the time of an empty kernel inside a CUDA graph."""

    compute_frac: float
    memory_frac: float
    kernel_s: float


@dataclass(frozen=True, slots=True)
class EfficiencyTable:
    """Efficiencies by operator kind, and of links.

    Source: assumption. cuBLAS bf16 GEMMs reach 0.6-0.8 of peak on H100 and DeepGEMM's grouped fp8 0.5-0.7 at large sizes;
    FlashAttention-3 0.55-0.75; streaming kernels 0.85-0.93 of HBM bandwidth; NCCL 0.75-0.85 of NVLink in large messages.
    """

    gemm: Efficiency = Efficiency(0.70, 0.80, 2.5e-6)
    grouped_gemm: Efficiency = Efficiency(0.55, 0.70, 6.0e-6)
    attention_prefill: Efficiency = Efficiency(0.55, 0.70, 5.0e-6)
    attention_decode: Efficiency = Efficiency(0.40, 0.70, 5.0e-6)
    elementwise: Efficiency = Efficiency(0.05, 0.75, 1.5e-6)
    scale_up_frac: float = 0.75
    scale_out_frac: float = 0.85
    #: What libraries add to links inside a domain; None is links alone.
    library: LibraryTimes | None = None

    def of(self, kind: OpKind) -> Efficiency:
        """The efficiency of a compute operator's kind."""
        return _BY_KIND[kind](self)


_BY_KIND: dict[OpKind, Callable[[EfficiencyTable], Efficiency]] = {
    OpKind.GEMM: lambda t: t.gemm,
    OpKind.GROUPED_GEMM: lambda t: t.grouped_gemm,
    OpKind.ATTENTION_PREFILL: lambda t: t.attention_prefill,
    OpKind.ATTENTION_DECODE: lambda t: t.attention_decode,
    OpKind.ELEMENTWISE: lambda t: t.elementwise,
}

DEFAULT_EFFICIENCY = EfficiencyTable(library=LIBRARIES)
