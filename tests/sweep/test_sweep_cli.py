import signal
import subprocess
import sys
import time

import pytest

from moesim.cli.app import app

pytest.importorskip("typer")
from typer.testing import CliRunner

GOOD = """title: Trial
base:
  title: x
  hardware: hgx_h100
  systems:
    - {name: m, kind: moe, model: mixtral-8x7b, parallel: {dp_size: 8, ep_size: 8}}
  workload: {input_tokens: 512, output_tokens: 128}
axes:
  - {path: model.num_experts_per_tok, values: [1, 2]}
  - {path: workload.concurrency, values: [8, 64]}
"""


def cli(*args, cwd=None):
    command = [sys.executable, "-m", "moesim", "sweep", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


def test_a_sweep_from_file_to_report(tmp_path):
    file = tmp_path / "trial.yaml"
    file.write_text(GOOD)
    done = cli(file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 cases (4 ok)" in done.stdout
    assert done.stdout.count("\n- ") == 3
    assert (tmp_path / "reports" / "sweep-trial" / "report.html").is_file()


@pytest.mark.parametrize(("old", "new", "says"), [
    ("model.num_experts_per_tok", "model.num_expert_per_tok", "did you mean 'model.num_experts_per_tok'"),
    ("[1, 2]", "[]", "is empty"),
    ("[1, 2]", "[1, 2.5]", "must be a whole number"),
    ("[1, 2]", "[1, true]", "must be a whole number"),
    ("[8, 64]", "[0]", "must be a whole number"),
    ("axes:", "axis:", "unknown key"),
    ("mixtral-8x7b", "mixtrel-8x7b", "mixtral-8x7b"),
    ("model.num_experts_per_tok, values: [1, 2]", "hardware, values: [hgx_h100, hgx_h1000]", "did you mean"),
    ("model.num_experts_per_tok, values: [1, 2]", "parallel.tp_size, values: [1, two]", "must be a whole number"),
    ("model.num_experts_per_tok, values: [1, 2]", "systems.3.parallel.tp_size, values: [1]", "names no system"),
    ("base:", "system: nobody\nbase:", "none of the base's systems"),
    ("axes:", "law: {name: nobody}\naxes:", "no such scaling law"),
    ("axes:", "law: {}\naxes:", "needs a training compute"),
    ("axes:", "constraints: [{kind: fixed_params}]\naxes:", "constraints.0.kind"),
    ("axes:", "engine: slow\naxes:", "engine"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path, old, new, says):
    file = tmp_path / "bad.yaml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1))
    runner = CliRunner()
    done = runner.invoke(app, ["sweep", str(file), "--out", str(tmp_path / "out")])
    error = done.exception
    assert getattr(error, "exit_code", None) == 2, (error, done.output)
    assert says in str(error)
    assert "\n" not in str(error)
    assert "bad.yaml" in str(error)


def test_options_and_names(tmp_path):
    runner = CliRunner()
    for args, says in (
        (["nobody"], "no sweep of this name"), (["nobody.yaml"], "no such file"), (["granularity", "--engine",
        "slow"], "--engine"),
        (["granularity", "--jobs", "0"], "--jobs"), (["granularity", "--scheduler", "nowhere"], "--scheduler"),
    ):  # fmt: skip
        done = runner.invoke(app, ["sweep", *args, "--out", str(tmp_path / "out")])
        assert getattr(done.exception, "exit_code", None) == 2, args
        assert says in str(done.exception)
    (tmp_path / "file").write_text("")
    done = runner.invoke(app, ["sweep", "granularity", "--out", str(tmp_path / "file")])
    assert "is a file" in str(done.exception)


def test_ctrl_c_keeps_what_is_done(tmp_path):
    file = tmp_path / "long.yaml"
    file.write_text(
        GOOD.replace("[8, 64]", "[8, 16, 32, 64, 128, 256]").replace("title: Trial", "title: Trial\nengine: flow")
    )
    text = file.read_text().replace("values: [1, 2]", "range: {start: 1, stop: 8}")
    file.write_text(text)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "moesim", "sweep", str(file), "--out", str(out)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list((out / "cases").glob("part-*")) and time.monotonic() < end and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    if running.returncode == 0:
        pytest.skip("it was done before it could be interrupted")
    assert running.returncode == 130, errors
    assert "cases kept" in errors
    assert "Traceback" not in errors
    again = cli(file, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "48 cases" in again.stdout
    assert (out / "report.html").stat().st_size > 10_000
