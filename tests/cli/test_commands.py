"""Commands that work: what they print, and what machines read from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_cases import CARD, CLUSTER, CONFIG, DEVICE

import moesim.cli
from moesim._version import __version__

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["moesim", *argv])
        with pytest.raises(SystemExit) as stopped:
            moesim.cli.main()
        out, err = capsys.readouterr()
        assert stopped.value.code == 0, err
        assert err == ""
        return out

    return run


def estimate(call: Call, *more: str, model: str = "mixtral-8x7b") -> dict[str, Any]:
    given = json.loads(call("estimate", "--hardware", "hgx_h100", "--model", model, *more, "--json"))
    assert isinstance(given, dict)
    return given


def test_help_names_every_command(call: Call) -> None:
    out = call("--help")
    for name in ("run", "report", "estimate", "model", "hardware", "list"):
        assert f" {name} " in out


@pytest.mark.parametrize("name", ["run", "report", "estimate", "model", "hardware", "list"])
def test_every_command_has_help(name: str, call: Call) -> None:
    assert "Usage" in call(name, "--help")


@pytest.mark.parametrize("name", ["", "estimate", "plan", "list", "calibrate fit", "validate serving"])
def test_help_tells_the_exit_codes(name: str, call: Call) -> None:
    out = call(*name.split(), "--help")
    assert "Exit codes: 0 answered (that something does not fit," in out
    assert "2 bad input; 70 a fault of moesim; 130 interrupted." in out
    assert max(map(len, out.splitlines())) <= 80


def test_version(call: Call) -> None:
    assert call("--version") == f"moesim {__version__}\n"


def test_estimate_has_the_promised_keys(call: Call) -> None:
    got = estimate(call, "--tp", "2", "--batch", "16", "--context", "2048")
    assert {"time_s", "bound", "outcome", "memory_bytes", "operators"} <= set(got)
    assert got["outcome"] == "ok"
    assert got["time_s"] > 0
    assert 0 < got["memory_bytes"] < got["capacity_bytes"]
    assert got["operators"]
    for operator in got["operators"]:
        assert {"name", "time_s", "bound", "flops", "bytes"} <= set(operator)
        assert operator["time_s"] >= 0
    assert got["bound"] in {operator["bound"] for operator in got["operators"]}
    assert sum(operator["time_s"] for operator in got["operators"]) >= 0.9 * got["time_s"]


def test_estimate_that_does_not_fit_is_a_result(call: Call) -> None:
    got = estimate(call)
    assert got["outcome"] != "ok"
    assert got["time_s"] is None
    assert got["bound"] is None
    assert got["operators"] == []
    assert got["memory_bytes"] > got["capacity_bytes"]
    assert got["reason"]


def test_estimate_for_people(call: Call) -> None:
    out = call("estimate", "--hardware", "hgx_h100", "--model", "mixtral-8x7b", "--tp", "2")
    words = ("mixtral-8x7b on hgx_h100, TP2", "memory ", "time ", "experts", "with vllm_hopper", "90%: ", "FLOP run")
    for word in (*words, "rows padded to their tiles"):
        assert word in out
    assert "padded" not in call("estimate", "--hardware", "h100_sxm", "--model", "llama-3.1-8b")
    out = call("estimate", "--hardware", "hgx_h100", "--model", "mixtral-8x7b")
    assert "outcome" in out


def test_estimate_is_reproducible(call: Call) -> None:
    argv = ("--tp", "2", "--ep", "2", "--routing", "zipf:0.8", "--engine", "flow", "--seed", "7", "--batch", "32")
    assert estimate(call, *argv) == estimate(call, *argv)


def test_estimate_options_matter(call: Call) -> None:
    base = ("--tp", "2", "--ep", "2", "--batch", "64")
    plain = estimate(call, *base)
    assert estimate(call, *base, "--routing", "zipf:1.5")["time_s"] > plain["time_s"]
    assert estimate(call, *base, "--weight-dtype", "fp8")["memory_bytes"] < plain["memory_bytes"]
    assert estimate(call, *base, "--kv-dtype", "fp8")["memory_bytes"] < plain["memory_bytes"]
    assert estimate(call, *base, "--phase", "prefill")["time_s"] > plain["time_s"]
    assert estimate(call, *base, "--engine", "flow")["engine"] == "flow"


MODEL_KEYS = {"n_params", "n_active_params", "weight_bytes", "kv_bytes_per_token"}


@pytest.mark.parametrize("name", ["mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", "MIXTRAL-8X7B"])
def test_model_by_name_and_hub_id(name: str, call: Call) -> None:
    got = json.loads(call("model", name, "--json"))
    assert set(got) >= MODEL_KEYS
    assert got["name"] == "mixtral-8x7b"
    assert got["n_params"] == 46_702_792_704  # the published 46.7B, by hand from its config.json
    assert got["n_active_params"] == pytest.approx(12.88e9, rel=0.002)
    assert got["weight_bytes"] == pytest.approx(2 * got["n_params"], rel=0.001)
    assert got["kv_bytes_per_token"] == 32 * 2 * 8 * 128 * 2


def test_model_by_file_and_folder(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    by_file = json.loads(call("model", str(folder / "config.json"), "--json"))
    assert set(by_file) >= MODEL_KEYS
    assert by_file == json.loads(call("model", str(folder), "--json"))
    assert by_file["name"] == "toy"
    (tmp_path / "card.yaml").write_text(CARD)
    card = json.loads(call("model", str(tmp_path / "card.yaml"), "--json"))
    assert card["n_params"] == by_file["n_params"]
    assert card["name"] == "toy-moe"


def test_model_by_relative_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    assert json.loads(call("model", "toy", "--json"))["name"] == "toy"
    monkeypatch.chdir(tmp_path / "toy")
    assert json.loads(call("model", "config.json", "--json"))["hidden_size"] == 64


def test_model_for_people(call: Call) -> None:
    out = call("model", "deepseek-v3")
    for word in ("deepseek-v3 (deepseek-ai/DeepSeek-V3)", "active per token", "of 256 per token", "layer kind", "MTP"):
        assert word in out


def test_hardware(call: Call, tmp_path: Path) -> None:
    got = json.loads(call("hardware", "hgx_h200", "--json"))
    assert got["n_devices"] == 8
    assert got["memory_bytes"] == 141e9
    assert got["memory_bytes_per_s"] == 4.8e12
    assert got["ridge_flop_per_byte"] == pytest.approx(989.4e12 / 4.8e12)
    assert "ridge point" in call("hardware", "hgx_h200")
    (tmp_path / "d.yaml").write_text(DEVICE)
    assert json.loads(call("hardware", str(tmp_path / "d.yaml"), "--json"))["device"] == "toy"
    (tmp_path / "c.yaml").write_text(CLUSTER)
    assert json.loads(call("hardware", str(tmp_path / "c.yaml"), "--json"))["n_devices"] == 16


def test_list(call: Call) -> None:
    got = json.loads(call("list", "--json"))
    kinds = {"devices", "links", "clusters", "models", "routers", "scenarios", "serving", "sweeps", "calibrations"}
    assert set(got) == kinds
    assert all(members for kind, members in got.items() if kind != "sweeps")
    assert "h200_sxm" in got["devices"]
    for kind, names in got.items():
        assert json.loads(call("list", kind, "--json")) == {kind: names}
    out = call("list", "models")
    assert out.startswith(f"models ({len(got['models'])})\n")
    assert "  deepseek-v3\n" in out


def test_run_then_report_again(call: Call, tmp_path: Path) -> None:
    from bad_cases import SCENARIO

    (tmp_path / "s.yaml").write_text(SCENARIO)
    out_dir = tmp_path / "out"
    said = call("run", str(tmp_path / "s.yaml"), "--out", str(out_dir), "--seed", "3")
    assert str(out_dir / "report.html") in said
    for name in ("report.html", "report.md", "results.json"):
        assert (out_dir / name).stat().st_size > 0
    record = json.loads((out_dir / "results.json").read_text())
    assert record["seed"] == 3
    assert record["engine"] == "analytic"
    page = (out_dir / "report.html").read_bytes()
    (out_dir / "report.html").unlink()
    again = call("report", str(out_dir))
    assert "A test" in again
    assert (out_dir / "report.html").read_bytes() == page
