"""Where things stand in JSON text: `json` keeps no places, so they are looked up once something is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

__all__ = ["first_duplicate", "first_literal", "line_of_field"]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)

Path = tuple[str | int, ...]


def line_of_field(text: str, loc: Sequence[str | int]) -> int | None:
    """The 1-based line of the field at `loc`, or of the nearest thing above it; None where even its first part is not there."""
    best, depth = None, 0
    wanted = tuple(loc)
    for path, line, _ in _walk(text):
        if len(path) > depth and path == wanted[: len(path)]:
            best, depth = line, len(path)
            if path == wanted:
                break
    return best


def first_duplicate(text: str) -> tuple[str, int] | None:
    """The dotted path and line of the first key that stands twice in one object."""
    seen: set[Path] = set()
    for path, line, literal in _walk(text):
        if literal is None and path and isinstance(path[-1], str):
            if path in seen:
                return ".".join(str(p) for p in path), line
            seen.add(path)
    return None


def first_literal(text: str, literal: str) -> tuple[str, int] | None:
    """The dotted path and line of the first value that is written as `literal`."""
    for path, line, found in _walk(text):
        if found == literal:
            return ".".join(str(p) for p in path), line
    return None


def _walk(text: str) -> Iterator[tuple[Path, int, str | None]]:
    """Every key and list item (with None), and every value that is no container (as written), with path and line."""
    path: list[str | int] = []
    opened: list[str] = []
    line, counted, after_key = 1, 0, False
    for match in _TOKEN.finditer(text):
        token, start = match[0], match.start()
        line, counted = line + text.count("\n", counted, start), start
        in_list = bool(opened) and opened[-1] == "["
        if token in "}]":
            if not opened:
                return
            opened.pop()
            path.pop()
        elif token == ",":
            after_key = False
            if path and isinstance(path[-1], int) and in_list:
                path[-1] += 1
        elif token == ":":
            after_key = True
        elif opened and not in_list and not after_key:
            path[-1] = _text(token)
            yield tuple(path), line, None
        else:
            if in_list:
                yield tuple(path), line, None
            if token in "{[":
                opened.append(token)
                path.append(0 if token == "[" else "")
                after_key = False
            else:
                yield tuple(path), line, token


def _text(token: str) -> str:
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return token
