"""Tables of serving runs: one row is one engine under a closed loop of requests. Reading and checking, no modelling."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError
from moesim.specs.catalog import load_hardware

__all__ = ["REQUIRED", "RunRow", "read_table", "row_of"]

REQUIRED = ("model", "system", "backend", "isl_nominal", "osl_nominal", "concurrency", "tp_size")
BACKENDS = ("vllm", "sglang", "trtllm")
MOST_TOKENS = 10_000_000
EMPTY = ("", "nan", "none", "null", "na")


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run: `concurrency` requests in flight, each replaced when done; lengths uniform in 0.8 to 1.0 of nominal.

    `poll_passes`, `stream_tokens` and `budget_tokens` are settings of the engine, None where nobody says (see `launch_of`).
    `warm_up` is yes, no or unknown; measured times are client-side means in milliseconds, None where nobody measured.
    """

    name: str
    model: str
    system: str
    backend: str
    precision: str
    isl: int
    osl: int
    concurrency: int
    tp_size: int
    attention_dp_size: int = 1
    ep_size: int = 1
    warm_up: str = "yes"
    measured_ttft_ms: float | None = None
    measured_tpot_ms: float | None = None
    poll_passes: float | None = None
    stream_tokens: float | None = None
    budget_tokens: float | None = None

    @property
    def group(self) -> str:
        """Model and system: what is left out together."""
        return f"{self.model} on {self.system}"

    @property
    def device(self) -> str:
        """The catalog's name of the device that the system is made of, whichever alias or cluster the row names.

        Raises:
            CatalogError: an unknown system.
        """
        return load_hardware(self.system).device.name

    @property
    def mean_isl(self) -> float:
        """Mean prompt length."""
        return 0.9 * self.isl

    @property
    def mean_osl(self) -> float:
        """Mean output length."""
        return 0.9 * self.osl


def read_table(path: Path) -> list[tuple[dict[str, str], RunRow | InputError]]:
    """Every line of a CSV as it is, with the row it says or the error in it.

    Raises:
        InputError: no such file, not a CSV with a header, a required column missing, no rows.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot be read as text", file=str(path), hint=str(error)) from error
    reader = csv.DictReader(text.splitlines())
    columns = reader.fieldnames or []
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise InputError(
            "this column is missing",
            file=str(path),
            field=missing[0],
            hint=f"one run per line, with the columns {', '.join(REQUIRED)}",
        )
    rows = list(_rows(reader, str(path)))
    if not rows:
        raise InputError("has no rows", file=str(path))
    return rows


def _rows(reader: csv.DictReader[str], file: str) -> Iterator[tuple[dict[str, str], RunRow | InputError]]:
    for raw in reader:
        line = {str(k): str(v or "") for k, v in raw.items() if k is not None}
        try:
            yield line, row_of(line, f"line {reader.line_num}")
        except InputError as error:
            yield line, error.at(file=file, line=reader.line_num)


def row_of(line: Mapping[str, str], name: str = "row") -> RunRow:
    """A row from its cells.

    Raises:
        InputError: a number that is none or out of range, an unknown backend.
    """
    backend = _text(line, "backend").lower().replace("tensorrt-llm", "trtllm").replace("tensorrt_llm", "trtllm")
    if backend not in BACKENDS:
        raise InputError("unknown backend", field="backend", value=backend, allowed=", ".join(BACKENDS))
    model, system = _text(line, "model"), _text(line, "system")
    if not model or not system:
        raise InputError("is empty", field="model" if not model else "system")
    return RunRow(
        name=_text(line, "row") or name, model=model, system=system, backend=backend,
        precision=_text(line, "precision").lower(), isl=_count(line, "isl_nominal"), osl=_count(line, "osl_nominal"),
        concurrency=_count(line, "concurrency"), tp_size=_count(line, "tp_size"),
        attention_dp_size=_count(line, "attention_dp_size", 1), ep_size=_count(line, "ep_size", 1),
        warm_up=_text(line, "warm_up").lower() or "yes", measured_ttft_ms=_time(line, "measured_ttft_ms"),
        measured_tpot_ms=_time(line, "measured_tpot_ms"), poll_passes=_time(line, "poll_passes"),
        stream_tokens=_time(line, "stream_tokens"), budget_tokens=_time(line, "budget_tokens"),
    )  # fmt: skip


def _text(line: Mapping[str, str], name: str) -> str:
    value = line.get(name, "").strip()
    return "" if value.lower() in EMPTY else value


def _count(line: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = _text(line, name)
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if default is not None and value == 0:
        return default
    if not (1 <= value <= MOST_TOKENS) or value != int(value):
        raise InputError("is not a whole number above zero", field=name, value=text)
    return int(value)


def _time(line: Mapping[str, str], name: str) -> float | None:
    text = _text(line, name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError("is not a number above zero", field=name, value=text)
    return value
