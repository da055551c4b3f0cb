"""Reading YAML and JSON files into specs, with the file, line and field of anything that is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moesim.errors import InputError, nearest
from moesim.specs.json_text import first_duplicate, first_literal
from moesim.specs.yaml_text import MAX_INT, LinedList, LinedMap, parse_yaml

__all__ = ["line_of", "plain_words", "read_json", "read_text", "read_yaml", "to_input_error", "validate"]

Spec = TypeVar("Spec", bound=BaseModel)

#: YAML is written by people and slow to parse; JSON may be a run's record.
MAX_YAML_BYTES, MAX_JSON_BYTES = 2**20, 256 * 2**20


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a file.

    Raises:
        InputError: missing, not a regular file, unreadable, too large, or not UTF-8.
    """
    file = str(path)
    try:
        if path.is_dir():
            raise InputError("is a directory where a file is meant", file=file, hint="name a file inside it")
        size = path.stat().st_size
        if not path.is_file():
            raise InputError("is not a regular file", file=file, hint="save what it holds to a file first")
        if size > max_bytes:
            raise InputError(
                "is too large", file=file, value=f"{size / 2**20:.1f} MiB", allowed=f"{max_bytes // 2**20} MiB"
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file", file=file, hint="check the path") from None
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", file=file, hint=f"byte {error.start} cannot be read") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {reason}", file=file) from None


def read_yaml(path: Path) -> LinedMap:
    """The mapping in a YAML file, with line numbers kept.

    Raises:
        InputError: not readable, not YAML, or not a mapping at the top.
    """
    file = str(path)
    data = parse_yaml(read_text(path, MAX_YAML_BYTES), file)
    if data is None:
        raise InputError("is empty", file=file, line=1, hint="a mapping of fields is needed")
    if not isinstance(data, LinedMap):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise InputError(f"is {kind}, not a mapping of fields", file=file, line=1)
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; duplicate keys, NaN and infinities are refused.

    Raises:
        InputError: not readable, not JSON, truncated, or not an object at the top.
    """
    text, file = read_text(path), str(path)

    def wrong(problem: str, literal: str, allowed: str | None = None) -> InputError:
        field, line = first_literal(text, literal) or (None, None)
        return InputError(problem, file, line, field, literal, allowed)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            field, line = first_duplicate(text) or (None, None)
            raise InputError("key stands twice", file, line, field, hint="remove one")
        return result

    def refuse(literal: str) -> Any:
        raise wrong("must be a finite number", literal)

    def number(literal: str) -> float:
        return value if math.isfinite(value := float(literal)) else refuse(literal)

    def whole(literal: str) -> int:
        if len(literal) > len(str(MAX_INT)) + 1 or abs(int(literal)) > MAX_INT:
            raise wrong("is too large a number", literal, f"up to {MAX_INT}")
        return int(literal)

    try:
        data = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=number, parse_int=whole)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise InputError("is empty", file=file, line=1, hint="a JSON object is needed") from None
        cut_off = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        hint = "the file seems cut off" if cut_off else None
        raise InputError(f"is not valid JSON: {error.msg}", file=file, line=error.lineno, hint=hint) from None
    except RecursionError:
        raise InputError("is not valid JSON: nested too deeply", file=file) from None
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise InputError(f"is {kind}, not an object of fields", file=file, line=1)
    return data


def validate(spec_type: type[Spec], data: Mapping[str, Any], file: str | None = None) -> Spec:
    """Check plain data against a spec; quantities must be text with units, as in a file.

    Raises:
        InputError: for the first thing that is wrong, with file and line where known.
    """
    try:
        return spec_type.model_validate(_plain(data), context={"from_file": True})
    except ValidationError as error:
        raise to_input_error(error, spec_type, data, file) from None


def to_input_error(error: ValidationError, spec_type: type[BaseModel], data: Any, file: str | None) -> InputError:
    """The first problem pydantic found, as one line for the user."""
    problems = _own_problems(error.errors(include_url=False))
    # A misspelt key is also a missing one; the spelling is what helps.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    extra = len(problems) - 1
    loc = tuple(part for part in first["loc"] if not _is_union_tag(part))
    more = f"and {extra} more problem{'s' if extra > 1 else ''} in this file" if extra else None
    value, kind = first.get("input"), first["type"]
    if kind == "extra_forbidden":
        known = _known_fields(spec_type, loc[:-1])
        close = nearest(str(loc[-1]), known)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
        hint = _other_kind(spec_type, data) or hint
        return InputError("unknown key", file, line_of(data, loc), _dotted(loc), None, None, hint)
    if kind == "missing":
        return InputError("is missing", file, line_of(data, loc[:-1]), _dotted(loc), None, None, more)
    if value is None and loc and _has(data, loc):
        return InputError("has no value", file, line_of(data, loc), _dotted(loc), None, None, more)
    message = plain_words(first["msg"])
    if kind == "enum":
        words = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
        close = nearest(str(value), words)
        more = f"did you mean {close[0]!r}?" if close else more
    if kind == "value_error" and (named := re.match(r"([a-z_][\w.]*): (.*)", message, re.DOTALL)):
        # A check over several fields says itself which one it means.
        inner = tuple(int(p) if p.isdigit() else p for p in named[1].split("."))
        if inner[0] in _known_fields(spec_type, loc):
            loc, message = (*loc, *inner), named[2]
    shown = None if kind == "value_error" or isinstance(value, dict | list | tuple) else value
    if kind in ("tuple_type", "list_type") and isinstance(shown, int | float | str):
        more = f"write [{shown}]"
    return InputError(message, file, line_of(data, loc), _dotted(loc), shown, None, more)


def _own_problems(problems: Sequence[Any]) -> list[Any]:
    """Problems without those of a list that only came out too short because its items failed."""
    inside = [p["loc"] for p in problems]
    return [
        p for p in problems
        if p["type"] != "too_short" or not any(len(loc) > len(p["loc"]) and loc[: len(p["loc"])] == p["loc"] for loc in inside)
    ]  # fmt: skip


#: What tells a file of one command from another's: its key, the command, and what such a file is.
_KINDS = (("systems", "run", "a scenario"), ("serving", "serve", "a serve scenario"), ("axes", "sweep", "a sweep"))


def _other_kind(spec_type: type[BaseModel], data: Any) -> str | None:
    """A hint where the file is one for another command."""
    here = [key for key, _, _ in _KINDS if key in spec_type.model_fields]
    if len(here) != 1 or not isinstance(data, Mapping) or here[0] in data:
        return None
    return next((f"this is {what}; use: moesim {command}" for key, command, what in _KINDS if key in data), None)


def line_of(data: Any, loc: Sequence[int | str]) -> int | None:
    """The 1-based line of a field in data read by `read_yaml`, or of the nearest thing above it."""
    node, line = data, data.line if isinstance(data, LinedMap) else None
    for part in loc:
        if isinstance(node, LinedMap) and part in node.lines:
            line = node.lines[str(part)]
        elif isinstance(node, LinedList) and isinstance(part, int) and 0 <= part < len(node):
            line = node.lines[part]
        else:
            break
        node = node[part]
    return line


_WORDS = (
    (r"^Value error, ", ""),
    (r"^Input should be a valid (tuple|list)$", "must be a list"),
    (r"^Input should be a valid dictionary.*$", "must be a mapping of fields"),
    (r"^Input should be", "must be"),
    (r"^(?:Tuple|List|Set) should have at least (\d+) items?.*$", r"must list at least \1"),
    (r"^String should have", "must have"),
    (r"a valid string", "text"),
    (r"a valid integer.*", "a whole number"),
    (r"a valid number.*", "a number"),
    (r"a valid boolean.*", "true or false"),
    (r"greater than or equal to (\S+)", r"\1 or more"),
    (r"less than or equal to (\S+)", r"at most \1"),
    (r"greater than (\S+)", r"more than \1"),
    (r"less than (\S+)", r"less than \1"),
)


def plain_words(message: str) -> str:
    """What pydantic says in the words of someone who writes a file."""
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message


def _has(data: Any, loc: Sequence[int | str]) -> bool:
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _dotted(loc: Sequence[int | str]) -> str | None:
    return ".".join(str(part) for part in loc) or None


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(("function-", "tagged-union"))


def _known_fields(spec_type: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    current: type[BaseModel] | None = spec_type
    for part in loc:
        if isinstance(part, int) or current is None:
            continue
        info = current.model_fields.get(part)
        current = _model_inside(info.annotation) if info else None
    if current is None:
        return []
    return [info.alias or name for name, info in current.model_fields.items()]


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_inside(inner)
        if found is not None:
            return found
    return None


def _plain(node: Any) -> Any:
    """Plain containers and scalars, so that no class of the reader leaks into specs."""
    if isinstance(node, Mapping):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    return node
