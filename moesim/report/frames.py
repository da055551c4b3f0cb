"""A result as tidy pandas tables; units are in the column names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.study.results import RankDetail, RunResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frames"]

Row = dict[str, Any]


def frames(result: RunResult) -> dict[str, pd.DataFrame]:
    """One table per file name, such as points, operators, passes, waits, comparisons, flips, memory and inputs."""
    import pandas as pd

    rows = {
        "points": _points(result),
        "passes": _passes(result),
        "waits": _waits(result),
        "ports": _ports(result),
        "what_if": _what_if(result),
        "operators": _operators(result),
        "comparisons": [_flat(c) for c in result.comparisons],
        "flips": _flips(result),
        "crossings": _crossings(result),
        "memory": _memory(result),
        "quality": [_plain(q) for q in result.quality],
        "expert_load": _expert_load(result),
        "awaited": _awaited(result),
        "inputs": [_plain(i) for i in result.inputs],
    }
    return {name: pd.DataFrame(found) for name, found in rows.items() if found}


def _plain(record: Any, **first: Any) -> Row:
    return {**first, **record.model_dump(mode="json")}


def _flat(record: Any, **first: Any) -> Row:
    """The record with the ends of its intervals as columns."""
    row = _plain(record, **first)
    for name, (low, high) in row.pop("intervals").items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _points(result: RunResult) -> list[Row]:
    return [
        _flat(p, system=s.name, kind=s.kind.value, basis=s.basis.value, model=s.model, n_devices=result.n_devices)
        for s in result.systems
        for p in s.points
    ]


def _passes(result: RunResult) -> list[Row]:
    rows = []
    for s in result.systems:
        for name, d in s.passes:
            row = _plain(d, system=s.name) | {"phase": name}
            for inner in ("operators", "ranks", "what_if"):
                row.pop(inner)
            gap = row.pop("gap") or {}
            waits = gap.pop("waits_s", {})
            row |= {f"gap_{k}": v for k, v in gap.items()}
            row |= {f"wait_s {cause}": seconds for cause, seconds in sorted(waits.items())}
            rows.append(row)
    return rows


def _by_rank(result: RunResult) -> list[tuple[Row, RankDetail]]:
    """Passes that are known rank by rank, with what names them."""
    return [
        ({"system": s.name, "phase": name}, d.ranks)
        for s in result.systems
        for name, d in s.passes
        if d.ranks is not None
    ]


def _waits(result: RunResult) -> list[Row]:
    return [
        {**key, "first_rank": i * ranks.n_ranks_per_row, "layer": layer, "wait_s": seconds}
        for key, ranks in _by_rank(result)
        for i, row in enumerate(ranks.wait_s)
        for layer, seconds in zip(ranks.layers, row, strict=True)
    ]


def _ports(result: RunResult) -> list[Row]:
    rows: list[Row] = []
    for key, ranks in _by_rank(result):
        columns = {
            name: getattr(ranks, name)
            for name in (
                "out_port_frac", "in_port_frac", "engine_frac", "up_out_frac", "up_in_frac", "nic_out_frac", "nic_in_frac",
                "queue_s",
            )
        }  # fmt: skip
        columns |= {f"idle_s {cause}": seconds for cause, seconds in ranks.idle_s.items()}
        for i in range(len(ranks.engine_frac)):
            values = {name: column[i] if column else None for name, column in columns.items()}
            rows.append({**key, "first_rank": i * ranks.n_ranks_per_row, **values})
    return rows


def _awaited(result: RunResult) -> list[Row]:
    return [
        {**key, "rank": row.rank, "wait_s": row.wait_s, "n_layers": row.n_layers, "reason": reason, "reason_s": seconds}
        for key, ranks in _by_rank(result)
        for row in ranks.awaited
        for reason, seconds in row.reasons_s.items()
    ]


def _what_if(result: RunResult) -> list[Row]:
    return [_plain(row, system=s.name, phase=name) for s in result.systems for name, d in s.passes for row in d.what_if]


def _operators(result: RunResult) -> list[Row]:
    return [
        _plain(row, system=s.name, phase=d.phase, concurrency=d.concurrency)
        for s in result.systems
        for d in s.details
        for row in d.operators
    ]


_FLIP_COLUMNS = ("usd_ratio", "usd_ratio_low", "usd_ratio_high", "tpot_ratio", "tpot_ratio_low", "tpot_ratio_high")


def _flips(result: RunResult) -> list[Row]:
    return [
        {"reference": f.reference, "other": f.other, "axis": f.axis.value, "unit": f.unit, "x": x,
         **{name: values[i] for name in _FLIP_COLUMNS if len(values := getattr(f, name)) == len(f.x)}}
        for f in result.flips
        for i, x in enumerate(f.x)
    ]  # fmt: skip


def _crossings(result: RunResult) -> list[Row]:
    return [
        {"reference": f.reference, "other": f.other, "axis": f.axis.value, "unit": f.unit, "x": x}
        for f in result.flips
        for x in f.crossings
    ]


def _memory(result: RunResult) -> list[Row]:
    rows = []
    for s in result.systems:
        row = _plain(s.memory, system=s.name)
        weights = row.pop("weights_bytes")
        row["remedies"] = "; ".join(row["remedies"])
        rows.append(row | {f"weights_bytes {kind}": n for kind, n in sorted(weights.items())})
    return rows


def _expert_load(result: RunResult) -> list[Row]:
    return [
        {"system": s.name, "layer": layer, "expert": expert, "n_tokens": n}
        for s in result.systems
        if s.expert_load is not None
        for layer, counts in zip(s.expert_load.layers, s.expert_load.counts, strict=True)
        for expert, n in enumerate(counts)
    ]
