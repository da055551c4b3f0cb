"""Tables and JSON on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_json", "table"]

#: Columns of a file or pipe, where no terminal says.
PIPED_WIDTH = 120
#: Characters of a text column that ask for a wider line; what is longer wraps.
TEXT_WIDTH = 40
#: The first column is never narrower.
LEAST_FIRST = 18
#: Between two columns, and beside the table.
GAP = 3


def print_json(data: Any) -> None:
    """JSON with stable keys; numbers stay numbers."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[str] = ()) -> None:
    """A table: the first column and those named in `text` left and wrapped where room lacks, the others right and on one line.

    Into a file or pipe it is as wide as it needs. On a terminal that is narrower it goes on below, the first column again, so
    that nothing is cut off.
    """
    from rich.console import Console

    cells = [tuple(row) for row in rows]
    widths = _widths(header, cells, text)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(PIPED_WIDTH, sum(widths) + GAP * len(widths) + GAP))
    for chosen in _blocks(widths, console.width):
        _print([header[i] for i in chosen], [[row[i] for i in chosen] for row in cells], text, console)


def _print(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str], console: Console) -> None:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        is_text = i == 0 or name in text
        grid.add_column(
            name,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
            min_width=LEAST_FIRST if i == 0 else None,
        )
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns in groups that fit side by side, each beginning with the first column.

    >>> _blocks([18, 20, 20, 20], 80), _blocks([18, 20, 20, 20], 200)
    ([[0, 1, 2], [0, 3]], [[0, 1, 2, 3]])
    """
    blocks = [[0]]
    for i in range(1, len(widths)):
        block = [*blocks[-1], i]
        if len(block) > 2 and sum(widths[k] for k in block) + GAP * len(block) + GAP > room:
            block = [0, i]
            blocks.append(block)
        else:
            blocks[-1] = block
    return blocks


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str]) -> list[int]:
    """Characters that columns ask for: all of their numbers, text up to `TEXT_WIDTH`."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    asked = [
        min(n, TEXT_WIDTH) if i == 0 or name in text else n
        for i, (name, n) in enumerate(zip(header, widths, strict=True))
    ]
    return [max(asked[0], LEAST_FIRST), *asked[1:]]
