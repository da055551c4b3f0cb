"""YAML text to plain dicts, lists and scalars that remember their lines; strict where YAML is lenient.

Only what a spec needs is read: one document, mappings, sequences and the scalars of the YAML 1.2 core schema. Duplicate keys,
other tags, merge keys, NaN, and aliases that would expand without end are refused.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from moesim.errors import InputError

__all__ = ["LinedList", "LinedMap", "parse_yaml"]

#: Bounds that no spec comes near; aliases that refer to aliases are what reaches them.
MAX_NODES, MAX_DEPTH, MAX_INT = 200_000, 64, 2**63 - 1
MAX_OPEN = 256

_TAG = "tag:yaml.org,2002:"


class LinedMap(dict[str, Any]):
    """A mapping that knows the line on which it and each of its keys stand."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class LinedList(list[Any]):
    """A list that knows the line of each of its items."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []


def parse_yaml(text: str, file: str) -> Any:
    """The one document in `text`; None where it is empty.

    Raises:
        InputError: not YAML, or YAML of a kind that is not read here; with line and field.
    """
    if _most_open(text) > MAX_OPEN:
        raise InputError("is nested too deeply", file=file, allowed=f"{MAX_DEPTH} levels")
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else int(mark.line) + 1
        raise InputError(f"is not valid YAML: {_problem(error)}", file=file, line=line) from None
    except RecursionError:
        raise InputError("is nested too deeply", file=file, allowed=f"{MAX_DEPTH} levels") from None
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        # The parser of ruamel.yaml answers some malformed input with errors of plain Python.
        reason = str(error).strip().splitlines()
        raise InputError(f"is not valid YAML: {reason[0] if reason else 'it cannot be parsed'}", file=file) from None
    return None if node is None else _Reader(file).read(node, "", 0)


class _Reader:
    """Plain values from nodes, counted so that aliases cannot blow up."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.n_nodes = 0

    def read(self, node: Node, field: str, depth: int) -> Any:
        """The value of a node at the dotted path `field`."""
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise self.error(node, field, f"expands to more than {MAX_NODES} values", hint="write fewer aliases")
        if depth > MAX_DEPTH:
            raise self.error(node, field, "is nested too deeply", allowed=f"{MAX_DEPTH} levels")
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, field, depth)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            items = LinedList()
            for i, inner in enumerate(node.value):
                items.append(self.read(inner, f"{field}.{i}" if field else str(i), depth + 1))
                items.lines.append(_line(inner))
            return items
        if isinstance(node, ScalarNode):
            return self.scalar(node, field)
        raise self.error(node, field, "has a tag that is not read here", value=str(node.tag), hint="remove the tag")

    def mapping(self, node: MappingNode, field: str, depth: int) -> LinedMap:
        """A mapping with text keys, each once."""
        found = LinedMap(_line(node))
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.error(key_node, field, "has a key that is not text")
            key = str(key_node.value)
            inner = f"{field}.{key}" if field else key
            if key == "<<":
                raise self.error(key_node, inner, "merge keys are not read here", hint="write the fields out")
            if key in found:
                raise self.error(key_node, inner, f"key stands twice (first in line {found.lines[key]})",
                                 hint="remove one")  # fmt: skip
            found.lines[key] = _line(key_node)
            found[key] = self.read(value_node, inner, depth + 1)
        return found

    def scalar(self, node: ScalarNode, field: str) -> Any:
        """Text, whole number, number, truth value or null."""
        text, kind = str(node.value), str(node.tag).removeprefix(_TAG)
        try:
            match kind:
                case "str" | "timestamp":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return self.whole(node, field, _whole(text))
                case "float":
                    return self.finite(node, field, float(text.replace("_", "")))
        except ValueError:
            problem = "must be a finite number" if kind == "float" else "is not a whole number that can be read"
            raise self.error(node, field, problem, value=text) from None
        raise self.error(node, field, "has a tag that is not read here", value=str(node.tag), hint="remove the tag")

    def whole(self, node: Node, field: str, value: int) -> int:
        """The value, unless it is absurdly large."""
        if abs(value) > MAX_INT:
            raise self.error(node, field, "is too large a number", allowed=f"up to {MAX_INT}")
        return value

    def finite(self, node: Node, field: str, value: float) -> float:
        """The value, unless it is NaN or infinite."""
        if not math.isfinite(value):
            raise ValueError(value)
        return value

    def error(
        self, node: Node, field: str, problem: str, *, value: object = None, allowed: str | None = None,
        hint: str | None = None,
    ) -> InputError:  # fmt: skip
        """The error at a node."""
        return InputError(problem, self.file, _line(node), field or None, value, allowed, hint)


def _most_open(text: str) -> int:
    """The most brackets open at once, those in texts and comments included: the parser is quadratic in them."""
    most = depth = 0
    for match in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if match[0] in "[{" else max(depth - 1, 0)
        most = max(most, depth)
    return most


def _whole(text: str) -> int:
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _problem(error: MarkedYAMLError) -> str:
    """What the parser says, and what it was doing; its marks and advice (several lines) are left out."""
    said = [str(part).strip().splitlines()[0] for part in (error.context, error.problem) if part and str(part).strip()]
    return ", ".join(said) or "it cannot be parsed"
