"""Fabric files on disk, found by the device they were measured on."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from moesim.specs.fabric import FabricSpec
from moesim.specs.load import read_yaml, validate

__all__ = ["FABRIC_FOLDER", "find_fabric", "load_fabric"]

FABRIC_FOLDER = "hardware/calibrations/fabrics"


@lru_cache(maxsize=64)
def load_fabric(path: Path) -> FabricSpec:
    """A fabric file.

    Raises:
        InputError: not readable, or a figure without a source.
    """
    return validate(FabricSpec, read_yaml(path), str(path))


@lru_cache(maxsize=64)
def find_fabric(folder: Path, device: str, scale_up_link: str | None) -> FabricSpec | None:
    """The first fabric, by name, that was measured on `device` joined by `scale_up_link`; None if there is none."""
    for path in sorted((folder / FABRIC_FOLDER).glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if device in _listed(text, "devices") and scale_up_link in _listed(text, "scale_up_links"):
            return load_fabric(path)
    return None


def _listed(text: str, field: str) -> tuple[str, ...]:
    """A one-line list of names, without parsing the whole file: hardware is loaded at every start."""
    match = re.search(rf"^{field}:\s*\[([^\]]*)\]", text, re.MULTILINE)
    return tuple(name.strip("'\" ") for name in match[1].split(",")) if match else ()
