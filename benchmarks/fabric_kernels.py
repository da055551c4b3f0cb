"""Kernels of a date: what DeepGEMM published of itself on the H800, for deployments that ran it then.

Calibrations of 2026 are too quick for deployments of early 2025. DeepGEMM's README gave, commit by commit, the rates of just
the products of DeepSeek-V3 (H800, NVCC 12.8, all 132 compute units, without the cast of activations). Everything else (attention,
router, small kernels) is left to another calibration, or to default efficiencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.calibrate.store import find_calibration
from moesim.cost import CalibratedOps, OpCost
from moesim.cost.collectives import Network
from moesim.cost.efficiency import DEFAULT_EFFICIENCY
from moesim.ops import GemmShape, MoeShape, Num, Op, OpKind
from moesim.specs.base import Origin
from moesim.specs.catalog import load_device
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import DeviceSpec

#: Seconds of dense products by (n, k) at m = 64, 128 (memory-bound, equal in both commits).
FEW_ROWS = {
    (2112, 7168): (9.41e-6, 11.01e-6),
    (24576, 1536): (16.72e-6, 18.06e-6),
    (32768, 512): (9.81e-6, 12.0e-6),
    (7168, 16384): (44.74e-6, 46.61e-6),
    (4096, 7168): (13.09e-6, 14.1e-6),
    (7168, 2048): (6.37e-6, 7.37e-6),
}


@dataclass(frozen=True)
class Published:
    """One state of DeepGEMM's README: TFLOP/s of dense products at m = 4096, of grouped ones by (n, k)."""

    commit: str
    date: str
    dense: dict[tuple[int, int], float]
    contiguous: dict[tuple[int, int], float]


PUBLISHED = {
    "2025-02": Published(
        "a6d97a1", "2025-02-25",
        {(2112, 7168): 1058, (24576, 1536): 990, (32768, 512): 590, (7168, 16384): 1358, (4096, 7168): 1304, (7168, 2048): 1025},
        {(4096, 7168): 1297, (7168, 2048): 1099},
    ),
    "2025-03": Published(
        "55ab91f", "2025-03-25",
        {(2112, 7168): 1009, (24576, 1536): 1125, (32768, 512): 751, (7168, 16384): 1426, (4096, 7168): 1265, (7168, 2048): 1168},
        {(4096, 7168): 1346, (7168, 2048): 1214},
    ),
}  # fmt: skip
#: Masked grouped products (decode), both commits: TFLOP/s with 1,024 rows per group, bytes/s with 256.
MASKED_FLOP_PER_S = {(4096, 7168): 1233e12, (7168, 2048): 925e12}
MASKED_BYTES_PER_S = 2.05e12


@dataclass(frozen=True)
class DatedKernels:
    """Block-fp8 products by DeepGEMM as published at a date; kinds in `default` by default efficiencies, the rest by `inner`.

    Prefill attention over expanded heads is among the defaults (0.55 of peak): FlashAttention-3's rate at these lengths.
    """

    published: Published
    inner: CalibratedOps | None
    lender: DeviceSpec
    default: frozenset[OpKind] = frozenset({OpKind.ATTENTION_PREFILL, OpKind.ELEMENTWISE})

    @property
    def knows_grouped(self) -> bool:
        """Grouped products are what it is for."""
        return True

    @property
    def name(self) -> str:
        """Which DeepGEMM, and whose everything else is."""
        return f"DeepGEMM {self.published.date}, else {'default' if self.inner is None else self.inner.name}"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """The operator's cost; None leaves it to default efficiencies."""
        if op.dtype is Dtype.FP8_BLOCK and isinstance(op.shape, GemmShape) and np.all(op.shape.n_batch == 1.0):
            return self._with_side(op, self._dense(op.shape), device)
        if op.dtype is Dtype.FP8_BLOCK and isinstance(op.shape, MoeShape):
            return self._with_side(op, self._grouped(op), device)
        if self.inner is None or op.kind in self.default:
            return None
        return self.inner.cost(op, self.lender)

    def _with_side(self, op: Op, seconds: Num, device: DeviceSpec) -> OpCost:
        small = DEFAULT_EFFICIENCY.elementwise
        side_s = op.side_bytes / (device.memory_bytes_per_s * small.memory_frac) + small.kernel_s * op.n_side_kernels
        return OpCost(seconds + side_s, seconds, side_s, origin=Origin.SECONDARY)

    def _dense(self, shape: GemmShape) -> Num:
        """Between published rows in log m; above, time goes as m; shapes not published as the nearest one in k and n."""
        n, k = float(np.max(shape.n)), float(np.max(shape.k))
        key = min(self.published.dense, key=lambda x: abs(math.log(x[1] / k)) + 0.1 * abs(math.log(x[0] / n)))
        few, many = FEW_ROWS[key], 2.0 * 4096 * key[0] * key[1] / (self.published.dense[key] * 1e12)
        log_m = np.log(np.maximum(np.asarray(shape.m, dtype=float), 1.0))
        curve = np.interp(log_m, np.log([64.0, 128.0, 4096.0]), np.log([*few, many]))
        beyond = np.maximum(log_m - math.log(4096.0), 0.0)
        seconds = np.exp(curve + beyond) * (n * k / (key[0] * key[1]))
        return float(seconds) if seconds.ndim == 0 else np.asarray(seconds)

    def _grouped(self, op: Op) -> Num:
        """Two products: many rows per group as the contiguous layout, few as the masked one (compute or weights, the longer)."""
        shape = op.shape
        if not isinstance(shape, MoeShape):
            raise TypeError(op.name)
        d, f = float(np.max(shape.hidden_size)), float(np.max(shape.inter_size))
        total: Num = 0.0
        for n, k, key in ((2.0 * f, d, (4096, 7168)), (d, f, (7168, 2048))):
            flops = shape.n_padded * (2.0 * n * k)
            if op.n_side_kernels > 1:
                total = total + flops / (self.published.contiguous[key] * 1e12)
                continue
            moved = shape.n_experts_hit * (n * k) + shape.n_assignments * (k + 2.0 * n)
            total = total + np.maximum(flops / MASKED_FLOP_PER_S[key], moved / MASKED_BYTES_PER_S)
        return total

    def costs(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """Each of them."""
        return [self.cost(op, device) for op in ops]


@dataclass(frozen=True)
class Measured2026:
    """The H100's SGLang tables; experts by its tables of grouped products (`cost.grouped`), prefill attention by default."""

    inner: CalibratedOps
    lender: DeviceSpec

    @property
    def name(self) -> str:
        """Whose it is."""
        return f"{self.inner.name}, prefill attention by default"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """As the lender's."""
        own = op.kind in (OpKind.GROUPED_GEMM, OpKind.ATTENTION_PREFILL, OpKind.ELEMENTWISE)
        return None if own else self.inner.cost(op, self.lender)


def kernels(which: str, date: str = "2025-02") -> CalibratedOps | None:
    """`default` efficiencies, SGLang `tables` of 2026, or kernels of the `day`: DeepGEMM of `date`, else those tables."""
    if which == "default":
        return None
    h100, tables = load_device("h100_sxm"), find_calibration("h100_sxm/sglang")
    return Measured2026(tables, h100) if which == "tables" else DatedKernels(PUBLISHED[date], tables, h100)


def lending(network: Network, n_sms: int) -> Network:
    """The same network whose normal-mode exchanges take `n_sms` compute units."""
    if network.fabric is None:
        return network
    return replace(network, fabric=network.fabric.model_copy(update={"n_sms": n_sms}))
