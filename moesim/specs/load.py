"""Reading YAML and JSON files into specs, with the file, line and field of anything that is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from moesim.errors import InputError, nearest

__all__ = ["line_of", "read_json", "read_text", "read_yaml", "to_input_error", "validate"]

Spec = TypeVar("Spec", bound=BaseModel)
MAX_FILE_BYTES = 64 * 2**20


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: missing, a directory, unreadable, too large, or not UTF-8.
    """
    file = str(path)
    try:
        if path.is_dir():
            raise InputError("is a directory where a file is meant", file=file, hint="name a file inside it")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"is larger than {MAX_FILE_BYTES // 2**20} MiB", file=file)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", file=file, hint="check the path") from None
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", file=file, hint=f"byte {error.start} cannot be read") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {reason}", file=file) from None


def read_yaml(path: Path) -> CommentedMap:
    """The mapping in a YAML file, with line numbers kept; duplicate keys and several documents are refused.

    Raises:
        InputError: not readable, not YAML, or not a mapping at the top.
    """
    text = read_text(path)
    file = str(path)
    try:
        data = YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else None
        raise InputError("key stands twice", file=file, line=_mark_line(error), field=key, hint="remove one") from None
    except MarkedYAMLError as error:
        problem = f"is not valid YAML: {error.problem or error.context}"
        raise InputError(problem, file=file, line=_mark_line(error)) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"is not valid YAML: {_first_line(error)}", file=file) from None
    if not isinstance(data, CommentedMap):
        raise InputError("must be a mapping of fields", file=file, line=1, value=data)
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; duplicate keys, NaN and infinities are refused.

    Raises:
        InputError: not readable, not JSON, truncated, or not an object at the top.
    """
    text, file = read_text(path), str(path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise InputError("key stands twice", file=file, field=key, hint="remove one")
            result[key] = value
        return result

    def refuse(constant: str) -> Any:
        raise InputError("must be a finite number", file=file, value=constant)

    try:
        data = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip()) - 1
        hint = "the file seems cut off" if ends else None
        raise InputError(f"is not valid JSON: {error.msg}", file=file, line=error.lineno, hint=hint) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"is not valid JSON: {_first_line(error)}", file=file) from None
    if not isinstance(data, dict):
        raise InputError("must be an object of fields", file=file, line=1, value=data)
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
    first = error.errors(include_url=False)[0]
    loc = tuple(part for part in first["loc"] if not _is_union_tag(part, data))
    field = ".".join(str(part) for part in loc) or None
    extra = len(error.errors()) - 1
    hint = f"and {extra} more problem{'s' if extra > 1 else ''} in this file" if extra else None
    value = first.get("input")
    kind = first["type"]
    if kind == "extra_forbidden":
        known = _known_fields(spec_type, loc[:-1])
        close = nearest(str(loc[-1]), known)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
        return InputError("unknown key", file, line_of(data, loc), field, None, None, hint)
    if kind == "missing":
        return InputError("is missing", file, line_of(data, loc[:-1]), field, None, None, hint)
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    shown = None if kind == "value_error" or isinstance(value, dict | list | CommentedMap | CommentedSeq) else value
    return InputError(message, file, line_of(data, loc), field, shown, None, hint)


def line_of(data: Any, loc: tuple[int | str, ...]) -> int | None:
    """The 1-based line of a field in data read by `read_yaml`, or of the nearest thing above it."""
    line: int | None = None
    node = data
    for part in loc:
        try:
            if isinstance(node, CommentedMap) and part in node:
                line = node.lc.key(part)[0] + 1
                node = node[part]
            elif isinstance(node, CommentedSeq) and isinstance(part, int):
                line = node.lc.item(part)[0] + 1
                node = node[part]
            else:
                break
        except (KeyError, IndexError, AttributeError, TypeError):
            break
    if line is None and isinstance(data, CommentedMap):
        line = data.lc.line + 1
    return line


def _is_union_tag(part: int | str, data: Any) -> bool:
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
    """Plain containers and scalars, so that no YAML class leaks into specs."""
    if isinstance(node, Mapping):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, int):
        return int(node)
    if isinstance(node, float):
        return float(node) if math.isfinite(node) else node
    return str(node)


def _mark_line(error: MarkedYAMLError) -> int | None:
    mark = error.problem_mark or error.context_mark
    return None if mark is None else int(mark.line) + 1


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
