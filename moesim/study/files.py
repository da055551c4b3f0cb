"""Result files: written beside their place and moved there, so that a reader sees a whole file or none."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

__all__ = ["write_csv", "write_json", "write_text", "write_whole"]


def write_whole(path: Path, write: Callable[[TextIO], None]) -> Path:
    """A text file that `write` fills, whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    staged = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            write(stream)
        staged.chmod(0o644)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return path


def write_text(path: Path, text: str) -> None:
    """A text, whole or not at all."""

    def fill(stream: TextIO) -> None:
        stream.write(text)

    write_whole(path, fill)


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of equal keys, the keys as header; an empty file for none."""

    def fill(stream: TextIO) -> None:
        if rows:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, fill)
