"""Rows and tables that tests share."""

from __future__ import annotations

from pathlib import Path

from moesim.study.validate.table import RunRow

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "silicon_e2e.csv"

HEADER = (
    "row,model,system,backend,precision,isl_nominal,osl_nominal,concurrency,tp_size,ep_size,warm_up,"
    "measured_ttft_ms,measured_tpot_ms"
)


def run_row(**changes: object) -> RunRow:
    values: dict[str, object] = {
        "name": "a", "model": "meta-llama/Llama-3.1-8B-Instruct", "system": "h100_sxm", "backend": "vllm", "precision": "",
        "isl": 512, "osl": 128, "concurrency": 8, "tp_size": 1,
    }  # fmt: skip
    return RunRow(**{**values, **changes})  # type: ignore[arg-type]
