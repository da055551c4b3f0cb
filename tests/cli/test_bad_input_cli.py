"""Bad input through the command line: one line that helps, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from bad_cases import CASES, Case

import moesim.cli

SECONDS = 5.0


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def call(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["moesim", *argv])
    with pytest.raises(SystemExit) as stopped:
        moesim.cli.main()
    return stopped.value.code


def test_ids_are_unique_and_enough() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_one_line_says_what_is_wrong(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    began = time.monotonic()
    code = call([part.replace("{dir}", str(tmp_path)) for part in case.argv], monkeypatch)
    took = time.monotonic() - began
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("moesim: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert len(err) < 600, err
    assert "Traceback" not in err
    if case.file is not None:
        line = case.wanted_line
        where = f"{tmp_path / case.file}:" + ("" if line is None else f"{line}:")
        assert where in err, f"{where} is not in {err}"
    for word in case.says:
        assert word in err, f"{word!r} is not in {err}"
    assert snapshot(tmp_path) == before, "something was written"
    assert took < SECONDS
