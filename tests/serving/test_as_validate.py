"""`serve` against `validate serving`: two engines, one stack, the same requests and launch settings, the same means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.specs.serving import ServeScenarioSpec
from moesim.study.serve import run_serve
from moesim.study.stack_files import shipped_stacks
from moesim.study.validate.closed_loop import MOST_HELD, lengths_of
from moesim.study.validate.fit import stack_for, stack_key
from moesim.study.validate.launches import launch_of
from moesim.study.validate.predict import Batch
from moesim.study.validate.table import RunRow
from moesim.study.validate.workload import Workbench

DENSE = ("meta-llama/Llama-3.1-70B", "h200_sxm", "", 4)
MOE = ("openai/gpt-oss-120b", "h200_sxm", "fp4", 4)
LENGTH = 1024


def row_of(model: tuple[str, str, str, int], backend: str, concurrency: int) -> RunRow:
    name, system, precision, tp = model
    return RunRow("x", name, system, backend, precision, LENGTH, LENGTH, concurrency, tp, warm_up="yes")


def validated(row: RunRow) -> np.ndarray:
    batch = Batch.of([row], [Workbench().features(row)])
    return batch.predict(stack_for(stack_key(row), shipped_stacks()))[0]


def scenario_of(row: RunRow, folder: Path) -> ServeScenarioSpec:
    """The row's launch and its very requests."""
    launch, n = launch_of(row), 10 * row.concurrency
    rng = np.random.default_rng(0)
    lengths = zip(lengths_of(row.isl, n, 0.2, rng), lengths_of(row.osl, n, 0.2, rng), strict=True)
    file = folder / "requests.jsonl"
    lines = [json.dumps({"arrival_s": 0.0, "input_tokens": int(i), "output_tokens": int(o)}) for i, o in lengths]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kind = "dense" if row.model == DENSE[0] else "moe"
    return ServeScenarioSpec.model_validate({
        "title": "as validated", "hardware": row.system, "n_devices": row.tp_size,
        "system": {"name": "m", "kind": kind, "model": row.model, "parallel": {"tp_size": row.tp_size}},
        "serving": {
            "arrivals": {"kind": "closed_loop", "concurrency": row.concurrency, "n_requests": n},
            "requests": {"file": str(file)},
            "scheduler": {
                "policy": row.backend, "max_num_batched_tokens": launch.budget_tokens, "poll_passes": launch.poll_passes,
                "fill_passes": launch.hold_passes, "fill_frac": launch.hold_frac, "balance_passes": MOST_HELD,
                "chunked_prefill": row.backend != "trtllm", "prefix_caching": False,
            },
        },
    })  # fmt: skip


@pytest.mark.parametrize("concurrency", [1, 4, 32, 128])
@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
def test_serve_equals_validate(
    model: tuple[str, str, str, int], backend: str, concurrency: int, tmp_path: Path
) -> None:
    row = row_of(model, backend, concurrency)
    result = run_serve(scenario_of(row, tmp_path)).result
    ttft, tpot = validated(row)
    assert result.ttft_s.mean == pytest.approx(ttft, rel=0.02)
    assert result.tpot_s.mean == pytest.approx(tpot, rel=0.02)
    # requests in flight = rate x time of a request, while all of them are (the first waves start and the last ones end together)
    in_flight = result.requests_per_s * result.e2e_s.mean
    assert 0.9 * concurrency < in_flight < concurrency * (1.0 + 1e-9)
