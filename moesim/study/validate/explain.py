"""Why a row's prediction is what it is: the step's operators, what queueing added, and whose uncertainty dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.analytic import ASSUMED_ERROR_FRAC, OpLine, estimate
from moesim.cost.stack import StackParams
from moesim.errors import InputError, nearest
from moesim.study.stack_files import shipped_bands, shipped_stacks
from moesim.study.validate.accuracy import Judged
from moesim.study.validate.causes import suspected_cause
from moesim.study.validate.fit import stack_for, stack_key
from moesim.study.validate.predict import Batch, part_factors
from moesim.study.validate.serving import RowResult, judged, predict_row
from moesim.study.validate.steps import Part
from moesim.study.validate.table import RunRow, read_table
from moesim.study.validate.workload import Workbench

__all__ = ["Explanation", "explain_row"]

N_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Explanation:
    """A heading, operators of one decode step as the tables time them, and sentences about the rest."""

    heading: str
    operators: tuple[tuple[str, float, float, str, float | None], ...]
    sentences: tuple[str, ...]

    def operator_cells(self) -> list[tuple[str, ...]]:
        """Rows for a terminal table."""
        return [
            (name, f"{time_s * 1e3:.3f} ms", f"{share:.1%}", bound, "assumed" if error is None else f"+-{error:.0%}")
            for name, time_s, share, bound, error in self.operators
        ]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        keys = ("operator", "time_s", "share_frac", "bound", "error_frac")
        return {
            "heading": self.heading,
            "operators": [dict(zip(keys, row, strict=True)) for row in self.operators],
            "sentences": list(self.sentences),
        }


def explain_row(row: str, table: Path | None) -> Explanation:
    """Explain one row of a table.

    Args:
        row: its name, its number (1 is the first row below the header), or ``TABLE.csv:NAME``.
        table: the CSV, unless `row` says it.

    Raises:
        InputError: no table, no such row, or a row that cannot be predicted.
    """
    if table is None and ":" in row:
        path, _, row = row.rpartition(":")
        table = Path(path)
    if table is None:
        raise InputError(
            "which table is the row in?", field="row", value=row, hint="TABLE.csv:ROW, or --table TABLE.csv"
        )
    number, line, found = _find(row, table)
    bench, stacks = Workbench(), shipped_stacks()
    result = predict_row(line, found, bench, stacks, shipped_bands())
    if result.row is None or result.projected is None:
        raise InputError(result.reason, file=str(table), field="row", value=row)
    named = f"row {number}" if result.row.name.startswith("line ") else result.row.name
    return _explained(result, result.row, bench, stack_for(stack_key(result.row), stacks), named)


def _find(row: str, table: Path) -> tuple[int, Mapping[str, str], RunRow | InputError]:
    """The row's number from 1, its cells and what they say."""
    lines = read_table(table)
    for i, (line, found) in enumerate(lines):
        if (isinstance(found, RunRow) and found.name == row) or row == str(i + 1):
            return i + 1, line, found
    names = [r.name for _, r in lines if isinstance(r, RunRow)]
    named = [name for name in names if not name.startswith("line ")]
    close = nearest(row, named)
    raise InputError(
        "no such row", file=str(table), field="row", value=row,
        allowed=f"1..{len(lines)} for the data rows in order" + (", or what the column 'row' says" if named else ""),
        hint=f"did you mean {close[0]!r}?" if close else None,
    )  # fmt: skip


def _explained(result: RowResult, row: RunRow, bench: Workbench, stack: StackParams, named: str) -> Explanation:
    instance = bench.instance(row)
    step = estimate(
        instance.program(instance.decode_pass(row.concurrency, row.mean_isl + 0.5 * row.mean_osl)), instance.cost
    )
    ttft, tpot = result.projected or (0.0, 0.0)
    heading = (
        f"{named}: {row.model} {row.precision or 'as published'} on {instance.parallel.n_ranks} x {row.system} "
        f"({instance.parallel.label}), {row.backend}, {row.isl}/{row.osl} tokens, {row.concurrency} in flight"
    )
    known = judged([result])
    sentences = [
        _times("TPOT", tpot, result, 1, row.measured_tpot_ms), _times("TTFT", ttft, result, 0, row.measured_ttft_ms),
        *_parts(row, bench, stack), _queueing(row, bench, stack), _dominant(step.lines),
    ]  # fmt: skip
    if known and any(known[0].error(i) is not None for i in (0, 1)):
        sentences.append(_verdict(known[0]))
    if result.reason:
        sentences.append(f"Note: {result.reason}.")
    return Explanation(heading, _operators(step.lines, step.time_s), tuple(sentences))


def _operators(lines: Sequence[OpLine], total_s: float) -> tuple[tuple[str, float, float, str, float | None], ...]:
    merged: dict[str, list[OpLine]] = {}
    for line in lines:
        merged.setdefault(line.name, []).append(line)
    rows = [
        (
            name,
            sum(x.time_s for x in some),
            sum(x.time_s for x in some) / total_s,
            some[0].bound.value,
            some[0].error_frac,
        )
        for name, some in merged.items()
    ]
    return tuple(sorted(rows, key=lambda r: -r[1])[:N_SHOWN])


def _times(name: str, projected_s: float, result: RowResult, which: int, measured_ms: float | None) -> str:
    low, high = (result.low or (0.0, 0.0))[which] * 1e3, (result.high or (0.0, 0.0))[which] * 1e3
    text = f"{name}: projected {projected_s * 1e3:.4g} ms [{low:.4g}, {high:.4g}]"
    if measured_ms is None:
        return text + "."
    return text + f", measured {measured_ms:.4g} ms ({projected_s * 1e3 / measured_ms - 1.0:+.1%})."


def _parts(row: RunRow, bench: Workbench, stack: StackParams) -> list[str]:
    features = bench.features(row)
    decode = features.decode[1] * part_factors(stack)
    names = {
        "dense products": (Part.GEMM, Part.GEMM_CALL, Part.QUANTISE), "experts": (Part.EXPERTS, Part.EXPERTS_CALL),
        "attention": (Part.ATTENTION, Part.ATTENTION_CALL), "small kernels": (Part.ELEMENTWISE, Part.ELEMENTWISE_CALL),
        "communication": (Part.COMM, Part.COMM_CALL),
    }  # fmt: skip
    parts = {name: float(sum(decode[i] for i in which)) for name, which in names.items()}
    parts["host, per step"] = float(features.n_decode[1] * stack.step_s)
    tpot = float(Batch.of([row], [features]).predict(stack)[0, 1])
    parts["passes with other requests' prompts"] = max(0.0, tpot - sum(parts.values()))
    listed = ", ".join(f"{name} {s * 1e3:.3g} ms" for name, s in sorted(parts.items(), key=lambda x: -x[1]) if s > 0.0)
    return [f"Of the TPOT, with the stack's factors: {listed}."]


def _queueing(row: RunRow, bench: Workbench, stack: StackParams) -> str:
    """TTFT against that of a request that is alone: the difference is waiting for others' passes and prompts."""
    from dataclasses import replace

    alone = replace(row, concurrency=1)
    busy_s = float(Batch.of([row], [bench.features(row)]).predict(stack)[0, 0])
    alone_s = float(Batch.of([alone], [bench.features(alone)]).predict(stack)[0, 0])
    return (
        f"Queueing: alone the first token would take {alone_s * 1e3:.4g} ms; {row.concurrency} in flight add "
        f"{max(0.0, busy_s - alone_s) * 1e3:.4g} ms of waiting for other prompts and longer passes."
    )


def _dominant(lines: Sequence[OpLine]) -> str:
    spread: dict[str, float] = {}
    for line in lines:
        error = ASSUMED_ERROR_FRAC if line.error_frac is None else line.error_frac
        spread[line.name] = spread.get(line.name, 0.0) + line.time_s * error
    name, most = max(spread.items(), key=lambda x: x[1])
    total = float(np.sum(list(spread.values())))
    return f"Uncertainty: {name} dominates ({most / max(total, 1e-30):.0%} of the operators' intervals added up)."


def _verdict(known: Judged) -> str:
    inside = [n for i, n in ((1, "TPOT"), (0, "TTFT")) if known.low[i] <= (known.measured(i) or 0.0) <= known.high[i]]
    held = " and ".join(inside) if inside else "neither"
    return f"Inside the 90% interval: {held}. Suspected cause of what is left: {suspected_cause(known)}."
