"""Tables into a pipe: nothing is cut off, text is on the left."""

from __future__ import annotations

import pytest

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
