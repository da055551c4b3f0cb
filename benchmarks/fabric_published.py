"""Exchanges and collectives that others published and nothing here was fitted to: NVL72 beyond four ranks, B200, H20 and others.

Sources: TensorRT-LLM, "Optimizing MoE Communication with One-Sided AlltoAll Over NVLink" (GB200 NVL72, kernels of its own: a copy
per rank and token, bf16 both ways); DeepEP, docs/README_Hybrid-EP.md (DeepEP's normal kernels on B200 and, changed for NVL72, on
GB200; algorithm bandwidth, own rank counted); nccl-tests of CoreWeave, pull request 43 (72 GPUs); L. Li, lixueduan.com (8 GPUs of
two trays); DeepEP, pull request 173 and issue 138 (H20); Habana's documentation, Collectives Performance (Gaudi 3); AMD's ROCm
blog of March 2025 (what a link of MI300X carries). Every figure is the source's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from fabric_rows import h20_rows, logical_bytes, traffic
from fabric_time import predicted_s

from moesim.calibrate.store import find_calibration
from moesim.cost import CostModel
from moesim.ops import CollectiveShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware

BF16_ROW = 7168 * 2.0 + 16
#: (ranks: (tokens per rank: (dispatch us, combine us)))
ONE_SIDED = {
    8: {1: (18.9, 31.0), 8: (17.6, 31.4), 32: (18.2, 32.7), 128: (31.7, 38.1), 512: (89.5, 91.7), 2048: (311.8, 322.6)},
    16: {1: (18.8, 30.8), 8: (18.9, 31.8), 32: (20.2, 34.2), 128: (34.6, 39.9), 512: (97.1, 98.2), 2048: (343.3, 348.4)},
    32: {1: (19.8, 31.4), 8: (19.4, 32.2), 32: (21.1, 34.6), 128: (37.8, 41.1), 512: (109.6, 102.5), 2048: (373.7, 369.5)},
    64: {1: (27.8, 32.6), 8: (20.4, 33.3), 32: (23.1, 36.1), 128: (41.6, 44.5), 512: (115.7, 106.7), 2048: (399.2, 372.1)},
}  # fmt: skip
#: (cluster, ranks, compute units): GB/s of dispatch in 8 bits, dispatch in bf16, combine; 4096 tokens, 8 experts per rank, top 8
DEEPEP_NORMAL = {
    ("gb200_nvl72", 8, 16): (248.86, 362.01, 310.21), ("gb200_nvl72", 8, 24): (350.97, 512.72, 425.95),
    ("gb200_nvl72", 8, 32): (447.76, 615.78, 519.57), ("gb200_nvl72", 16, 16): (242.51, 328.80, 278.34),
    ("gb200_nvl72", 16, 24): (338.87, 442.47, 378.32), ("gb200_nvl72", 16, 32): (393.72, 520.76, 442.51),
    ("gb200_nvl72", 24, 16): (258.33, 324.64, 126.53), ("gb200_nvl72", 24, 24): (351.05, 450.22, 163.62),
    ("gb200_nvl72", 24, 32): (405.04, 502.84, 207.10),
    ("b200_x8_nodes", 8, 16): (246.0, 348.0, 302.0), ("b200_x8_nodes", 8, 24): (349.0, 494.0, 420.0),
    ("b200_x8_nodes", 8, 32): (443.0, 619.0, 524.0),
}  # fmt: skip
#: All-reduce of 72 GPUs, out of place: bytes and us; and of 8 GPUs, the best bus bandwidth in GB/s.
ALL_REDUCE_72 = {536870912: 1806.7, 1073741824: 3108.8, 2147483648: 5589.1, 4294967296: 10094.0, 8589934592: 20299.0}
ALL_REDUCE_8_BUS = 811.0


@dataclass(frozen=True, slots=True)
class Row:
    """A published figure beside the predicted one."""

    group: str
    what: str
    measured: float
    predicted: float


def one_sided() -> Iterator[Row]:
    """Low-latency mode of DeepEP's fit on four GPUs against TensorRT-LLM's kernels, 2 to 16 times as many ranks."""
    for n, by_tokens in ONE_SIDED.items():
        hardware = load_hardware("gb200_nvl72", n)
        for tokens, times in by_tokens.items():
            for kind, us in zip(("dispatch", "combine"), times, strict=True):
                row = traffic(n, 72, tokens, 256, 8, "low_latency", kind, 7168, row_bytes=BF16_ROW)
                size = "128 tokens and more" if tokens >= 128 else "up to 32 tokens"
                yield Row(f"one-sided {kind}, {size}", f"EP{n} {tokens}", us, predicted_s(row, hardware) * 1e6)


def deepep_normal() -> Iterator[Row]:
    """Normal mode in one NVLink domain, bandwidths."""
    for (cluster, n, sms), figures in DEEPEP_NORMAL.items():
        hardware = load_hardware(cluster, n)
        domain = hardware.scale_up_domain_size
        for (kind, is_bf16), measured in zip(
            (("dispatch", False), ("dispatch", True), ("combine", True)), figures, strict=True
        ):
            row = traffic(
                n, max(domain, n), 4096, 8 * n, 8, "normal", kind, 7168, row_bytes=BF16_ROW if is_bf16 else None
            )
            bandwidth = logical_bytes(row, n) / predicted_s(row, hardware, sms) / 1e9
            yield Row(f"DeepEP normal, {cluster}, {n} ranks", f"{kind} {sms} units", measured, bandwidth)


def all_reduce() -> Iterator[Row]:
    """NCCL beyond the ranks of its tables: default library times at 72, the calibration at 8."""
    model = CostModel.of(load_hardware("gb200_nvl72", 72), find_calibration("gb200/nccl"))
    for size, us in ALL_REDUCE_72.items():
        time_s = float(model.cost(_collective(OpKind.ALL_REDUCE, 72, float(size))).time_s)
        yield Row("all-reduce, 72 GPUs", f"{size / 2**20:.0f} MiB", us, time_s * 1e6)
    bus = 1.75 * 2.0**33 / float(model.cost(_collective(OpKind.ALL_REDUCE, 8, 2.0**33)).time_s) / 1e9
    yield Row("all-reduce, 8 GPUs", "8 GiB, GB/s", ALL_REDUCE_8_BUS, bus)


def other_links() -> Iterator[Row]:
    """Large messages over links that no table here was fitted to: bus bandwidth of Gaudi 3, and of one xGMI link."""
    for kind, size, measured in ((OpKind.ALL_REDUCE, 2.0**28, 513.0), (OpKind.ALL_GATHER, 2.0**27, 509.2)):
        rounds = 2.0 if kind is OpKind.ALL_REDUCE else 1.0
        time_s = float(CostModel.of(load_hardware("gaudi3_8", 8)).cost(_collective(kind, 8, size)).time_s)
        yield Row(
            "Gaudi 3, HCCL", f"{kind.value} {size / 2**20:.0f} MiB", measured, rounds * 7 / 8 * size / time_s / 1e9
        )
    time_s = float(CostModel.of(load_hardware("mi300x_8", 8)).cost(_collective(OpKind.ALL_REDUCE, 2, 2.0**33)).time_s)
    yield Row("MI300X, one link", "all-reduce of two, 8 GiB", 48.0, 2.0**33 / time_s / 1e9)


def _collective(kind: OpKind, n: int, size: float) -> Op:
    return Op("x", kind, Work(), CollectiveShape(n, size))


def h20() -> Iterator[Row]:
    """H20 by its own file in one node, and as if it were an H100 in several: the same kernels, links and NICs."""
    for row, seconds in h20_rows():
        n, is_normal = int(row["n_ranks"]), row["mode"] == "normal"
        hardware = load_hardware("hgx_h20" if n == 8 else "h100_x128_nodes", n)
        predicted = predicted_s(row, hardware, 24 if is_normal else None)
        yield Row(f"H20 {row['mode']}", f"{row['kind']} EP{n}", seconds * 1e6, predicted * 1e6)


def published_figures() -> list[Row]:
    """All rows."""
    return [*one_sided(), *deepep_normal(), *all_reduce(), *h20(), *other_links()]


def published() -> None:
    """Print all rows and the errors of each group."""
    rows = published_figures()
    for group in dict.fromkeys(r.group for r in rows):
        own = [r for r in rows if r.group == group]
        print(f"\n{group}")
        for r in own:
            off = r.predicted / r.measured - 1
            print(f"  {r.what:<22} measured {r.measured:8.1f}  predicted {r.predicted:8.1f}  {off:+6.1%}")
        e = np.abs([r.predicted / r.measured - 1 for r in own])
        print(f"  n {len(e)}  median {np.median(e):.1%}  worst {e.max():.1%}")


if __name__ == "__main__":
    published()
