"""Tables in, predictions out: bad rows, resuming, what moves which way, intervals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import validate_sample as sample

from moesim.cost.stack import DEFAULT_STACK, StackParams
from moesim.errors import InputError
from moesim.specs.dtypes import Dtype
from moesim.study.stack_files import Bands, band_of, load_stack, save_stack, shipped_bands, shipped_stacks
from moesim.study.validate.accuracy import Judged, accuracy_of
from moesim.study.validate.explain import explain_row
from moesim.study.validate.fit import Runs, fit_one
from moesim.study.validate.launches import launch_of
from moesim.study.validate.own_runs import calibrate_runs, warnings_for
from moesim.study.validate.predict import Batch
from moesim.study.validate.published import load_cases, run_cases
from moesim.study.validate.result_files import runs_of
from moesim.study.validate.serving import validate_serving
from moesim.study.validate.setup import model_of
from moesim.study.validate.table import read_table
from moesim.study.validate.workload import Workbench

LINES = [
    "a,meta-llama/Llama-3.1-8B-Instruct,h100_sxm,vllm,,1024,128,8,1,1,yes,60,8",
    "b,meta-llama/Llama-3.1-8B-Instruct,h100_sxm,vllm,,1024,128,32,1,1,yes,150,11",
    "c,meta-llama/Llama-3.1-8B-Instruct,h100_sxm,vllm,,1024,128,32,2,1,yes,90,8",
]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([sample.HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def times(**changes: object) -> tuple[float, float]:
    row = sample.run_row(**changes)
    found = Batch.of([row], [Workbench().features(row)]).predict(DEFAULT_STACK)[0]
    return float(found[0]), float(found[1])


def test_answers_every_row_and_says_why_not(tmp_path: Path) -> None:
    bad = "d,no-such-model,h100_sxm,vllm,,1024,128,8,1,1,yes,60,8"
    worse = "e,meta-llama/Llama-3.1-8B-Instruct,h100_sxm,vllm,,1024,128,many,1,1,yes,60,8"
    table = write(tmp_path / "t.csv", *LINES, bad, worse)
    out = tmp_path / "out.csv"
    results = validate_serving(table, out)
    assert [r.outcome for r in results] == ["ok", "ok", "ok", "unsupported", "bad_input"]
    rows = list(csv.DictReader(out.read_text().splitlines()))
    for row in rows[:3]:
        assert (
            0
            < float(row["projected_tpot_ms_low"])
            < float(row["projected_tpot_ms"])
            < float(row["projected_tpot_ms_high"])
        )
        assert (
            0
            < float(row["projected_ttft_ms_low"])
            < float(row["projected_ttft_ms"])
            < float(row["projected_ttft_ms_high"])
        )
    assert "no-such-model" in rows[3]["reason"]
    assert "many" in rows[4]["reason"]


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    table, out = write(tmp_path / "t.csv", *LINES), tmp_path / "out.csv"
    validate_serving(table, out)
    lines = out.read_text().splitlines()
    # a marked answer shows that finished rows are read back, and the missing one is made anew
    names = lines[0].split(",")
    cells = lines[1].split(",")
    cells[names.index("projected_tpot_ms")] = "77.0"
    out.write_text("\n".join([lines[0], ",".join(cells), lines[2]]) + "\n")
    again = validate_serving(table, out)
    assert again[0].projected is not None
    assert again[0].projected[1] == pytest.approx(0.077)
    assert again[2].projected is not None
    assert len(out.read_text().splitlines()) == 4


def test_rows_that_other_stacks_made_are_made_anew(tmp_path: Path) -> None:
    table, out = write(tmp_path / "t.csv", *LINES[:1]), tmp_path / "out.csv"
    first = validate_serving(table, out)[0].projected
    slower = {"default": replace(DEFAULT_STACK, step_s=1.0)}
    second = validate_serving(table, out, stacks=slower)[0].projected
    assert first is not None
    assert second is not None
    assert second[1] > first[1] + 0.9
    assert validate_serving(table, out)[0].projected == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", sample.HEADER + "\n"])
def test_unusable_tables_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError):
        read_table(path)


def test_more_in_flight_takes_longer_and_more_ranks_less() -> None:
    few, many, split = times(concurrency=4), times(concurrency=64), times(concurrency=64, tp_size=2)
    assert many[0] > few[0]
    assert many[1] > few[1]
    assert split[1] < many[1]


def test_what_a_precision_means() -> None:
    deepseek = model_of("deepseek-ai/DeepSeek-V3", "fp4", "trtllm", "b200_sxm").storage
    assert (deepseek.routed_experts.dtype, deepseek.attention.dtype) == (Dtype.NVFP4, Dtype.BF16)
    oss = {d: model_of("openai/gpt-oss-120b", "fp4", "vllm", d).storage for d in ("h200_sxm", "b200_sxm")}
    assert oss["h200_sxm"].routed_experts.dtype is Dtype.MXFP4
    assert (oss["h200_sxm"].expert_activation, oss["b200_sxm"].expert_activation) == (Dtype.BF16, Dtype.FP8)
    assert model_of("meta-llama/Llama-3.1-70B", "fp8", "vllm", "h100_sxm").storage.dense_ffn.dtype is Dtype.FP8
    with pytest.raises(InputError):
        model_of("meta-llama/Llama-3.1-70B", "fp3", "vllm", "h100_sxm")


@pytest.mark.parametrize(("alias", "device"), [("gb200_sxm", "gb200"), ("gb200_nvl72", "gb200"), ("h100", "h100_sxm")])
def test_aliases_and_clusters_of_a_device_find_its_tables(alias: str, device: str) -> None:
    assert times(system=alias) == times(system=device)


def test_settings_of_a_launch_can_be_given() -> None:
    deepseek = {"model": "deepseek-ai/DeepSeek-V3", "backend": "sglang", "system": "b200_sxm", "tp_size": 8}
    found = launch_of(sample.run_row(**deepseek, precision="fp8", concurrency=32))
    assert (found.budget_tokens, found.poll_passes) == (32768, 30)
    found = launch_of(sample.run_row(**deepseek, precision="fp4", concurrency=8))
    assert (found.budget_tokens, found.poll_passes) == (16384, 10)
    given = launch_of(
        sample.run_row(**deepseek, concurrency=32, poll_passes=1.0, stream_tokens=5.0, budget_tokens=4096.0)
    )
    assert (given.budget_tokens, given.poll_passes, given.stream_tokens) == (4096, 1, 5.0)
    # nobody published how this one was launched: the stack's defaults
    found = launch_of(sample.run_row(backend="sglang", system="b200_sxm", concurrency=32))
    assert (found.budget_tokens, found.poll_passes) == (16384, 1)
    assert launch_of(sample.run_row()).budget_tokens == 8192


def test_experts_of_a_forced_kernel_are_not_quicker_than_it_computes() -> None:
    from moesim.lowering import Pass
    from moesim.ops import OpKind, Phase

    row = sample.run_row(model="openai/gpt-oss-120b", system="h200_sxm", backend="vllm", precision="fp4", tp_size=1)
    instance = Workbench().instance(row)
    seconds = {}
    for tokens in (8.0, 8192.0):
        program = instance.program(Pass(Phase.PREFILL, 1.0, tokens, 0.0))
        experts = next(op for _, op in program.ops() if op.kind is OpKind.GROUPED_GEMM)
        seconds[tokens] = float(np.mean(instance.cost.costs([experts])[0].time_s))
    # 4 x 3 x 2 x 2880 x 2880 flops a token; Marlin's kernels reach about a third of 989 Tflop/s
    assert seconds[8192.0] == pytest.approx(8192 * 4 * 6 * 2880**2 / (0.33 * 989e12), rel=0.35)
    assert seconds[8.0] < 0.3e-3


def test_a_fit_finds_what_made_the_runs() -> None:
    from dataclasses import replace

    truth = replace(DEFAULT_STACK, gemm_ratio=1.1, request_s=0.03, wait_passes=9.0)
    rows = [
        sample.run_row(isl=i, osl=128, concurrency=c, tp_size=t)
        for i in (512, 4096)
        for c in (4, 16, 64)
        for t in (1, 2, 4)
    ]
    bench = Workbench()
    batch = Batch.of(rows, [bench.features(r) for r in rows])
    made = batch.predict(truth) * 1e3
    measured = tuple(
        sample.run_row(isl=r.isl, osl=128, concurrency=r.concurrency, tp_size=r.tp_size, measured_ttft_ms=float(m[0]),
                       measured_tpot_ms=float(m[1]))
        for r, m in zip(rows, made, strict=True)
    )  # fmt: skip
    found = fit_one(Runs(measured, batch), DEFAULT_STACK, 10.0)
    before = np.abs(batch.predict(DEFAULT_STACK) * 1e3 / made - 1).mean()
    after = np.abs(batch.predict(found) * 1e3 / made - 1).mean()
    assert after < 0.02 < before


def test_stack_files_are_read_back_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    save_stack(path, "vllm_hopper", DEFAULT_STACK, source="test")
    assert load_stack(path) == ("vllm_hopper", DEFAULT_STACK)
    path.write_text(path.read_text().replace("gemm_ratio: 0.91", "gemm_ratio: -1"))
    with pytest.raises(InputError):
        load_stack(path)
    path.write_text(path.read_text().replace("gemm_ratio", "gem_ratio"))
    with pytest.raises(InputError):
        load_stack(path)


def test_shipped_stacks_are_complete() -> None:
    stacks = shipped_stacks()
    assert {"default", "vllm", "sglang", "trtllm", "vllm_hopper", "trtllm_blackwell"} <= set(stacks)
    assert all(getattr(s, n) > 0 for s in stacks.values() for n in StackParams.names())
    assert shipped_bands() != Bands()


def test_bands_hold_nine_tenths() -> None:
    errors = np.random.default_rng(0).normal(0.0, 0.1, 5000)
    low, high = band_of(errors, 1000)
    assert np.mean((errors >= low) & (errors <= high)) == pytest.approx(0.90, abs=0.01)
    few = band_of(errors, 3)
    assert few[0] < low
    assert few[1] > high


def test_accuracy_counts_what_lies_inside() -> None:
    row = sample.run_row(measured_ttft_ms=100.0, measured_tpot_ms=10.0)
    rows = [
        Judged(row, False, (0.11, 0.009), (0.09, 0.0095), (0.12, 0.0105)),
        Judged(row, False, (0.08, 0.012), (0.07, 0.011), (0.09, 0.013)),
    ]
    found = accuracy_of("all", rows, 0)
    assert found is not None
    assert (found.mean_abs_frac, found.coverage_frac) == (pytest.approx(0.15), 0.5)
    assert found.bias_frac == pytest.approx(-0.05)


def test_published_cases_have_sources_and_run() -> None:
    cases = load_cases()
    assert len({c.id for c in cases}) == len(cases) >= 25
    found = run_cases("MLPerf")
    assert {f.case.kind for f in found} == {"serving", "ratio"}
    assert all(f.low < f.projected < f.high for f in found)
    with pytest.raises(InputError):
        run_cases("no such case")


def test_explain_says_what_a_step_is_made_of(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", *LINES)
    found = explain_row(f"{table}:b", None)
    assert sum(share for _, _, share, _, _ in found.operators) == pytest.approx(1.0, abs=0.05)
    text = " ".join(found.sentences)
    assert "measured 11 ms" in text
    assert "Queueing" in text
    assert "Uncertainty" in text
    with pytest.raises(InputError, match="no such row"):
        explain_row("zz", table)
    unnamed = write(tmp_path / "u.csv", *("," + line.partition(",")[2] for line in LINES))
    with pytest.raises(InputError) as error:
        explain_row("4", unnamed)
    assert error.value.allowed == "1..3 for the data rows in order"
    assert error.value.hint is None
    assert explain_row("2", unnamed).heading.startswith("row 2: ")  # as asked, not its line in the file
    assert found.heading.startswith("b: ")


def test_own_runs_are_fitted_and_warned_about(tmp_path: Path) -> None:
    table, out = write(tmp_path / "t.csv", *LINES), tmp_path / "own.yaml"
    found = calibrate_runs([table], out, "mine", [])
    assert load_stack(out)[0] == "mine"
    assert any("one length" in s for s in found.sentences)
    assert any("few" in s for s in found.sentences)
    assert any("one concurrency" in w for w in warnings_for([sample.run_row(), sample.run_row(isl=2048)]))
    from moesim.study.calibrated import calibration_for

    used = calibration_for(str(out), "h100_sxm")
    assert used is not None
    assert "mine" in used.name
    with pytest.raises(InputError, match="generation"):
        calibration_for(str(out), "b200_sxm")


def test_own_runs_do_not_take_a_shipped_name_unseen(tmp_path: Path) -> None:
    table, out = write(tmp_path / "t.csv", *LINES), tmp_path / "own.yaml"
    words = calibrate_runs([table], out, None, []).sentences
    assert load_stack(out)[0] == "vllm_hopper_own"
    assert not any("shipped stack's name" in s for s in words)
    words = calibrate_runs([table], out, "vllm_hopper", []).sentences
    assert any("shipped stack's name" in s for s in words)


def test_result_files_of_load_generators(tmp_path: Path) -> None:
    bench = {
        "backend": "vllm", "model_id": "meta-llama/Llama-3.1-8B-Instruct", "max_concurrency": 8, "completed": 100,
        "total_input_tokens": 92160, "total_output_tokens": 11520, "mean_ttft_ms": 60.0, "mean_tpot_ms": 8.0,
    }  # fmt: skip
    path = tmp_path / "r.json"
    path.write_text(json.dumps(bench))
    (row,) = runs_of(path, {"system": "h100_sxm", "tp_size": "1"})
    assert (row.backend, row.isl, row.osl, row.concurrency, row.measured_tpot_ms) == ("vllm", 1024, 128, 8, 8.0)
    with pytest.raises(InputError, match="system"):
        runs_of(path, {})
    lengths = {"input_sequence_length": {"avg": 922.0}, "output_sequence_length": {"avg": 115.0}}
    aiperf = {
        "time_to_first_token": {"avg": 60.0},
        "inter_token_latency": {"avg": 8.0},
        **lengths,
        "input_config": {"loadgen": {"concurrency": 8}},
    }
    path.write_text(json.dumps(aiperf))
    named = {"system": "h100_sxm", "tp_size": "1", "backend": "trtllm", "model": "llama-3.1-8b"}
    assert runs_of(path, named)[0].concurrency == 8
    path.write_text('{"a": 1}')
    with pytest.raises(InputError, match="layout"):
        runs_of(path, named)
