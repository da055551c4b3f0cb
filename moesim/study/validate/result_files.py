"""Result files of load generators as rows: ``vllm bench serve``, SGLang's ``bench_serving``, AIPerf and genai-perf."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.study.validate.table import RunRow, read_table, row_of

__all__ = ["runs_of"]


def runs_of(path: Path, defaults: Mapping[str, str]) -> list[RunRow]:
    """Rows of a table or of a result file; `defaults` fill what it does not say (system, backend, tp_size, ...).

    Raises:
        InputError: an unreadable file, a layout we do not know, a row without measured times.
    """
    lines = _json_lines(path) if path.suffix in (".json", ".jsonl") else None
    if lines is None:
        rows = []
        for _, row in read_table(path):
            if isinstance(row, InputError):
                raise row
            rows.append(row)
    else:
        rows = [_row({**defaults, **_known(line, str(path))}, path, i) for i, line in enumerate(lines)]
    for row in rows:
        if row.measured_ttft_ms is None and row.measured_tpot_ms is None:
            raise InputError("has no measured times", file=str(path), field=row.name)
    return rows


def _row(line: Mapping[str, str], path: Path, index: int) -> RunRow:
    missing = [
        k
        for k in ("model", "system", "backend", "tp_size", "concurrency", "isl_nominal", "osl_nominal")
        if not line.get(k)
    ]
    if missing:
        raise InputError(
            "is not in the result file", file=str(path), field=missing[0], hint=f"give --set {missing[0]}=VALUE"
        )
    return row_of(line, f"{path.stem}-{index + 1}")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        found = (
            [json.loads(x) for x in text.splitlines() if x.strip()] if path.suffix == ".jsonl" else [json.loads(text)]
        )
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError("is not a JSON result file", file=str(path), hint=str(error)) from error
    if not all(isinstance(x, dict) for x in found):
        raise InputError("is not a JSON result file", file=str(path))
    return found


def _known(line: Mapping[str, Any], file: str) -> dict[str, str]:
    if "mean_ttft_ms" in line:
        return _bench(line)
    if "time_to_first_token" in line:
        return _aiperf(line)
    raise InputError(
        "layout is not known", file=file, allowed="vllm bench serve, SGLang bench_serving, AIPerf, genai-perf"
    )


def _bench(line: Mapping[str, Any]) -> dict[str, str]:
    """`vllm bench serve` and SGLang's `bench_serving` share these names."""
    n = float(line.get("completed") or line.get("num_prompts") or 0)
    found = {
        "model": line.get("model_id") or line.get("model"), "concurrency": line.get("max_concurrency"),
        "measured_ttft_ms": line.get("mean_ttft_ms"), "measured_tpot_ms": line.get("mean_tpot_ms"),
        "isl_nominal": _nominal(line.get("total_input_tokens"), n), "osl_nominal": _nominal(line.get("total_output_tokens"), n),
    }  # fmt: skip
    backend = str(line.get("backend") or "").lower()
    if "sglang" in backend or "vllm" in backend:
        found["backend"] = "sglang" if "sglang" in backend else "vllm"
    return {k: str(v) for k, v in found.items() if v is not None}


def _aiperf(line: Mapping[str, Any]) -> dict[str, str]:
    """AIPerf and genai-perf: one entry per metric with its average, times in ms."""

    def average(name: str) -> float | None:
        entry = line.get(name)
        return float(entry["avg"]) if isinstance(entry, dict) and "avg" in entry else None

    config = line.get("input_config") if isinstance(line.get("input_config"), dict) else {}
    load = config.get("loadgen", config) if isinstance(config, dict) else {}
    found = {
        "measured_ttft_ms": average("time_to_first_token"), "measured_tpot_ms": average("inter_token_latency"),
        "isl_nominal": _nominal(average("input_sequence_length"), 1.0),
        "osl_nominal": _nominal(average("output_sequence_length"), 1.0),
        "concurrency": load.get("concurrency") if isinstance(load, dict) else None,
    }  # fmt: skip
    return {k: str(v) for k, v in found.items() if v is not None}


def _nominal(total: Any, n: float) -> int | None:
    """Nominal length whose mean, 0.9 of it, is the measured mean."""
    return max(1, round(float(total) / n / 0.9)) if total and n else None
