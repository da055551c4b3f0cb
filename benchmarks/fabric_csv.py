"""Every row of ../shared/data/ep_alltoall_published.csv beside its prediction; the first row below the header is number 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from fabric_rows import SHARED, logical_bytes, traffic
from fabric_time import predicted_s

from moesim.specs.catalog import load_hardware
from moesim.specs.hardware import Hardware

__all__ = ["CsvRow", "csv_rows"]

#: What each group was fitted to, for the print.
GROUPS = {
    "H800 low latency": "two parameters fitted to these and the next",
    "H800 normal": "",
    "H200 decode, measured by others": "never fitted; low latency",
    "H200 prefill, measured by others": "never fitted; whole calls, normal mode",
    "DeepEP V2": "never fitted; another kernel, predicted with V1's",
}


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A row: its number, group, description, seconds measured and predicted, and logical bytes where a bandwidth was given."""

    number: int
    group: str
    what: str
    measured_s: float
    predicted_s: float
    logical_bytes: float | None


def csv_rows(path: Path = SHARED / "ep_alltoall_published.csv") -> Iterator[CsvRow]:
    """All rows, in order."""
    for number, r in enumerate(pd.read_csv(path).itertuples(), start=1):
        group = _group(r)
        is_low = r.mode in ("low_latency", "decode")
        limits = (r.nodes, min(r.nodes, 4)) if not is_low and r.nodes > 1 else (1, 1)
        row = traffic(
            r.ep, 8, r.tokens_per_rank, 256, r.topk, "low_latency" if is_low else "normal", r.op, r.hidden, *limits
        )
        # a whole call of others counts its exchange of counts; kernels alone do not
        predicted = predicted_s(row, _hardware(r), _units(r), notify="others" in group)
        logical = None if pd.notna(r.latency_us) else logical_bytes(row, 8)
        measured = r.latency_us * 1e-6 if logical is None else logical / (r.bw_GBps * 1e9)
        units = f" {r.sms} units" if group == "DeepEP V2" else ""
        yield CsvRow(number, group, f"{r.gpu} {r.op} EP{r.ep}{units}", measured, predicted, logical)


def _group(r: Any) -> str:
    if r.version == "V2":
        return "DeepEP V2"
    if r.gpu == "H800":
        return "H800 low latency" if r.mode == "low_latency" else "H800 normal"
    return f"H200 {r.mode}, measured by others"


def _hardware(r: Any) -> Hardware:
    if r.gpu == "H800":
        return load_hardware("h800_x40_nodes", int(r.ep))
    if r.version != "V2":
        return load_hardware("h200_x4_nodes", 32).with_n_devices(int(r.ep))
    return load_hardware("h100_x128_nodes" if "SM90" in r.gpu else "b200_x8_nodes", int(r.ep))


def _units(r: Any) -> int | None:
    """V1's kernels lend 20 units; V2's own number where they stay in a node (across nodes V1 cannot do with so few)."""
    if r.version != "V2":
        return None
    return int(r.sms) if r.nodes == 1 else 20
