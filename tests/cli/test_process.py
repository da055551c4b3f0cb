"""The command as a process of its own: entry points, pipes, signals, and what a cold start loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_cases import SCENARIO

MOESIM = [sys.executable, "-m", "moesim"]


def moesim(*argv: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MOESIM, *argv], capture_output=True, text=True, timeout=60, **kwargs)  # type: ignore[call-overload,no-any-return]


def test_python_m_moesim() -> None:
    done = moesim("list", "scenarios")
    assert done.returncode == 0
    assert done.stdout.startswith("scenarios (")
    assert done.stderr == ""


def test_an_error_is_one_line_and_exit_code_2() -> None:
    done = moesim("model", "no-such-model")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


BROKEN = """
import sys
from moesim import cli
from moesim.cli import app
def broken(**_): raise ZeroDivisionError("of a\\nkind")
app.app = broken
sys.argv = ["moesim", "list"]
cli.main()
"""


def test_a_fault_of_our_own_is_one_line_with_the_traceback_in_a_file() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=60)
    assert done.returncode == 70
    (line,) = done.stderr.splitlines()
    log = Path(line.rpartition(" ")[2])
    assert "ZeroDivisionError: of a kind" in line
    assert "Traceback" in log.read_text(encoding="utf-8")
    log.unlink()
    env = {**os.environ, "MOESIM_TRACEBACK": "1"}
    shown = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=60, env=env)
    assert "Traceback" in shown.stderr


@pytest.mark.parametrize("command", ["list", "hardware hgx_h200", "model deepseek-v3 --json"])
def test_a_closed_pipe_is_no_error(command: str) -> None:
    shell = f"'{sys.executable}' -m moesim {command} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_a_pipe_that_is_closed_at_once() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([*MOESIM, "list"], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_terminal_that_is_not_utf8() -> None:
    done = moesim("hardware", "hgx_h200", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*MOESIM, "list"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(kind: signal.Signals, tmp_path: Path) -> None:
    slow = SCENARIO.replace("engine: analytic", "engine: flow").replace("[1, 4]", str(list(range(1, 129))))
    (tmp_path / "s.yaml").write_text(slow)
    out = tmp_path / "out"
    argv = [*MOESIM, "run", str(tmp_path / "s.yaml"), "--out", str(out)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    assert process.poll() is None, process.communicate()
    process.send_signal(kind)
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]
    if kind is signal.SIGINT:
        # Python itself turns an interrupt inside exec() (which dataclasses use) into death by the signal: 130 to a shell, too.
        assert process.returncode in (130, -signal.SIGINT)
        assert stderr == "moesim: interrupted\n"


HEAVY = ("pandas", "scipy", "matplotlib", "rich", "pyarrow", "simpy", "torch", "jinja2", "perfetto", "joblib")


def test_an_estimate_loads_nothing_heavy() -> None:
    argv = [
        "moesim",
        "estimate",
        "--hardware",
        "hgx_h200",
        "--model",
        "deepseek-v3",
        "--tp",
        "8",
        "--ep",
        "8",
        "--json",
    ]
    code = f"""
import sys
sys.argv = {argv!r}
from moesim.cli import main
try:
    main()
except SystemExit as stopped:
    assert stopped.code == 0
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "[]\n"
