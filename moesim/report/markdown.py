"""The report as Markdown, with figures as files beside it."""

from __future__ import annotations

import re

from moesim.report.document import (
    Block,
    Bullets,
    Callout,
    Cards,
    Cell,
    Code,
    Document,
    FigureBlock,
    Fold,
    Paragraph,
    Table,
)
from moesim.report.text import ORIGIN_WORDS

__all__ = ["FIGURE_FOLDER", "render_markdown"]

FIGURE_FOLDER = "figures"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def render_markdown(document: Document) -> str:
    """Markdown text; every figure links to ``figures/KEY.svg``."""
    lines = [f"# {_text(document.title)}", ""]
    if document.subtitle:
        lines += [_text(document.subtitle), ""]
    lines += [f"- {_text(name)}: {_text(value)}" for name, value in document.facts] + [""]
    if document.banner:
        lines += [f"> **{_text(document.banner)}**", ""]
    for section in document.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block)
    lines += ["---", "", _text(document.footer), ""]
    return "\n".join(lines)


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [f"**{_text(block.text)}**" if block.lead else _text(block.text), ""]
    if isinstance(block, Bullets):
        return [*(f"- {_text(item)}" for item in block.items), ""]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, FigureBlock):
        caption = [f"*{_text(block.caption)}*", ""] if block.caption else []
        image = f"![{_text(block.alt)}]({FIGURE_FOLDER}/{block.key}.svg)"
        return [f"### {_text(block.title)}", "", image, "", *caption]
    if isinstance(block, Callout):
        text = [f"> {_text(block.text)}"] if block.text else []
        return [f"> **{_text(block.title)}**", ">", *text, *(["> "] if text and block.items else []),
                *(f"> - {_text(item)}" for item in block.items), ""]  # fmt: skip
    if isinstance(block, Cards):
        return [*(f"- **{_text(c.title)}** ({_text(c.kicker)}): {_text(c.text)}" for c in block.items), ""]
    if isinstance(block, Code):
        return [f"**{_text(block.title)}**", "", "```sh", *block.lines, "```", ""]
    return _fold(block)


def _fold(fold: Fold) -> list[str]:
    lines = [f"### {_text(fold.title)}", ""]
    for block in fold.blocks:
        lines += _block(block)
    return lines


def _table(table: Table) -> list[str]:
    lines = [f"**{_text(table.caption)}**", ""]
    lines.append("| " + " | ".join(_text(h) for h in table.headings) + " |")
    lines.append("|" + "|".join("---:" if n else "---" for n in table.numeric) + "|")
    for row in table.rows:
        texts = [t for cell in row for t in [_cell(cell)] + [""] * (cell.span - 1)]
        lines.append("| " + " | ".join(texts) + " |")
    note = f"{_text(table.note)} " if table.note else ""
    return [*lines, "", f"{note}**{_text(table.origin_note)}**", ""]


def _cell(cell: Cell) -> str:
    badge = (
        "" if cell.badge is None else f" ({ORIGIN_WORDS[cell.badge][0]})" if cell.text else ORIGIN_WORDS[cell.badge][0]
    )
    text = _text(cell.text) + _text(badge)
    text = f"**{text}**" if cell.best and text else text
    return f"{text} {_text(cell.ends)}" if cell.ends else text


def _text(text: str) -> str:
    """Text with characters that Markdown would read as markup escaped."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()) if text.strip() else text)
