"""Reading YAML and JSON: what is accepted, what it becomes, and where errors point."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import InputError
from moesim.specs.json_text import first_duplicate, first_literal, line_of_field
from moesim.specs.load import MAX_YAML_BYTES, line_of, plain_words, read_json, read_text, read_yaml, validate
from moesim.specs.parallel import ParallelSpec
from moesim.specs.yaml_text import MAX_NODES, parse_yaml


def test_scalars_of_the_core_schema() -> None:
    text = """
a: 4.8e12
b: 1_000
c: 0x1f
d: 0o17
e: yes
f: true
g: ~
h: 2023-12-11
i: 012
j: '5'
k: -3
l: >-
  two
  lines
m: !!str 7
n:
"""
    assert parse_yaml(text, "f") == {
        "a": 4.8e12, "b": 1000, "c": 31, "d": 15, "e": "yes", "f": True, "g": None, "h": "2023-12-11", "i": 12, "j": "5",
        "k": -3, "l": "two lines", "m": "7", "n": None,
    }  # fmt: skip


def test_keys_are_text() -> None:
    assert parse_yaml("1: a\ntrue: b\n", "f") == {"1": "a", "true": "b"}


def test_aliases_are_read() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "f") == {"a": {"b": 1}, "c": {"b": 1}}


def test_json_is_yaml() -> None:
    data = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    assert parse_yaml(json.dumps(data), "f") == data


def test_lines_of_fields(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("# a comment\na: 1\nb:\n  - c: 2\n    d: 3\n  - {c: 4,\n     d: 5}\n")
    data = read_yaml(path)
    wanted: dict[tuple[int | str, ...], int] = {
        (): 2, ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 0, "d"): 5, ("b", 1, "d"): 7, ("b", 1, "none"): 6, ("b", 5): 3,
        ("none",): 2, ("a", "deeper"): 2,
    }  # fmt: skip
    assert {loc: line_of(data, loc) for loc in wanted} == wanted
    assert line_of({"a": 1}, ("a",)) is None


def test_places_in_json() -> None:
    text = '{\n"a": {"x": [1,\n2, {"y": "b\\"}"}]},\n"c": true,\n"a": 1e999}\n'
    assert line_of_field(text, ("a", "x", 1)) == 3
    assert line_of_field(text, ("a", "x", 2, "y")) == 3
    assert line_of_field(text, ("c",)) == 4
    assert line_of_field(text, ("c", "deeper")) == 4
    assert line_of_field(text, ("none",)) is None
    assert first_duplicate(text) == ("a", 5)
    assert first_literal(text, "1e999") == ("a", 5)
    assert first_literal(text, "true") == ("c", 4)
    assert first_literal(text, "NaN") is None
    assert first_duplicate('{"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 2}]}') is None


def test_json_becomes_plain_data(tmp_path: Path) -> None:
    data: dict[str, Any] = {"a": [1, -2.5e-3, None, True, "é"], "b": {"c": {}}, "d": 2**63 - 1}
    path = tmp_path / "f.json"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    assert read_json(path) == data


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("\ufeff" + '{"a": 1}', encoding="utf-8")
    assert read_json(path) == {"a": 1}
    assert read_yaml(path) == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        read_text(tmp_path / "pipe")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("a: 1")
    if os.geteuid() == 0:  # root reads everything: let the system say no

        def refuse(self: Path, *args: object, **kwargs: object) -> str:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "read_text", refuse)
    else:
        path.chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied") as caught:
        read_yaml(path)
    assert caught.value.file == str(path)


def test_a_name_that_is_no_path() -> None:
    for name in ("a\0b.yaml", "x" * 5000 + ".yaml"):
        with pytest.raises(InputError, match="cannot be read"):
            read_yaml(Path(name))


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").symlink_to(tmp_path / "f.yaml")
    with pytest.raises(InputError):
        read_yaml(tmp_path / "f.yaml")


def test_too_large_is_not_even_parsed(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a" * (MAX_YAML_BYTES + 1))
    with pytest.raises(InputError, match="too large"):
        read_yaml(path)


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x" + ", x" * (width - 1) + "]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [bomb(30, 10), "a: &a {b: *a}", "a: [&a [*a], *a]", "a: " + "[" * 3000, "a: " + "{b: " * 3000, "- " * 5000 + "x"],
    ids=["laughs", "loop", "loop in a list", "lists", "mappings", "dashes"],
)
def test_bombs_are_bounded(text: str) -> None:
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(InputError) as caught:
            parse_yaml(text, "f")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 10  # 0.1 to 0.5 s, tracing memory slows it down
    assert peak < 64 * 2**20
    assert len(str(caught.value)) < 400


def test_a_large_honest_file_passes() -> None:
    data = parse_yaml("a: [" + ", ".join(["0.5"] * 4096) + "]", "f")
    assert len(data["a"]) == 4096 < MAX_NODES


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        ("a: 1\nb: !x 2\n", 2, "b", "tag"),
        ("a: 1\nb: [1, !!set {x}]\n", 2, "b.1", "tag"),
        ("a: !!binary aGVsbG8=\n", 1, "a", "tag"),
        ("a: !!int abc\n", 1, "a", "whole number"),
        ("a: !!float abc\n", 1, "a", "finite"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, "a.b", "first in line 2"),
        ("a: [1,\n .nan]\n", 2, "a.1", "finite"),
        ("a: -.inf\n", 1, "a", "finite"),
        ("? {a: 1}\n: 2\n", 1, None, "not text"),
        ("x:\n  <<: {a: 1}\n", 2, "x.<<", "merge keys"),
    ],
)
def test_refusals_point_to_line_and_field(text: str, line: int, field: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_yaml(text, "f")
    assert (caught.value.file, caught.value.line, caught.value.field) == ("f", line, field)


def test_validation_from_python_takes_plain_data() -> None:
    assert validate(ParallelSpec, {"tp_size": 4}) == ParallelSpec(tp_size=4)
    with pytest.raises(InputError, match="did you mean 'tp_size'"):
        validate(ParallelSpec, {"tp_sice": 4})


def test_what_pydantic_says_in_plain_words() -> None:
    words = {
        "Input should be a valid integer, unable to parse string as an integer": "must be a whole number",
        "Input should be greater than or equal to 1": "must be 1 or more",
        "Input should be less than or equal to 1": "must be at most 1",
        "Input should be greater than 0": "must be more than 0",
        "Input should be less than 5": "must be less than 5",
        "Tuple should have at least 1 item after validation, not 0": "must list at least 1",
        "Input should be a valid dictionary or instance of ParallelSpec": "must be a mapping of fields",
        "Value error, given: list them": "given: list them",
        "something new": "something new",
    }
    assert {said: plain_words(said) for said in words} == words
