"""Stacks on disk: a YAML file per backend and GPU generation under ``hardware/calibrations/stacks``, and the intervals' file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.cost.stack import StackParams
from moesim.errors import InputError
from moesim.specs.base import Frozen
from moesim.specs.catalog import data_dir
from moesim.specs.load import read_yaml, validate

__all__ = [
    "FOLDER",
    "Bands",
    "band_of",
    "base_of",
    "is_stack_file",
    "load_stack",
    "save_bands",
    "save_stack",
    "shipped_bands",
    "shipped_stacks",
]

FOLDER = Path("hardware") / "calibrations" / "stacks"
BANDS = "intervals"


@dataclass(frozen=True, slots=True)
class Bands:
    """90% bands of log(measured / predicted), of rows that no fit saw: TPOT of mixtures and dense models, TTFT by warm-up."""

    tpot_moe: tuple[float, float] = (-0.35, 0.35)
    tpot_dense: tuple[float, float] = (-0.35, 0.35)
    ttft_warm: tuple[float, float] = (-0.7, 0.7)
    ttft_cold: tuple[float, float] = (-0.9, 0.9)
    ttft_other: tuple[float, float] = (-0.9, 0.9)

    def tpot(self, is_moe: bool) -> tuple[float, float]:
        """The band of TPOT for a mixture or a dense model."""
        return self.tpot_moe if is_moe else self.tpot_dense

    def ttft(self, warm_up: str) -> tuple[float, float]:
        """The band of TTFT for a client."""
        return {"yes": self.ttft_warm, "no": self.ttft_cold}.get(warm_up, self.ttft_other)


class _StackFile(Frozen):
    stack: str = Field(min_length=1)
    source: str = Field(min_length=1)
    date: str = ""
    n_rows: int = Field(default=0, ge=0)
    n_groups: int = Field(default=0, ge=0)
    note: str = ""
    base: str = ""
    parameters: dict[str, float]


class _BandsFile(Frozen):
    source: str = Field(min_length=1)
    bands: dict[str, tuple[float, float]]


def load_stack(path: Path) -> tuple[str, StackParams]:
    """Name and parameters of a stack file.

    Raises:
        InputError: not readable, a parameter unknown, missing or not above zero.
    """
    file = validate(_StackFile, read_yaml(path), str(path))
    names = StackParams.names()
    wrong = sorted(set(names) ^ set(file.parameters))
    if wrong:
        raise InputError(
            "needs each parameter once", file=str(path), field="parameters", value=wrong[0], allowed=", ".join(names)
        )
    bad = [n for n, v in file.parameters.items() if not (math.isfinite(v) and v > 0.0)]
    if bad:
        raise InputError(
            "must be above zero", file=str(path), field=f"parameters.{bad[0]}", value=file.parameters[bad[0]]
        )
    return file.stack, StackParams(**file.parameters)


def base_of(path: Path) -> str:
    """Calibration (``device/stack``) that a stack file lies on, '' where it does not say."""
    return validate(_StackFile, read_yaml(path), str(path)).base


def is_stack_file(name: str) -> bool:
    """Whether a name is a YAML file of a stack's parameters (not of a device's kernels)."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    found = read_yaml(path)
    return isinstance(found, dict) and "stack" in found and "parameters" in found and "families" not in found


def save_stack(
    path: Path,
    name: str,
    stack: StackParams,
    *,
    source: str,
    date: str = "",
    n_rows: int = 0,
    n_groups: int = 0,
    note: str = "",
    base: str = "",
) -> None:
    """Write a stack file that `load_stack` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# What a serving stack adds to the kernels of its tables; meanings and units: docs/validation.md"]
    for key, text in (("stack", name), ("source", source), ("date", date), ("note", note), ("base", base)):
        if text:
            lines.append(f'{key}: "{text}"')
    lines += [f"n_rows: {n_rows}", f"n_groups: {n_groups}", "parameters:"]
    lines += [f"  {key}: {value:.4g}" for key, value in asdict(stack).items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_bands(path: Path, bands: Bands, source: str) -> None:
    """Write the intervals' file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "# 90% bands of log(measured / predicted) of runs whose group (model x system) no fit saw",
        f'source: "{source}"',
    ]
    lines += ["bands:", *(f"  {key}: [{low:.4f}, {high:.4f}]" for key, (low, high) in asdict(bands).items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class _Stacks(Mapping[str, StackParams]):
    """Stacks by name, each read when it is asked for: a cold command needs one of them."""

    def __init__(self, files: Mapping[str, tuple[Path, int]]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> StackParams:
        return _read(*self._files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def shipped_stacks() -> Mapping[str, StackParams]:
    """Stacks by name: the shipped ones, and over them those in the current folder."""
    return _Stacks({_name_in(*file): file for file in _files()})


def shipped_bands() -> Bands:
    """The intervals measured with the shipped stacks."""
    for folder in (Path.cwd() / FOLDER, data_dir() / FOLDER):
        path = folder / f"{BANDS}.yaml"
        if path.is_file():
            return Bands(**validate(_BandsFile, read_yaml(path), str(path)).bands)
    return Bands()


def _files() -> list[tuple[Path, int]]:
    found = []
    for folder in dict.fromkeys((data_dir() / FOLDER, Path.cwd() / FOLDER)):
        found += [(p, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.yaml")) if p.stem != BANDS]
    return found


@lru_cache(maxsize=64)
def _read(path: Path, mtime_ns: int) -> StackParams:
    return load_stack(path)[1]


@lru_cache(maxsize=64)
def _name_in(path: Path, mtime_ns: int) -> str:
    """The name that a stack file gives itself, without a parse where it stands on a line as `save_stack` writes it."""
    found = re.search(r'^stack: "?([\w.-]+)"?$', path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else load_stack(path)[0]


def band_of(errors: NDArray[np.float64], n_groups: int) -> tuple[float, float]:
    """5% and 95% quantiles of log errors, a little further out because groups are few (level 0.05 / (1 + 1 / groups)).

    Conformal in spirit: valid if the next group's errors are drawn as those of the groups seen (exchangeable groups; assumption).
    """
    level = 0.05 / (1.0 + 1.0 / max(1, n_groups))
    low, high = np.quantile(errors, [level, 1.0 - level])
    return float(low), float(high)
