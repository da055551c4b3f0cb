"""Tables and JSON on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["print_json", "table"]


def print_json(data: Any) -> None:
    """JSON with stable keys; numbers stay numbers."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, wrap: bool = False) -> None:
    """A table: first column left, the others right and on one line unless they hold text to `wrap`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        first_or_text = i == 0 or wrap
        grid.add_column(
            name,
            justify="left" if i == 0 else "right",
            overflow="fold",
            no_wrap=not first_or_text,
            min_width=18 if i == 0 else None,
        )
    for row in rows:
        grid.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(grid)
