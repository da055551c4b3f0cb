"""Tables into a pipe: nothing is cut off, text is on the left."""

from __future__ import annotations

import doctest
import re

import pytest

import moesim.cli.table
from moesim.cli.table import table


def test_a_pipe_gets_every_character_of_many_columns(capsys: pytest.CaptureFixture[str]) -> None:
    header = ("name", *(f"column {i}" for i in range(14)))
    table(header, [("a", *(f"{'x' * 12}{i:02d}" for i in range(14)))])
    shown = capsys.readouterr().out
    assert all(f"{'x' * 12}{i:02d}" in shown for i in range(14))


def test_text_columns_are_left_and_wrap_by_words(capsys: pytest.CaptureFixture[str]) -> None:
    table(
        ("what", "value", "source"), [("memory", "80 GB", "word " * 30), ("power", "700 W", "short")], text=("source",)
    )
    lines = capsys.readouterr().out.splitlines()
    starts = {line.index(word) for line in lines for word in ("source", "short") if word in line}
    assert len(starts) == 1
    assert max(map(len, lines)) <= 121
    assert sum(line.count("word") for line in lines) == 30


def test_a_narrow_terminal_gets_every_character_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setenv("COLUMNS", "60")
    header = ("name", *(f"column {i}" for i in range(7)))
    table(header, [(f"row {k}", *(f"{k}{'x' * 9}{i}" for i in range(7))) for k in range(3)])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= 60
    for k in range(3):
        assert all(f"{k}{'x' * 9}{i}" in shown for i in range(7))
        assert shown.count(f"row {k}") == 4  # two columns of numbers beside each


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(moesim.cli.table).failed == 0
