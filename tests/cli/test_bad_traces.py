"""Routing traces that cannot be replayed, through a whole run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_cases import SCENARIO

import moesim.cli
from moesim.routing.trace import write_trace

LAYERS, EXPERTS, TOP_K = 32, 8, 2  # Mixtral-8x7B


def good(path: Path, layers: int = LAYERS, experts: int = EXPERTS) -> None:
    first = np.arange(4 * layers).reshape(4, layers, 1) % experts
    write_trace(path, np.concatenate([first, (first + 1) % experts], axis=2), experts, "a test")


def changed(column: str, row: int, value: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        good(path)
        table = pq.read_table(path)
        values = table.column(column).to_numpy().copy()
        values[row] = value
        index = table.column_names.index(column)
        pq.write_table(table.set_column(index, table.schema.field(index), pa.array(values)), path)

    return write


def cut_off(path: Path) -> None:
    good(path)
    path.write_bytes(path.read_bytes()[:-100])


def rows_missing(path: Path) -> None:
    good(path)
    pq.write_table(pq.read_table(path).slice(0, 100), path)


CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "expert out of range": (changed("expert", 5, 8), ("expert", "token 0, layer 2", "got 8", "0..7")),
    "negative expert": (changed("expert", 5, -1), ("expert", "got -1", "0..7")),
    "expert twice": (changed("expert", 0, 1), ("expert", "chosen twice")),
    "layer out of range": (changed("layer", 0, 32), ("layer", "got 32", "0..31")),
    "another model's layers": (lambda path: good(path, layers=16), ("n_layers", "got 16", "allowed: 32")),
    "another model's experts": (lambda path: good(path, experts=64), ("n_experts", "got 64", "allowed: 8")),
    "cut off": (cut_off, ("not a readable Parquet file", "cut off")),
    "rows missing": (rows_missing, ("not complete",)),
    "text": (lambda path: path.write_text("token,layer\n"), ("not a readable Parquet file",)),
    "empty": (lambda path: path.write_bytes(b""), ("not a readable Parquet file",)),
    "directory": (lambda path: path.mkdir(), ("is a directory", "Parquet")),
}


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str]:
    routing = "      family: zipf\n      skew: 0.8\n"
    scenario = SCENARIO.replace(routing, f"      family: trace\n      trace: {tmp_path / 't.parquet'}\n")
    (tmp_path / "s.yaml").write_text(scenario)
    argv = ["moesim", "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        moesim.cli.main()
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", CASES)
def test_a_bad_trace_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, says = CASES[name]
    make(tmp_path / "t.parquet")
    code, err = run(tmp_path, capsys, monkeypatch)
    assert code == 2, err
    assert len(err.splitlines()) == 1
    assert str(tmp_path / "t.parquet") in err
    for word in says:
        assert word in err, f"{word!r} is not in {err}"
    assert not (tmp_path / "out").exists()


def test_a_good_trace_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good(tmp_path / "t.parquet")
    code, err = run(tmp_path, capsys, monkeypatch)
    assert code == 0, err
    assert (tmp_path / "out" / "results.json").is_file()
