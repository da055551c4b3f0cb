"""Every error that moesim raises on purpose.

The tree::

    MoesimError
    |-- InputError            the user can mend it: one line, exit code 2
    |   |-- CatalogError      a name that is not in the catalog
    |   |-- ParallelError     a split that does not divide
    |   `-- TraceError        a routing trace that does not fit the model
    |-- MissingExtraError     an optional dependency is not installed: exit code 2
    `-- ConservationError     the books of a simulation do not balance: a bug of ours
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "CatalogError",
    "ConservationError",
    "InputError",
    "MissingExtraError",
    "MoesimError",
    "ParallelError",
    "TraceError",
    "nearest",
]


class MoesimError(Exception):
    """Base of all deliberate errors; its text is one line a user can act on."""

    exit_code = 1


@dataclass
class InputError(MoesimError):
    """Something the user wrote cannot be used.

    Rendered as ``file:line: field: problem (got VALUE; allowed: ...); hint``; parts that are not known are left out.
    """

    problem: str
    file: str | None = None
    line: int | None = None
    field: str | None = None
    value: object = None
    allowed: str | None = None
    hint: str | None = None

    exit_code = 2

    def __str__(self) -> str:
        file = _clip(self.file or "", 1000)
        where = file if self.line is None or not file else f"{file}:{self.line}"
        detail = []
        if self.value is not None:
            detail.append(f"got {_short(self.value)}")
        if self.allowed is not None:
            detail.append(f"allowed: {self.allowed}")
        text = ": ".join(part for part in (where, _clip(self.field or "", 120), self.problem) if part)
        if detail:
            text += f" ({'; '.join(detail)})"
        if self.hint is not None:
            text += f"; {self.hint}"
        return _printable(" ".join(text.split()))

    def at(self, file: str | None = None, line: int | None = None, field: str | None = None) -> InputError:
        """The same error with the place filled in where it was not known yet."""
        if self.file is None or self.file == file:
            self.line = self.line if self.line is not None else line
        self.file = self.file if self.file is not None else file
        self.field = self.field if self.field is not None else field
        return self


class CatalogError(InputError):
    """A name that the catalog does not have; the hint names the nearest ones."""


class ParallelError(InputError):
    """A parallel split that does not divide what it splits, or does not fill the devices."""


class TraceError(InputError):
    """A routing trace that is damaged or belongs to another model."""


class MissingExtraError(MoesimError):
    """An optional dependency is needed and not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs {package}, which is not installed; run: pip install 'moesim[{extra}]', "
            f"or in a checkout: pip install '.[{extra}]'"
        )


class ConservationError(MoesimError):
    """Tokens, bytes or time did not balance at the end of a simulation (a defect of moesim, not of the input)."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> Sequence[str]:
    """The up to `n` known names that look most like `name`, best first.

    >>> nearest("mixtral", ["mixtral-8x7b", "llama-2-7b"])
    ['mixtral-8x7b']
    """
    by_folded = {k.lower(): k for k in known}
    folded = name.lower()
    close = difflib.get_close_matches(folded, by_folded, n=n, cutoff=0.6)
    inside = [k for k in sorted(by_folded) if folded and folded in k and k not in close]
    return [by_folded[k] for k in [*close, *inside][:n]]


def _short(value: object, limit: int = 80) -> str:
    if isinstance(value, str):
        value = value[: limit + 1]
    elif isinstance(value, int) and abs(value) >= 10**limit:
        return f"a number of more than {limit} digits"
    return _clip(repr(value), limit)


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _printable(text: str) -> str:
    """Escape what would move the cursor, or could not be encoded."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
