"""The page and the words of a serve run: an overload cannot be missed, and a run without warm-up says so."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import moesim.cli
from moesim.report.serve_page import serve_page
from moesim.specs.serving import ServeScenarioSpec
from moesim.study.serve import ServeRun, load_serve_scenario, run_serve

MAPPING: dict[str, Any] = {
    "title": "OLMoE on one H100", "hardware": "h100_sxm", "system": {"name": "m", "kind": "moe", "model": "olmoe-1b-7b"},
    "serving": {
        "arrivals": {"kind": "poisson", "rate_per_s": 5.0, "n_requests": 80}, "input": {"kind": "fixed", "tokens": 256},
        "output": {"kind": "uniform", "low": 16, "high": 48},
        "scheduler": {"max_num_seqs": 8, "max_num_batched_tokens": 1024, "max_model_len": 512},
        "slo": {"ttft_s": "200 ms", "tpot_s": "20 ms"},
    },
}  # fmt: skip


def served(rate_per_s: float, warmup: int = 0, kind: str = "poisson") -> ServeRun:
    load = {"concurrency": 8} if kind == "closed_loop" else {"rate_per_s": rate_per_s}
    arrivals = {"kind": kind, "n_requests": 400 if rate_per_s > 100 else 80, **load}
    serving = {**MAPPING["serving"], "arrivals": arrivals, "warmup_requests": warmup}
    return run_serve(ServeScenarioSpec.model_validate({**MAPPING, "serving": serving}))


def words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S)).split())


@pytest.fixture(scope="module")
def over() -> ServeRun:
    run = served(400.0)
    assert run.result.outcome == "unstable"
    return run


def test_an_overload_cannot_be_missed(over: ServeRun) -> None:
    page = serve_page(over)
    text = words(page)
    rate = f"{over.result.sustainable_requests_per_s:.3g}"
    banner = re.search(r'<p class="banner"[^>]*>(.*?)</p>', page)
    assert banner is not None
    assert "Overloaded:" in banner[1]
    assert f"{rate} can be served. The queue grows without end." in banner[1]
    assert 'class="callout warning"' in page
    assert "The queue grows:" in text  # the figure's title
    assert text.count("sustainable rate") == 0  # told once, in words


def test_a_stable_run_says_so_without_alarm() -> None:
    run = served(5.0, warmup=10)
    assert run.result.outcome == "ok"
    text = words(serve_page(run))
    assert "Stable at" in text
    assert "meet the goals (TTFT 200 ms, TPOT 20 ms)" in text
    assert "Overloaded" not in text
    assert "The queue settles" in text or "No request waits" in text
    assert "no warm-up" not in text


@pytest.mark.parametrize(
    ("kind", "expected"), [("closed_loop", "all requests come at once"), ("poisson", "as it fills")]
)
def test_without_warm_up_the_run_says_what_its_statistics_hold(kind: str, expected: str) -> None:
    notes = served(5.0, kind=kind).result.notes
    assert any("no warm-up" in note and expected in note for note in notes)


@pytest.mark.parametrize("name", ["llama-3.1-8b-rtxpro6000", "qwen3-30b-a3b-rtxpro6000", "qwen3-32b-2xrtxpro6000"])
def test_shipped_examples_are_stable_and_warm_up(name: str) -> None:
    scenario, file = load_serve_scenario(name)
    assert scenario.serving.warmup_requests > 0
    arrivals = scenario.serving.arrivals
    assert arrivals is not None
    short = scenario.model_copy(
        update={
            "serving": scenario.serving.model_copy(update={"arrivals": arrivals.model_copy(update={"n_requests": 400})})
        }
    )
    run = run_serve(short, file=file)
    assert run.result.outcome == "ok"
    assert run.result.good_frac is not None
    assert run.result.good_frac > 0.9


def test_the_command_prints_tables_and_an_overload_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    arrivals = {"kind": "poisson", "rate_per_s": 400.0, "n_requests": 400}
    (tmp_path / "over.yaml").write_text(
        json.dumps({**MAPPING, "serving": {**MAPPING["serving"], "arrivals": arrivals}})
    )
    monkeypatch.setattr(sys, "argv", ["moesim", "serve", str(tmp_path / "over.yaml"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        moesim.cli.main()
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[1].startswith("- unstable: the queue grows without bound")
    assert not any(line.startswith(("#", "|")) for line in lines)
    latency = next(line for line in lines if line.split()[:2] == ["TTFT", "(ms)"])
    written = (tmp_path / "out" / "summary.md").read_text()
    assert f"| TTFT (ms) | {latency.split()[2]} |" in written
    assert lines[-1].startswith(f"written to {tmp_path / 'out' / 'report.html'} in ")
