"""Tables and JSON on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["print_json", "table"]

#: Columns of a file or pipe, where no terminal says.
PIPED_WIDTH = 120
#: Characters of a text column that ask for a wider line; what is longer wraps.
TEXT_WIDTH = 40
#: Between two columns, and beside the table.
GAP = 3


def print_json(data: Any) -> None:
    """JSON with stable keys; numbers stay numbers."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[str] = ()) -> None:
    """A table: the first column and those named in `text` left and wrapped where room lacks, the others right and on one line.

    Into a file or pipe it is as wide as it needs, so that nothing is cut off.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [tuple(row) for row in rows]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        is_text = i == 0 or name in text
        grid.add_column(
            name,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
            min_width=18 if i == 0 else None,
        )
    for row in cells:
        grid.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(PIPED_WIDTH, _needed(header, cells, text)))
    console.print(grid)


def _needed(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str]) -> int:
    """Characters that a table asks for: all of its numbers, text up to `TEXT_WIDTH`."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    asked = [
        min(n, TEXT_WIDTH) if i == 0 or name in text else n
        for i, (name, n) in enumerate(zip(header, widths, strict=True))
    ]
    return sum(max(n, 18) if i == 0 else n for i, n in enumerate(asked)) + GAP * len(widths) + GAP
