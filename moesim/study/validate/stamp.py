"""What a prediction depends on besides its row: the code, the shipped data and the stacks in use, as a short stamp."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from moesim._version import __version__
from moesim.cost.stack import StackParams
from moesim.specs.catalog import data_dir
from moesim.study.stack_files import Bands

__all__ = ["stamp_of"]

#: Data that predictions of runs rest on, in the data folder.
FOLDERS = ("hardware", "models", "scenarios/models")
SUFFIXES = (".py", ".yaml", ".npz", ".json")


def stamp_of(stacks: Mapping[str, StackParams], bands: Bands) -> str:
    """Version and a hash of code, data, stacks and bands: predictions of equal rows with equal stamps are equal."""
    found = hashlib.blake2b(_of_files(), digest_size=5)
    found.update(repr((sorted(stacks.items(), key=lambda item: item[0]), bands)).encode())
    return f"{__version__}+{found.hexdigest()}"


@lru_cache(maxsize=1)
def _of_files() -> bytes:
    found = hashlib.blake2b(digest_size=16)
    roots = (Path(__file__).resolve().parents[2], *(data_dir() / folder for folder in FOLDERS))
    for root in roots:
        for path in sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES):
            found.update(str(path.relative_to(root)).encode())
            found.update(path.read_bytes())
    return found.digest()
