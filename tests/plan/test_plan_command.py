import json
import sys

import pytest

import moesim.cli

ARGV = [
    "plan",
    "--model",
    "olmoe-1b-7b",
    "--hardware",
    "hgx_h100",
    "--gpus",
    "2",
    "--isl",
    "256",
    "--osl",
    "64",
    "--max-batch",
    "32",
]


@pytest.fixture
def call(capsys, monkeypatch):
    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["moesim", *argv])
        with pytest.raises(SystemExit) as stopped:
            moesim.cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


def test_plan_prints_what_it_found(call):
    code, out, err = call(*ARGV, "--tpot-ms", "20", "--rate", "5", "--confirm", "1")
    assert code == 0, err
    for word in ("tok/s/GPU", "best", "least", "vllm serve", "sglang.launch_server", "simulated", "5 requests/s need"):
        assert word in out


def test_every_deployment_is_listed_once_with_what_its_times_hold(call, tmp_path):
    code, out, _ = call(*ARGV, "--gpus", "1", "--confirm", "1", "--out", str(tmp_path / "p"))
    assert code == 0
    assert out.count("best, front") == 1
    assert "with other requests' prefills between two tokens" in out
    assert "on 1 device)" in out
    assert "1 devices" not in out
    assert f"written to {tmp_path / 'p' / 'report.html'}" in out
    assert (tmp_path / "p" / "report.html").stat().st_size > 10_000


def test_best_and_front_share_a_row():
    from moesim.study.plan import PlanSpec, plan

    spec = PlanSpec(model="olmoe-1b-7b", hardware=("hgx_h100",), n_devices=2, input_tokens=256, output_tokens=64,
                    max_batch=32, n_confirm=0)  # fmt: skip
    (found,) = plan(spec).plans
    shown = found.shown
    assert shown[0][0] == "best, front"
    assert len({point.design for _, point in shown}) == len(shown)
    assert {point.design for point in found.front} <= {point.design for _, point in shown}


def test_plan_writes_and_prints_json(call, tmp_path):
    code, out, _ = call(*ARGV, "--tpot-ms", "20", "--confirm", "0", "--json", "--out", str(tmp_path / "a" / "b"))
    assert code == 0
    data = json.loads(out)
    assert data == json.loads((tmp_path / "a" / "b" / "plan.json").read_text())
    assert data["plans"][0]["best"]["meets_goals"] is True


def test_goals_that_nothing_meets_end_well(call):
    code, out, _ = call(*ARGV, "--tpot-ms", "0.001", "--confirm", "0")
    assert code == 0
    assert "nothing meets the goals; nearest:" in out
    assert "TPOT" in out


def test_several_hardware(call):
    code, out, _ = call(*ARGV, "--hardware", "hgx_a100", "--tpot-ms", "20", "--confirm", "0")
    assert code == 0
    assert "cheapest:" in out
    assert "Host time is not counted" not in out


def test_hardware_without_a_measured_stack_says_so(call):
    code, out, _ = call(*[{"hgx_h100": "mi300x_8"}.get(word, word) for word in ARGV], "--confirm", "0")
    assert code == 0
    assert "Host time is not counted. No serving stack stands behind times on mi300x" in out


@pytest.mark.parametrize(
    ("more", "word"),
    [(["--ttft-ms", "-1"], "--ttft-ms"), (["--ttft-ms", "nan"], "--ttft-ms"), (["--rate", "0"], "--rate"),
     (["--headroom", "1"], "--headroom"), (["--hardware", "nope"], "nope"), (["--routing", "x"], "--routing"),
     (["--weight-dtype", "fp9"], "--weight-dtype"), (["--gpus", "0"], "--gpus"), (["--osl", "1000000"], "output_tokens"),
     (["--hardware", "hgx_h100"], "names one twice")],
)  # fmt: skip
def test_bad_options_are_one_line(more, word, call):
    code, out, err = call(*ARGV, "--confirm", "0", *more)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert word in err


def test_out_must_not_be_a_file(call, tmp_path):
    (tmp_path / "f").write_text("")
    code, _, err = call(*ARGV, "--out", str(tmp_path / "f"))
    assert code == 2
    assert "is a file where a directory is meant" in err
