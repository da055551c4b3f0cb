"""The built wheel, alone in an empty virtual environment, runs a scenario from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_wheel_runs_a_scenario_in_an_empty_venv(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("moesim-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()

    installed = run(python, "-m", "pip", "list", "--format", "json", cwd=empty)
    assert "torch" not in {package["name"] for package in json.loads(installed)}

    moesim = tmp_path / "venv" / "bin" / "moesim"
    run(moesim, "run", "eight-experts-of-7b", "--engine", "analytic", "--out", "first", cwd=empty)
    result = json.loads((empty / "first" / "results.json").read_text())
    assert [system["kind"] for system in result["systems"]].count("ensemble") == 2
    page = (empty / "first" / "report.html").read_text()
    assert "Eight experts of 7B" in page
    listed = json.loads(run(moesim, "list", "--json", cwd=empty))
    assert len(listed["devices"]) >= 28
    assert len(listed["models"]) >= 45
