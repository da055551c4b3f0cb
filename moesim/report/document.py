"""A report as values: sections of paragraphs, tables and figures, which the page and the Markdown file both render."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.specs.base import Origin

__all__ = [
    "Block",
    "Bullets",
    "Callout",
    "Card",
    "Cards",
    "Cell",
    "Code",
    "Document",
    "FigureBlock",
    "Fold",
    "Paragraph",
    "Section",
    "Table",
    "cells",
]


@dataclass(frozen=True, slots=True)
class Cell:
    """Text in a table; `badge` shows an origin, `best` marks the best of its column, `colour` a system's swatch.

    `ends` is the 90% interval below the text.
    """

    text: str
    badge: Origin | None = None
    best: bool = False
    colour: str | None = None
    tip: str | None = None
    span: int = 1
    ends: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; `numeric` tells which columns align right. `origin_note` says how well founded the numbers are."""

    key: str
    caption: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    origin_note: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class FigureBlock:
    """A drawing with title, a text that replaces it, and a caption."""

    key: str
    title: str
    alt: str
    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str
    lead: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Callout:
    """A box that must not be missed: `kind` is "warning", "verdict" or "note"."""

    kind: str
    title: str
    text: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """One of a few things side by side."""

    title: str
    kicker: str
    text: str
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class Cards:
    """Things side by side."""

    items: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy into a shell; those that begin with # are comments."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Content that is folded away on the page and printed in full."""

    title: str
    blocks: tuple[Paragraph | Table | FigureBlock | Bullets | Callout | Cards | Code, ...]


Block = Paragraph | Table | FigureBlock | Bullets | Callout | Cards | Code | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with blocks; `key` is its anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report; the first section is the answer."""

    title: str
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    banner: str
    sections: tuple[Section, ...]
    footer: str

    def figures(self) -> list[FigureBlock]:
        """Every figure in reading order."""
        found: list[FigureBlock] = []
        for section in self.sections:
            for block in section.blocks:
                inside: Sequence[object] = block.blocks if isinstance(block, Fold) else (block,)
                found += [b for b in inside if isinstance(b, FigureBlock)]
        return found


def cells(*texts: str) -> tuple[Cell, ...]:
    """Plain cells."""
    return tuple(Cell(text) for text in texts)
