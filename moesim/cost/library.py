"""What a communication library adds to its links where no calibration says: start-up, steps, and how rates grow with size.

Letters: n ranks, B bytes of one rank's full buffer, w peak bytes per second and direction of a port, b bytes through it,
r rounds (2 for all-reduce, else 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesim.ops import Num, OpKind
from moesim.specs.hardware import LinkKind

__all__ = ["LIBRARIES", "LIBRARY_LINKS", "LibraryTimes"]

Parts = tuple[Num, Num]

#: Links whose collectives run as NCCL's do: a kernel per call, rings or direct writes between GPU memories.
LIBRARY_LINKS = frozenset({LinkKind.NVLINK, LinkKind.XGMI, LinkKind.PCIE, LinkKind.ROCE})


@dataclass(frozen=True, slots=True)
class LibraryTimes:
    """Times of the calls of a library, in parts of peak rates.

    Ring: start + r (n-1) step + 1 / (1/bulk + 1/quick), bulk = (b + half) / (bulk_frac w), quick = b / (quick_frac w), with
    b = r (n-1)/n B: the protocols for large and small messages side by side. Own all-reduce kernels of serving stacks, where
    every rank writes to every other: one-shot start + (n-1) B / (f w), two-shot start + 2 (n-1)/n B / (f w). In a switch that
    adds: start + (1 + 1/n) B / (f w).
    """

    start_s: float
    step_s: float
    bulk_frac: float
    half_bytes: float
    quick_frac: float
    one_shot_s: float
    one_shot_frac: float
    two_shot_s: float
    two_shot_frac: float
    in_switch_s: float
    in_switch_frac: float

    def ring(self, kind: OpKind, n: int, size: Num, peak_bytes_per_s: float) -> Parts:
        """Link time and latency of a ring."""
        rounds = 2.0 if kind is OpKind.ALL_REDUCE else 1.0
        through = size * (rounds * (n - 1) / n)
        bulk = (through + self.half_bytes) * (1.0 / (self.bulk_frac * peak_bytes_per_s))
        quick = through * (1.0 / (self.quick_frac * peak_bytes_per_s))
        return bulk * quick / (bulk + quick), self.start_s + rounds * (n - 1) * self.step_s

    def direct(self, n: int, size: Num, peak_bytes_per_s: float) -> Mapping[str, Parts]:
        """The same of all-reduce kernels that write to every other rank."""
        return {
            "one-shot": (size * ((n - 1) / (self.one_shot_frac * peak_bytes_per_s)), self.one_shot_s),
            "two-shot": (size * (2.0 * (n - 1) / n / (self.two_shot_frac * peak_bytes_per_s)), self.two_shot_s),
        }

    def in_switch(self, n: int, size: Num, peak_bytes_per_s: float) -> Parts:
        """The same of an all-reduce that the switch adds up."""
        return size * ((1.0 + 1.0 / n) / (self.in_switch_frac * peak_bytes_per_s)), self.in_switch_s


#: Assumption: other devices' measurements. Fitted to NCCL's tables of A100, H100 and H200 in aiconfigurator-core 0.12.0 (H100 and
#: H200, the same chip, count half each) and to the all-reduce kernels of vLLM, SGLang and TensorRT-LLM there (in CUDA graphs).
#: Medians on devices left out are in docs/fabric.md; benchmarks/library_fit.py fits and prints them.
LIBRARIES = LibraryTimes(
    start_s=6.7e-6, step_s=0.85e-6, bulk_frac=0.494, half_bytes=9.4e6, quick_frac=0.172,
    one_shot_s=4.5e-6, one_shot_frac=0.55, two_shot_s=11.7e-6, two_shot_frac=0.56,
    in_switch_s=34.7e-6, in_switch_frac=0.64,
)  # fmt: skip
