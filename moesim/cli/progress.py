"""A progress bar on the error stream; nothing where nobody watches."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["progress_bar"]


def progress_bar() -> Progress:
    """What is being done, how far it is, and for how long."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<52.52}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
