"""Reading request files: JSONL, CSV, Parquet, Azure 2023 and Mooncake traces; one request at a time, in order of arrival."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.sim.serving.requests import Request
from moesim.specs.serving import RequestFormat

__all__ = ["read_requests"]

#: Spellings of each field, the first is ours. `arrival_time` and `*_toks` are those of vLLM's benchmark logs.
ALIASES = {
    "request_id": ("request_id", "id"),
    "arrival_s": ("arrival_s", "arrival", "arrival_time", "arrival_time_s"),
    "input_tokens": ("input_tokens", "input_toks", "input_length", "prompt_tokens"),
    "output_tokens": ("output_tokens", "output_toks", "output_length", "generated_tokens"),
}
#: Arrivals after this are moments of the calendar, and are counted from the first request.
EPOCH_S = 1e6
Row = tuple[int, Mapping[str, Any]]


def read_requests(path: Path, kind: RequestFormat = RequestFormat.AUTO, limit: int | None = None) -> Iterator[Request]:
    """Requests of a file.

    Args:
        path: the file.
        kind: its layout; by default found from its ending and its columns.
        limit: stop after so many.

    Raises:
        InputError: no such file, a missing column, a value that is not a count or a time, or arrivals out of order; with line.
    """
    if not path.is_file():
        raise InputError("no such file", file=str(path), hint="check the path")
    if kind is RequestFormat.AUTO:
        kind = _guess(path)
    rows, read = {
        RequestFormat.JSONL: (_json_rows, _generic),
        RequestFormat.CSV: (_csv_rows, _generic),
        RequestFormat.PARQUET: (_parquet_rows, _generic),
        RequestFormat.AZURE_2023: (_csv_rows, _azure),
        RequestFormat.MOONCAKE: (_json_rows, _mooncake),
    }[kind]
    return islice(_ordered(path, rows(path), read), limit)


def _ordered(path: Path, rows: Iterator[Row], read: Callable[[int, Mapping[str, Any]], Request]) -> Iterator[Request]:
    first: float | None = None
    last = -math.inf
    for number, (line, row) in enumerate(rows):
        try:
            request = read(number, row)
        except InputError as error:
            raise error.at(file=str(path), line=line) from None
        at = request.arrival_s
        if first is None:
            first = at if at > EPOCH_S else 0.0
        at -= first
        if at < last:
            raise InputError("arrives before the request above it", file=str(path), line=line, field="arrival_s",
                             value=request.arrival_s, hint="sort the file by arrival")  # fmt: skip
        last = at
        yield request if first == 0.0 else _at(request, at)
    if first is None:
        raise InputError("holds no requests", file=str(path))


def _at(request: Request, arrival_s: float) -> Request:
    return Request(request.request_id, arrival_s, request.input_tokens, request.output_tokens, request.prefix_hashes,
                   request.hash_tokens, request.domain)  # fmt: skip


def _guess(path: Path) -> RequestFormat:
    ending = path.suffix.lower()
    if ending in (".parquet", ".pq"):
        return RequestFormat.PARQUET
    if ending in (".jsonl", ".ndjson", ".json"):
        _, row = next(_json_rows(path), (0, {}))
        return RequestFormat.MOONCAKE if {"timestamp", "input_length"} <= set(row) else RequestFormat.JSONL
    if ending == ".csv":
        with path.open(encoding="utf-8-sig") as stream:
            return RequestFormat.AZURE_2023 if stream.readline().startswith("TIMESTAMP,") else RequestFormat.CSV
    raise InputError("has an ending that says no format", file=str(path), allowed=".jsonl, .csv, .parquet",
                     hint="or give `format`")  # fmt: skip


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"is not JSON: {error.msg}", file=str(path), line=line) from None
            if not isinstance(row, dict):
                raise InputError("is not an object of fields", file=str(path), line=line)
            yield line, row


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        yield from enumerate(csv.DictReader(stream), start=2)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    line = 0
    try:
        batches = parquet.ParquetFile(path).iter_batches()
        for batch in batches:
            for row in batch.to_pylist():
                line += 1
                yield line, row
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as Parquet: {error}", file=str(path)) from None


def _generic(number: int, row: Mapping[str, Any]) -> Request:
    name = _field(row, "request_id", needed=False)
    hashes = row.get("prefix_hashes") or row.get("hash_ids") or ()
    if isinstance(hashes, str):
        hashes = hashes.split()
    domain = row.get("domain")
    return Request(
        request_id=str(name) if name is not None else str(number),
        arrival_s=_time(_field(row, "arrival_s"), "arrival_s"),
        input_tokens=_count(_field(row, "input_tokens"), "input_tokens"),
        output_tokens=_count(_field(row, "output_tokens"), "output_tokens"),
        prefix_hashes=tuple(_hash(h) for h in hashes),
        hash_tokens=_count(row.get("hash_tokens") or 512, "hash_tokens"),
        domain=str(domain) if domain else None,
    )


def _azure(number: int, row: Mapping[str, Any]) -> Request:
    """The Azure LLM inference trace of 2023 (Patel et al., Splitwise, ISCA 2024)."""
    text = str(_named(row, "TIMESTAMP"))
    try:
        at = datetime.fromisoformat(text + "+00:00").timestamp()
    except ValueError:
        raise InputError("is not a time", field="TIMESTAMP", value=text) from None
    return Request(str(number), at, _count(_named(row, "ContextTokens"), "ContextTokens"),
                   _count(_named(row, "GeneratedTokens"), "GeneratedTokens"))  # fmt: skip


def _mooncake(number: int, row: Mapping[str, Any]) -> Request:
    """Mooncake's conversation trace (Qin et al., arXiv 2407.00079): times in ms, one hash per 512 tokens."""
    return Request(
        str(number), _time(_named(row, "timestamp"), "timestamp") / 1000.0,
        _count(_named(row, "input_length"), "input_length"), _count(_named(row, "output_length"), "output_length"),
        tuple(_hash(h) for h in row.get("hash_ids") or ()), 512,
    )  # fmt: skip


def _field(row: Mapping[str, Any], name: str, *, needed: bool = True) -> Any:
    for alias in ALIASES[name]:
        if row.get(alias) not in (None, ""):
            return row[alias]
    if needed:
        raise InputError("is missing", field=name, allowed=f"one of the columns {', '.join(ALIASES[name])}")
    return None


def _named(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) in (None, ""):
        raise InputError("is missing", field=name)
    return row[name]


def _count(value: Any, field: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number != int(number) or not 0 <= number <= 10**9:
        raise InputError("must be a whole number of tokens, not negative", field=field, value=value)
    return int(number)


def _time(value: Any, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < 0.0:
        raise InputError("must be a time in seconds, not negative", field=field, value=value)
    return number


def _hash(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InputError("must be whole numbers", field="prefix_hashes", value=value) from None
