"""Stragglers and overlap on the command line of ``moesim estimate``: they change the answer, or one line says why not."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

import moesim.cli

ARGUMENTS = [
    "estimate",
    "--hardware",
    "h100_x2_nodes",
    "--model",
    "qwen3-30b-a3b",
    "--dp",
    "16",
    "--ep",
    "16",
    "--batch",
    "512",
]


def _call(options: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["moesim", *ARGUMENTS, *options])
    with pytest.raises(SystemExit) as stopped:
        moesim.cli.main()
    return int(stopped.value.code or 0)


def _answer(options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert _call([*options, "--engine", "flow", "--json"], monkeypatch) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_stragglers_and_overlap_change_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = _answer([], monkeypatch, capsys)
    rank = _answer(["--slow-rank", "3:2", "--slow-rank", "5:1.5"], monkeypatch, capsys)
    link = _answer(["--slow-link", "3:3"], monkeypatch, capsys)
    overlap = _answer(["--overlap", "two_batch"], monkeypatch, capsys)
    assert rank["time_s"] > 1.2 * plain["time_s"]
    assert rank["slower_wait_s"] > 10.0 * plain["slower_wait_s"]
    assert link["exposed_comm_s"] > 1.3 * plain["exposed_comm_s"]
    assert overlap["exposed_comm_s"] < 0.5 * plain["exposed_comm_s"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--slow-rank", "16:2"], ("--slow-rank", "no such rank", "0..15")),
        (["--slow-rank", "three"], ("--slow-rank", "3:1.5")),
        (["--slow-rank", "3:2", "--slow-rank", "3:1.5"], ("--slow-rank", "twice")),
        (["--slow-rank", "3:0.5"], ("--slow-rank", "2 takes twice as long")),
        (["--slow-link", "3:nan"], ("--slow-link",)),
        (["--slow-link", "1:2", "--engine", "analytic"], ("--slow-link", "engine flow")),
        (["--overlap", "twice"], ("--overlap", "two_batch")),
        (["--overlap", "two_batch", "--ep", "1"], ("--overlap", "nothing to overlap")),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = [] if "--engine" in options else ["--engine", "flow"]
    assert _call([*options, *engine], monkeypatch) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    for word in words:
        assert word in text
