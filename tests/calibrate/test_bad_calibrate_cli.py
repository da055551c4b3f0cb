"""Bad input to ``moesim calibrate``, case by case: exit code 2, one line that says what is wrong, nothing written."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field

import pandas as pd
import pytest
from test_fit import gemm_frame
from test_measure_evaluate import DEVICE as DEVICE_FILE

import moesim.cli
from moesim.calibrate.fit_params import FittedParams

FEW = gemm_frame().head(8)
GOOD = gemm_frame().iloc[::4]
TRACELESS = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,4,100,7\n"


@dataclass(frozen=True)
class Case:
    id: str
    argv: list[str]
    says: list[str]
    frame: pd.DataFrame | None = None
    files: dict[str, str] = field(default_factory=dict)
    without: str = ""


FIT = ["calibrate", "fit", "t.csv", "--device", "h100_sxm"]
MINE = ["calibrate", "import", "mine.csv", "--out", "o.csv", "--device", "l4"]
SIZES = ["--map", "m=rows", "--map", "n=cols", "--map", "k=deep", "--map", "measured_s=t"]
CONST = ["--const", "op_kind=gemm", "--const", "stack=x", "--const", "dtype=bf16"]
CSV = "rows,cols,deep,t\n1,64,128,5\n"
PROFILE = ["calibrate", "import", "p", "--out", "o.csv", "--device", "rtx_pro_6000", "--model"]
CHECK = ["calibrate", "check", "h200_sxm/vllm", "t.csv"]
CASES = [
    Case("no column of times", FIT, ["t.csv", "measured_s", "lacks a needed column"], GOOD.drop(columns="measured_s")),
    Case("no column of sizes", FIT, ["t.csv", "k", "need this column"], GOOD.drop(columns="k")),
    Case("negative time", FIT, ["t.csv:2", "measured_s", "above zero", "-1.0"], GOOD.assign(measured_s=-1.0)),
    Case("zero time", FIT, ["t.csv:2", "measured_s", "above zero"], GOOD.assign(measured_s=0.0)),
    Case("no times at all", FIT, ["measured_s", "need this column"], GOOD.assign(measured_s="")),
    Case("unknown kind", FIT, ["t.csv:2", "op_kind", "softmax", "gemm"], GOOD.assign(op_kind="softmax")),
    Case("unknown format", FIT, ["t.csv:2", "dtype", "bf15"], GOOD.assign(dtype="bf15")),
    Case("no rows", FIT, ["no rows"], GOOD.head(0)),
    Case("no file", FIT, ["t.csv", "no such table"]),
    Case("not a table", FIT, ["t.csv"], files={"t.csv": '"'}),
    Case("too few points in all", FIT, ["no family can be fitted", "too few points (8)", "at least 16"], FEW),
    Case("one point", FIT, ["too few points (1)"], FEW.head(1)),
    Case("another device", [*FIT[:-1], "b200_sxm"], ["another device", "h100_sxm", "b200_sxm"], GOOD),
    Case("unknown device", [*FIT[:-1], "h101_sxm"], ["h101_sxm", "did you mean", "h100_sxm"], GOOD),
    Case("no compute units", [*FIT[:-1], "./d.yaml"], ["n_compute_units"], GOOD.assign(device="toy"),
         files={"d.yaml": DEVICE_FILE.replace("name: cpu_generic", "name: toy").replace("n_compute_units: 1\n", "")
                .replace(", n_compute_units", "")}),
    Case("no link", FIT, ["no family can be fitted", "too few points"],
         GOOD.head(3).assign(op_kind="all_reduce", n_ranks=8, message_bytes=1024.0)),
    Case("kind without rows", [*FIT, "--kind", "moe"], ["moe", "no rows of this kind", "gemm"], GOOD),
    Case("two stacks in one file", [*FIT, "--out", "o.yaml"], ["--out", "several stacks"],
         pd.concat([GOOD, GOOD.assign(stack="other")])),
    Case("unit", [*MINE, *SIZES, *CONST, "--time-unit", "minutes"], ["time_unit", "minutes", "ms"], files={"mine.csv": CSV}),
    Case("csv without the column", [*MINE, *SIZES[:-1], "measured_s=us", *CONST], ["mine.csv", "us", "rows"],
         files={"mine.csv": CSV}),
    Case("unmapped", [*MINE, *SIZES], ["mine.csv", "op_kind", "column or a constant"], files={"mine.csv": CSV}),
    Case("not ours", [*MINE, *SIZES, "--map", "kk=deep", *CONST], ["kk", "not a column of the schema"], files={"mine.csv": CSV}),
    Case("pair", [*MINE, "--map", "m"], ["--map", "ours=theirs"], files={"mine.csv": CSV}),
    Case("word for a time", [*MINE, *SIZES, *CONST], ["mine.csv:3", "measured_s", "not a number"],
         files={"mine.csv": CSV + "1,64,128,slow\n"}),
    Case("negative time in a csv", [*MINE, *SIZES, *CONST], ["mine.csv:2", "measured_s", "above zero"],
         files={"mine.csv": CSV.replace("5", "-5")}),
    Case("profile of another model", [*PROFILE, "mixtral-8x7b"], ["another model", "Qwen/Qwen3-32B", "mixtral-8x7b"],
         files={"p/meta.yaml": "model: Qwen/Qwen3-32B\n", "p/tp1/attention.csv": TRACELESS}),
    Case("experts of another model", [*PROFILE, "mixtral-8x7b"], ["another model", "activated_experts", "60"],
         files={"p/tp1/moe.csv": "tokens,activated_experts,time_us\n64,60,50\n"}),
    Case("moe profile of a dense model", [*PROFILE, "llama-3.1-8b"], ["without experts", "llama-3.1-8b"],
         files={"p/tp1/moe.csv": "tokens,activated_experts,time_us\n64,8,50\n"}),
    Case("profile without its model", PROFILE[:-1], ["model"], files={"p/tp1/attention.csv": TRACELESS}),
    Case("not aiconfigurator", ["calibrate", "import", "p", "--out", "o.csv", "--device", "l4"], ["no tables for this device"],
         files={"p/x.txt": ""}),
    Case("no aiconfigurator", ["calibrate", "import", "aiconfigurator", "--out", "o.csv", "--device", "l40s"],
         ["aiconfigurator-core", "moesim[tables]"], without="aiconfigurator_core"),
    Case("no torch", ["calibrate", "profile", "--out", "prof"], ["torch", "moesim[calibrate]"], without="torch"),
    Case("no torch to record", ["calibrate", "record", "reference", "--out", "r.parquet"], ["moesim[calibrate]"],
         without="torch"),
    Case("check on another device", CHECK, ["different devices", "h100_sxm", "h200_sxm"], GOOD),
    Case("check with an unknown calibration", ["calibrate", "check", "h100_sxm/vlm", "t.csv"], ["h100_sxm/vllm"], GOOD),
    Case("check with a broken file", ["calibrate", "check", "c.yaml", "t.csv"], ["c.yaml"], GOOD, {"c.yaml": "device: x\n"}),
    Case("calibration of another device", ["estimate", "--hardware", "h100_sxm", "--model", "olmoe-1b-7b", "--calibration",
         "h200_sxm/vllm"], ["another device", "h200_sxm/vllm", "h100_sxm/vllm"]),
    Case("a kernel that was not measured", ["estimate", "--hardware", "h100_sxm", "--model", "olmoe-1b-7b", "--calibration",
         "vllm:looped"], ["looped", "no such eager kernel"]),
]  # fmt: skip


def call(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["moesim", *argv])
    with pytest.raises(SystemExit) as stopped:
        moesim.cli.main()
    return stopped.value.code


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_one_line_says_what_is_wrong(case, tmp_path, capsys, monkeypatch):
    if case.frame is not None:
        case.frame.to_csv(tmp_path / "t.csv", index=False)
    for name, content in case.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    if case.without:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name == case.without else find(name, *a)
        )
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code = call(case.argv, monkeypatch)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("moesim: ")
    assert len(err.splitlines()) == 1, err
    assert len(err) < 700, err
    for word in case.says:
        assert word in err, f"{word!r} is not in {err}"
    assert sorted(tmp_path.rglob("*")) == before


def test_ids_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)


def fitted(argv, frame, tmp_path, monkeypatch, capsys):
    frame.to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    assert call(argv, monkeypatch) == 0
    return capsys.readouterr().out


def test_a_family_with_too_few_points_is_left_out_and_named(tmp_path, monkeypatch, capsys):
    frame = pd.concat([GOOD, FEW.assign(kernel="rare")])
    out = fitted([*FIT, "--out", "c"], frame, tmp_path, monkeypatch, capsys)
    assert "left out: h100_sxm/toy 1/gemm/bf16/rare: too few points (8); at least 16 are needed" in out
    assert (tmp_path / "c" / "h100_sxm" / "toy.yaml").is_file()


def test_one_point_per_shape_and_a_single_shape_are_marked(tmp_path, monkeypatch, capsys):
    each = gemm_frame().drop_duplicates(["n", "k"])
    out = fitted([*FIT, "--out", "c"], each, tmp_path, monkeypatch, capsys)
    assert "mind: h100_sxm/toy 1/gemm/bf16: one point per shape" in out
    one = gemm_frame()
    out = fitted([*FIT, "--out", "c"], one[(one.n == 512) & (one.k == 512)], tmp_path, monkeypatch, capsys)
    assert "too few shapes or points to leave any out: no error, no interval" in out
    assert "not measured" in out


def test_a_fit_that_does_not_converge_is_marked_and_stays_marked(tmp_path, monkeypatch, capsys):
    from moesim.calibrate import fit
    from moesim.calibrate.store import load_calibration

    real = fit.fit_params

    def slow(*args):
        found = real(*args)
        return FittedParams(found.params, found.relative_sd, converged=False)

    monkeypatch.setattr(fit, "fit_params", slow)
    out = fitted([*FIT, "--out", "c.yaml"], GOOD, tmp_path, monkeypatch, capsys)
    assert "mind: h100_sxm/toy 1/gemm/bf16: the fit did not converge" in out
    assert not load_calibration(tmp_path / "c.yaml").families[0].is_converged
