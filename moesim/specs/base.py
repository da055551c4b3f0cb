"""The frozen base of all specs, quantity field types, and the rule that every number has a source."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from moesim import units
from moesim.errors import InputError

__all__ = [
    "Bytes",
    "BytesPerS",
    "Count",
    "Flag",
    "FlopPerS",
    "Fraction",
    "Frozen",
    "Hertz",
    "Natural",
    "Number",
    "Origin",
    "Seconds",
    "Source",
    "Sourced",
    "UsdPerH",
    "Watts",
    "weakest",
]


class Frozen(BaseModel):
    """An immutable value that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_strip_whitespace=True)


def _quantity(dimension: units.Dimension) -> BeforeValidator:
    """Text with a unit becomes a float; bare numbers pass only where no file is being read (context `from_file`)."""

    def read(value: Any, info: ValidationInfo) -> Any:
        from_file = bool(info.context and info.context.get("from_file"))
        if isinstance(value, str) or from_file:
            try:
                return units.parse(value, dimension)
            except InputError as error:
                raise ValueError(str(error)) from None
        return value

    return BeforeValidator(read)


_NonNegative = Field(ge=0)
_Positive = Field(gt=0)
Bytes = Annotated[float, _quantity(units.BYTES), _Positive]
BytesPerS = Annotated[float, _quantity(units.BYTES_PER_S), _Positive]
FlopPerS = Annotated[float, _quantity(units.FLOP_PER_S), _Positive]
Seconds = Annotated[float, _quantity(units.SECONDS), _NonNegative]
Hertz = Annotated[float, _quantity(units.HERTZ), _Positive]
Watts = Annotated[float, _quantity(units.WATTS), _NonNegative]
UsdPerH = Annotated[float, _quantity(units.USD_PER_H), _NonNegative]
#: Whole numbers and plain numbers as they are: no text, no true or false, no 2.0 for 2, nothing that would overflow later.
Count = Annotated[int, Field(ge=1, le=10**12, strict=True)]
Natural = Annotated[int, Field(ge=0, le=10**12, strict=True)]
Number = Annotated[float, Field(strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]


class Origin(StrEnum):
    """Where a number comes from, strongest first."""

    MEASURED = "measured"
    FITTED = "fitted"
    DATASHEET = "datasheet"
    PAPER = "paper"
    SECONDARY = "secondary"
    ASSUMPTION = "assumption"


_STRENGTH = {origin: rank for rank, origin in enumerate(Origin)}


def weakest(*origins: Origin) -> Origin:
    """The weakest origin among the inputs: a result is never better founded than that.

    >>> weakest(Origin.MEASURED, Origin.ASSUMPTION, Origin.PAPER)
    <Origin.ASSUMPTION: 'assumption'>
    """
    return max(origins, key=_STRENGTH.__getitem__)


class Source(Frozen):
    """Where some of a spec's numbers come from.

    `covers` lists field paths (``memory_bytes``, ``peak_flop_per_s.bf16``); a path covers everything below it, and the
    longest path that fits a number is its source.
    """

    origin: Origin
    text: str = Field(min_length=8)
    covers: tuple[str, ...] = Field(min_length=1)


class Sourced(Frozen):
    """A spec in which every numeric leaf must be covered by exactly one source."""

    sources: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Self:
        leaves = list(numeric_leaves(self))
        for source in self.sources:
            for path in source.covers:
                if not any(_under(leaf, path) for leaf in leaves):
                    raise ValueError(f"sources: {path!r} covers no number of this spec")
        for leaf in leaves:
            n_best = self._best_sources(leaf)
            if len(n_best) != 1:
                problem = "has no source" if not n_best else "has more than one source"
                raise ValueError(f"{leaf}: {problem}; list it under sources[].covers once")
        return self

    def source_of(self, path: str) -> Source:
        """The source of the number at `path`; KeyError if the path names no sourced number."""
        best = self._best_sources(path)
        if not best:
            raise KeyError(path)
        return best[0]

    def _best_sources(self, leaf: str) -> list[Source]:
        fits = [(len(path), source) for source in self.sources for path in source.covers if _under(leaf, path)]
        longest = max((length for length, _ in fits), default=-1)
        return [source for length, source in fits if length == longest]


def numeric_leaves(spec: Frozen) -> Iterator[str]:
    """The dotted paths of all numbers in a spec, its sources left out."""
    data = spec.model_dump(exclude={"sources"})
    yield from _walk(data, "")


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        if any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
            yield path
        else:
            for i, inner in enumerate(value):
                yield from _walk(inner, f"{path}.{i}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


def _under(leaf: str, path: str) -> bool:
    return leaf == path or leaf.startswith(path + ".")
