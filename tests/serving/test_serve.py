from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.requests import Request, Sequence
from moesim.sim.serving.summary import Goals, good_requests, stability
from moesim.specs.load import validate
from moesim.specs.serving import ServeScenarioSpec
from moesim.study.operator_tables import find_tables, read_tables
from moesim.study.serve import load_serve_scenario, run_serve, simulate_requests
from moesim.study.serve_build import build_deployment
from moesim.study.serve_files import REQUEST_COLUMNS, SERIES_COLUMNS, write_serve

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def scenario(serving=None, **changes):
    base = {
        "title": "test", "hardware": "dgx_h100", "n_devices": 2, "calibration": "none",
        "system": {"name": "s", "kind": "dense", "model": "qwen3-0.6b"},
        "serving": {
            "arrivals": {"rate_per_s": 20.0, "n_requests": 60}, "input": {"kind": "uniform", "low": 10, "high": 300},
            "output": {"kind": "uniform", "low": 1, "high": 40}, "scheduler": {"max_num_seqs": 16, "max_num_batched_tokens": 512},
        },
    }  # fmt: skip
    base["serving"] |= serving or {}
    base |= changes
    return validate(ServeScenarioSpec, {k: v for k, v in base.items() if v is not None})


MOE = {"name": "m", "kind": "moe", "model": "olmoe-1b-7b", "parallel": {"dp_size": 2, "ep_size": 2}}


@pytest.mark.parametrize("system", [None, MOE])
def test_same_seed_same_bytes(system, tmp_path):
    spec = scenario(**({"system": system} if system else {}))
    outputs = []
    for name in ("a", "b"):
        run = run_serve(spec)
        write_serve(run, tmp_path / name)
        outputs.append({f.name: f.read_bytes() for f in sorted((tmp_path / name).iterdir())})
    assert outputs[0] == outputs[1]
    assert set(outputs[0]) == {"requests.csv", "results.json", "summary.md", "timeseries.csv"}
    assert run_serve(spec, seed=5).recorder.times["ttft_s"] != run.recorder.times["ttft_s"]


def test_moe_with_drawn_experts_jumps_exactly():
    deployment = build_deployment(scenario(system=MOE), 0)
    a, _ = simulate_requests(deployment, 0, jump=True)
    b, _ = simulate_requests(deployment, 0, jump=False)
    assert a.ids == b.ids
    for name in a.times:
        np.testing.assert_array_equal(a.times[name], b.times[name])


def test_files_and_books(tmp_path):
    run = run_serve(scenario({"slo": {"ttft_s": "1 s"}, "n_seeds": 3, "warmup_requests": 5}))
    write_serve(run, tmp_path)
    rows = list(csv.DictReader((tmp_path / "requests.csv").read_text().splitlines()))
    assert tuple(rows[0]) == REQUEST_COLUMNS
    assert len(rows) == 60
    for row in rows:
        n = int(row["output_tokens"])
        if n > 1:
            gap = float(row["e2e_s"]) - float(row["ttft_s"])
            assert float(row["tpot_s"]) == pytest.approx(gap / (n - 1), rel=1e-5)
        else:
            assert row["tpot_s"] == ""
    series = list(csv.DictReader((tmp_path / "timeseries.csv").read_text().splitlines()))
    assert tuple(series[0]) == SERIES_COLUMNS
    total = sum(float(r["output_tokens_per_s"]) for r in series)
    assert total == pytest.approx(sum(int(r["output_tokens"]) for r in rows), rel=1e-6)
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["submitted"] == result["finished"] + result["rejected"] + result["in_flight"]
    assert result["intervals"]["ttft_mean_s"]["half_width"] > 0
    assert result["outcome"] == "ok"
    assert 0 < result["good_frac"] <= 1
    kept = sorted(rows, key=lambda r: float(r["arrival_s"]))[5:]
    assert result["ttft_s"]["mean"] == pytest.approx(np.mean([float(r["ttft_s"]) for r in kept]), rel=1e-6)


def test_overload_is_called_unstable_with_a_rate_that_is_sustainable():
    heavy = {
        "arrivals": {"rate_per_s": 3000.0, "n_requests": 3000}, "input": {"tokens": 400}, "output": {"tokens": 40},
        "scheduler": {"max_num_seqs": 16, "max_num_batched_tokens": 512},
    }  # fmt: skip
    result = run_serve(scenario(heavy)).result
    assert result.outcome == "unstable"
    assert "the queue grows without bound" in result.stability
    rate = result.sustainable_requests_per_s
    assert rate is not None
    for factor, outcome in ((0.8, "ok"), (1.3, "unstable")):
        calmer = heavy | {"arrivals": {"rate_per_s": factor * rate, "n_requests": 3000}}
        assert run_serve(scenario(calmer)).result.outcome == outcome


def test_more_replicas_and_faster_links_do_not_hurt():
    one = run_serve(scenario({"arrivals": {"rate_per_s": 400.0, "n_requests": 300}})).result
    two = run_serve(scenario({"arrivals": {"rate_per_s": 400.0, "n_requests": 300}, "replicas": 2})).result
    assert two.ttft_s.mean < one.ttft_s.mean
    assert (one.n_devices, two.n_devices) == (1, 2)
    split = {"disaggregation": {"bandwidth": "1 GB/s"}}
    slow, fast = (
        run_serve(scenario({"disaggregation": {"bandwidth": b}})).result.e2e_s.mean for b in ("1 GB/s", "50 GB/s")
    )
    assert slow > fast
    assert run_serve(scenario(split)).result.deployment == "prefill 1 x 1 GPU, decode 1 x 1 GPU"


def test_closed_loop_has_no_stability_verdict():
    result = run_serve(scenario({"arrivals": {"kind": "closed_loop", "concurrency": 8, "n_requests": 60}})).result
    assert result.stability == "closed loop with 8 requests in flight"
    assert result.finished == 60


def test_interruption_keeps_what_was_done(monkeypatch):
    deployment = build_deployment(scenario(), 0)

    def tell(done):
        if done > 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("moesim.study.serve.REPORT_EVERY", 20)
    recorder, interrupted = simulate_requests(deployment, 0, tell=tell)
    t = recorder.totals
    assert interrupted
    assert t.submitted == 20
    assert len(recorder.ids) == 20


def test_goals():
    times = {
        "ttft_s": np.array([0.1, 0.3, 0.1]), "tpot_s": np.array([0.02, 0.02, np.nan]), "e2e_s": np.array([1.0, 1.0, 9.0]),
    }  # fmt: skip
    assert good_requests(times, Goals(ttft_s=0.2, tpot_s=0.05)).tolist() == [True, False, True]
    assert good_requests(times, Goals(e2e_s=2.0)).tolist() == [True, True, False]


def test_a_settled_queue_is_stable():
    recorder = Recorder()
    for i in range(400):
        seq = Sequence(Request(str(i), float(i), 1, 2))
        seq.scheduled_s, seq.first_s, seq.last_s, seq.queued_s = i + 30.0, i + 31.0, i + 32.0, float(i)
        recorder.finish(seq, 0)
    assert stability(recorder).is_stable


@pytest.mark.parametrize(
    ("serving", "changes", "words"),
    [
        ({"arrivals": {"rate_per_s": 1.0}, "input": None, "output": None}, {}, "lengths"),
        ({"arrivals": {"kind": "closed_loop"}}, {}, "concurrency"),
        ({"input": {"kind": "uniform", "low": 9, "high": 3}}, {}, "low: is more than high"),
        ({"scheduler": {"max_model_len": 10**9}}, {}, "beyond the model's context"),
        ({"replicas": 3}, {}, "devices"),
        ({"requests": {"file": "x"}}, {}, "come from the requests file"),
        ({}, {"system": {"name": "s", "kind": "moe", "model": "qwen3-0.6b"}}, "is dense"),
        (
            {},
            {"system": {"name": "s", "kind": "dense", "model": "qwen3-0.6b", "parallel": {"cp_size": 2}}},
            "not modelled",
        ),
        ({}, {"operator_tables": "/nowhere"}, "no such folder"),
        ({"arrivals": None, "input": None, "output": None}, {}, "no requests"),
    ],
)
def test_bad_scenarios_are_one_clear_line(serving, changes, words):
    def run():
        run_serve(scenario(serving, **changes))

    with pytest.raises(InputError, match=words) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_shipped_scenarios_are_valid():
    folder = Path(__file__).resolve().parents[2] / "scenarios" / "serving"
    names = sorted(f.stem for f in folder.glob("*.yaml"))
    assert names
    for name in names:
        spec, file = load_serve_scenario(name)
        assert file.stem == name
        assert spec.serving.arrivals is not None


def tables(folder: Path) -> Path:
    split = folder / "Toy-1B" / "tp1"
    split.mkdir(parents=True)
    dense = ["layer,tokens,time_us"]
    for layer in (
        "embedding",
        "layernorm",
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "act_fn",
        "down_proj",
        "final_layernorm",
    ):
        dense += [f"{layer},1,1.0", f"{layer},512,100.0"]
    attention = ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"]
    for q in (0, 16, 512):
        for p in (0, 512) if q else (0,):
            for n in (0, 1, 16):
                for c in (16, 1024) if n else (0,):
                    if q or n:
                        attention.append(f"{q},{p},{n},{c},{5 + q / 10 + n * c / 1000}")
    (split / "dense.csv").write_text("\n".join(dense))
    (split / "attention.csv").write_text("\n".join(attention))
    (split / "per_sequence.csv").write_text(
        "layer,sequences,time_us\nlm_head,1,50\nlm_head,16,60\nsampler,1,5\nsampler,16,6"
    )
    return split


def test_operator_tables_are_found_and_used(tmp_path):
    split = tables(tmp_path)
    assert find_tables(str(tmp_path), ("org/Toy-1B",), 1) == split
    assert find_tables(str(tmp_path / "Toy-1B"), ("any",), 1) == split
    assert find_tables(str(split), ("any",), 4) == split
    with pytest.raises(InputError, match="no profile of this split"):
        find_tables(str(tmp_path), ("Toy-1B",), 2)
    with pytest.raises(InputError, match="no profile of this model"):
        find_tables(str(tmp_path), ("Other",), 1)
    run = run_serve(scenario(operator_tables=str(split)))
    assert run.result.cost_source == "operator tables Toy-1B/tp1"
    cost, layers = run.deployment.main.cost, 28
    n_times = 1 + 1 + 2 * layers + 5 * layers
    assert cost.decode_rest_s[1] == pytest.approx(n_times * 1e-6)
    assert cost.head_s[1] == pytest.approx(55e-6)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("attention.csv", "a,b\n1,2", "has no such column"),
        ("dense.csv", "layer,tokens,time_us\nqkv_proj,x,1", "is not a number"),
        ("attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,16,nan", "finite"),
        ("dense.csv", "layer,tokens,time_us\nqkv_proj,1,1", "lacks a layer"),
    ],
)
def test_bad_tables(tmp_path, file, text, words):
    split = tables(tmp_path)
    (split / file).write_text(text)
    with pytest.raises(InputError, match=words):
        run_serve(scenario(operator_tables=str(split)))


def test_missing_table(tmp_path):
    split = tables(tmp_path)
    (split / "per_sequence.csv").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_tables(split)


@pytest.mark.skipif(not (SHARED / "serving_logs").is_dir(), reason="the measured logs are not beside this checkout")
@pytest.mark.parametrize("log", ["Llama-3.1-8B", "Qwen3-32B"])
def test_replayed_vllm_logs_are_within_the_targets(log):
    """TPOT within 2%, end to end within 2.5%, TTFT mean within 5% and median within 10%, each request's E2E within 5%."""
    import importlib.util

    path = Path(__file__).resolve().parents[2] / "benchmarks" / "serving_validation.py"
    spec = importlib.util.spec_from_file_location("serving_validation", path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["serving_validation"] = module
    spec.loader.exec_module(module)
    (one,) = [found for found in module.read_logs(SHARED) if log in found.name]
    recorder, _ = simulate_requests(module.deployment_of(one, SHARED), 0)
    table, per_request = module.errors(one, recorder)
    for key, row in table.items():
        for value, target in zip(row, module.TARGETS[key], strict=True):
            assert target is None or abs(value) < target, (key, row)
    assert per_request < 5.0
