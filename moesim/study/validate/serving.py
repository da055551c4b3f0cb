"""Predict every row of a table of serving runs, with intervals and a reason where that cannot be done."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim._version import __version__
from moesim.analytic import estimate
from moesim.cost.stack import StackParams
from moesim.errors import InputError, MoesimError
from moesim.study.stack_files import Bands, shipped_bands, shipped_stacks
from moesim.study.uncertainty import ASSUMPTION_WIDTH, OUTSIDE_WIDTH
from moesim.study.validate.accuracy import Judged
from moesim.study.validate.fit import stack_for, stack_key
from moesim.study.validate.predict import Batch
from moesim.study.validate.stamp import stamp_of
from moesim.study.validate.table import RunRow, read_table
from moesim.study.validate.workload import Workbench

__all__ = ["ADDED", "RowResult", "judged", "predict_row", "validate_serving", "write_rows"]

#: Columns that are added to those of the table.
ADDED = (
    "projected_ttft_ms", "projected_tpot_ms", "projected_ttft_ms_low", "projected_ttft_ms_high", "projected_tpot_ms_low",
    "projected_tpot_ms_high", "outcome", "reason", "moesim_version",
)  # fmt: skip
Progress = Callable[[int, int], None]
SAVE_EVERY = 50


@dataclass(frozen=True, slots=True)
class RowResult:
    """What was found for one line: seconds of TTFT and TPOT with 90% intervals, or why not."""

    line: Mapping[str, str]
    row: RunRow | None
    projected: tuple[float, float] | None
    low: tuple[float, float] | None
    high: tuple[float, float] | None
    outcome: str
    reason: str
    is_moe: bool = False

    def cells(self, stamp: str = __version__) -> dict[str, str]:
        """The line with the added columns; `stamp` says what made them."""
        found = dict.fromkeys(ADDED, "")
        if self.projected and self.low and self.high:
            for i, name in enumerate(("ttft", "tpot")):
                found[f"projected_{name}_ms"] = f"{self.projected[i] * 1e3:.4g}"
                found[f"projected_{name}_ms_low"] = f"{self.low[i] * 1e3:.4g}"
                found[f"projected_{name}_ms_high"] = f"{self.high[i] * 1e3:.4g}"
        found |= {"outcome": self.outcome, "reason": self.reason, "moesim_version": stamp}
        return {**self.line, **found}


def validate_serving(
    table: Path, out: Path | None = None, *, stacks: Mapping[str, StackParams] | None = None, bands: Bands | None = None,
    progress: Progress = lambda done, total: None,
) -> list[RowResult]:  # fmt: skip
    """Predict the rows of a CSV; with `out`, go on where an interrupted run by the same code, data and stacks stopped.

    Raises:
        InputError: a table or an output file that cannot be used.
    """
    lines = read_table(table)
    stacks, bands = stacks or shipped_stacks(), bands or shipped_bands()
    stamp = "" if out is None else stamp_of(stacks, bands)
    known = _done_before(out, stamp)
    bench = Workbench()
    results: list[RowResult] = []
    for i, (line, row) in enumerate(lines):
        found = known.get(_identity(line))
        results.append(_again(line, row, found, bench) if found else predict_row(line, row, bench, stacks, bands))
        if out is not None and (i + 1) % SAVE_EVERY == 0 and i + 1 < len(lines):
            write_rows(out, results, stamp)
        progress(i + 1, len(lines))
    if out is not None:
        write_rows(out, results, stamp)
    return results


def predict_row(
    line: Mapping[str, str], row: RunRow | InputError, bench: Workbench, stacks: Mapping[str, StackParams], bands: Bands
) -> RowResult:
    """One line's prediction; what cannot be predicted says why."""
    if isinstance(row, InputError):
        return RowResult(line, None, None, None, None, "bad_input", str(row))
    try:
        batch = Batch.of([row], [bench.features(row)])
        instance = bench.instance(row)
    except MoesimError as error:
        return RowResult(line, row, None, None, None, "unsupported", str(error))
    ttft, tpot = (float(x) for x in batch.predict(stack_for(stack_key(row), stacks))[0])
    step = estimate(
        instance.program(instance.decode_pass(row.concurrency, row.mean_isl + 0.5 * row.mean_osl)), instance.cost
    )
    reasons = []
    extra = OUTSIDE_WIDTH * step.extrapolated_frac
    if step.extrapolated_frac > 0.1:
        reasons.append(f"{step.extrapolated_frac:.0%} of a decode step lies outside the measured shapes")
    if instance.cost.calibration is None:
        extra = ASSUMPTION_WIDTH
        reasons.append("assumption only: no measured tables of this stack on this device")
    (ttft_low, ttft_high), (tpot_low, tpot_high) = (
        _widened(band, extra) for band in (bands.ttft(row.warm_up), bands.tpot(instance.model.is_moe))
    )
    is_moe = instance.model.is_moe
    memory = _memory_reason(row, bench)
    outcome = "ok" if memory is None else "does_not_fit"
    reasons = [memory, *reasons] if memory is not None else reasons
    return RowResult(
        line, row, (ttft, tpot), (ttft * math.exp(ttft_low), tpot * math.exp(tpot_low)),
        (ttft * math.exp(ttft_high), tpot * math.exp(tpot_high)), outcome, "; ".join(reasons), is_moe,
    )  # fmt: skip


def _memory_reason(row: RunRow, bench: Workbench) -> str | None:
    """Why the weights and one sequence per rank do not fit, if they do not."""
    instance = bench.instance(row)
    report = instance.memory(float(row.attention_dp_size), float(row.isl + row.osl), 8192.0, explain=False)
    return None if report.outcome.value == "ok" else report.sentence


def _widened(band: tuple[float, float], extra: float) -> tuple[float, float]:
    """Independent errors add in quadrature."""
    return -math.hypot(band[0], extra), math.hypot(band[1], extra)


def _identity(line: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in line.items() if k not in ADDED))


def _done_before(out: Path | None, stamp: str) -> dict[tuple[tuple[str, str], ...], dict[str, str]]:
    if out is None or not out.exists():
        return {}
    try:
        rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot be continued", file=str(out), hint=f"{error}; choose another --out") from error
    same = [r for r in rows if r.get("moesim_version") == stamp and r.get("outcome")]
    return {_identity({k: v or "" for k, v in r.items() if k is not None}): r for r in same}


def _again(line: Mapping[str, str], row: RunRow | InputError, found: Mapping[str, str], bench: Workbench) -> RowResult:
    """A result read back from the output of an earlier run."""
    if isinstance(row, InputError) or not found.get("projected_tpot_ms"):
        return RowResult(line, None, None, None, None, found["outcome"], found["reason"])

    def pair(end: str) -> tuple[float, float]:
        return float(found[f"projected_ttft_ms{end}"]) * 1e-3, float(found[f"projected_tpot_ms{end}"]) * 1e-3

    is_moe = bench.instance(row).model.is_moe
    return RowResult(line, row, pair(""), pair("_low"), pair("_high"), found["outcome"], found["reason"], is_moe)


def write_rows(path: Path, results: Sequence[RowResult], stamp: str = __version__) -> None:
    """The table with the added columns, in one piece; `stamp` says what made them."""
    if not results:
        return
    text = io.StringIO()
    names = list(dict.fromkeys([*(n for r in results[:1] for n in r.line if n not in ADDED), *ADDED]))
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(r.cells(stamp) for r in results)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text.getvalue(), encoding="utf-8")
    part.replace(path)


def judged(results: Sequence[RowResult]) -> list[Judged]:
    """Rows that got an answer and were measured."""
    found = []
    for r in results:
        if r.row is not None and r.projected is not None and r.low is not None and r.high is not None:
            found.append(Judged(r.row, r.is_moe, r.projected, r.low, r.high))
    return [r for r in found if np.isfinite(r.projected).all()]
