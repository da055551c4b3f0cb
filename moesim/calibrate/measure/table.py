"""Records to rows: the median over repeats with its spread, in the columns of the measurement schema. No torch here.

Measured time of a point: the median over the samples of all rounds. Spread: their median absolute deviation. How many samples
there were, and in how many the system gave the processor away in between, is kept with the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.calibrate.measure.partial import Record
from moesim.calibrate.measure.plan import Point

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA_KINDS", "Estimate", "Origin", "estimate", "rows_frame", "split_frame"]

#: Kinds of points that are operators of the measurement schema; the rest is kept in a table of its own.
SCHEMA_KINDS = frozenset(
    {"gemm", "moe", "attention_prefill", "attention_decode", "all_reduce", "all_gather", "all_to_all"}
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Median time of a point, median absolute deviation, and how many samples there were and were preempted."""

    measured_s: float
    spread_s: float
    n_samples: int
    n_preempted: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows come from."""

    device: str
    stack: str
    version: str
    source: str
    date: str


def estimate(records: Iterable[Record]) -> Estimate:
    """Median and spread over the samples of one point.

    Raises:
        ValueError: no sample.

    >>> estimate([Record("a", 0, (1.0, 2.0, 9.0), (0, 0, 4))])
    Estimate(measured_s=2.0, spread_s=1.0, n_samples=3, n_preempted=1)
    """
    samples: list[float] = []
    n_preempted = 0
    for record in records:
        samples += record.samples_s
        n_preempted += sum(n > 0 for n in record.n_preempted)
    if not samples:
        raise ValueError("a point without samples has no estimate")
    times = np.asarray(samples)
    middle = float(np.median(times))
    return Estimate(middle, float(np.median(np.abs(times - middle))), len(times), n_preempted)


def rows_frame(points: Sequence[Point], records: Iterable[Record], origin: Origin) -> pd.DataFrame:
    """One row per measured point, in the order of the points, with the schema's columns and a few of our own."""
    import pandas as pd

    by_key: dict[str, list[Record]] = {}
    for record in records:
        if not record.error:
            by_key.setdefault(record.key, []).append(record)
    rows = [_row(point, by_key[point.key], origin) for point in points if point.key in by_key]
    return pd.DataFrame(rows)


def split_frame(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows that the measurement schema knows, whole layers and operators; and the rest.

    The rest: dense twins, parts, memory tests, and layers of the user whose width or routing is not known.
    """
    if frame.empty:
        return frame, frame
    known = frame["op_kind"].isin(SCHEMA_KINDS) & (frame["kernel"] != "dense")
    for column in ("n_experts_hit", "inter_size"):
        if column in frame.columns:
            known &= (frame["op_kind"] != "moe") | (frame[column] > 0)
    return frame[known], frame[~known]


def _row(point: Point, records: Sequence[Record], origin: Origin) -> dict[str, Any]:
    found = estimate(records)
    stats = _mean_stats(records)
    row: dict[str, Any] = {
        "op_kind": point.kind,
        "device": origin.device,
        "stack": origin.stack,
        "version": origin.version,
        "dtype": point.dtype,
        "act_dtype": point.dtype,
        "kv_dtype": point.dtype if point.kind == "attention_decode" else "",
        "kernel": point.kernel,
        "model_shape": point.name,
        "load": point.load,
        **point.sizes,
        **stats,
        "measured_s": found.measured_s,
        "spread_s": found.spread_s,
        "n_samples": found.n_samples,
        "n_preempted": found.n_preempted,
        "peak_bytes": max(r.peak_bytes for r in records),
        "source": origin.source,
        "date": origin.date,
    }
    if point.kernel == "dense":
        n_tokens = point.sizes["n_tokens"]
        row |= {
            "n_assignments": n_tokens,
            "n_experts_hit": 1,
            "max_expert_tokens": n_tokens,
            "n_local_experts": 1,
            "top_k": 1,
        }
    return row


def _mean_stats(records: Sequence[Record]) -> dict[str, float]:
    weight = np.asarray([max(1, len(r.samples_s)) for r in records], dtype=np.float64)
    names: Mapping[str, float] = records[0].stats
    return {n: float(np.average([r.stats.get(n, np.nan) for r in records], weights=weight)) for n in names}
