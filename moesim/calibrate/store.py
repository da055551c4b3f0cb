"""Calibrations on disk: a YAML file that a person can read, and beside it an ``.npz`` with the corrections' points.

``hardware/calibrations/<device>/<stack>.yaml`` holds parameters with their uncertainty, errors on left-out shapes, intervals and
domains. Without the ``.npz`` the file still loads and gives the physical form alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import Field

from moesim.cost.forms import Correction, Interval, Target
from moesim.cost.forms_all import form_of
from moesim.cost.forms_calibration import Calibration, ErrorStats, Family, FamilyKey
from moesim.errors import CatalogError, InputError, nearest
from moesim.specs.base import Frozen
from moesim.specs.catalog import data_dir
from moesim.specs.load import read_text, read_yaml, validate

__all__ = ["calibration_names", "find_calibration", "load_calibration", "save_calibration"]

_HEADER = """\
# Fitted efficiencies of one device under one software stack. How to read this file: docs/calibration.md
# Parameters are parts of the peaks under `target`; relative_sd is the fit's own (null: the data do not determine it).
# held_out: errors on shapes that the fit did not see. interval: 90% of log(measured / predicted), by what bounds the time.
"""


#: Entry of the ``.npz`` that holds the parsed YAML.
_PARSED = "parsed"


class _Param(Frozen):
    value: float = Field(gt=0)
    relative_sd: float | None = Field(default=None, ge=0)


class _Family(Frozen):
    kind: str
    dtype: str
    act_dtype: str
    kv_dtype: str = ""
    kernel: str = ""
    n_points: int = Field(ge=1)
    n_shapes: int = Field(ge=0)
    target: dict[str, float]
    parameters: dict[str, _Param]
    domain: dict[str, tuple[float, float]] = Field(default_factory=dict)
    held_out: dict[str, float | str] | None = None
    interval: dict[str, tuple[float, float]] | None = None
    correction: str | None = None
    converged: bool = True


class _File(Frozen):
    device: str
    stack: str
    version: str
    source: str
    date: str
    note: str = ""
    moe_kernel: str = ""
    families: tuple[_Family, ...] = Field(min_length=1)


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration to ``path`` (``.yaml``) and its corrections to the ``.npz`` beside it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    lines = [_HEADER.rstrip()]
    for name in ("device", "stack", "version", "source", "date", "note"):
        lines.append(f"{name}: {_text(getattr(calibration, name))}")
    if calibration.moe_kernel:
        lines.append(f"moe_kernel: {_text(calibration.moe_kernel)}")
    lines.append("families:")
    for i, family in enumerate(calibration.families):
        key = f"family_{i}" if family.correction is not None else None
        lines += _family_lines(family, key)
        if family.correction is not None and key is not None:
            arrays.update(_pack(key, family.correction))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arrays[_PARSED] = _parsed_copy(path)
    np.savez_compressed(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]


def _parsed_copy(path: Path) -> np.ndarray:
    """The YAML file as checked JSON with the digest of its text: reading it is a hundred times quicker than YAML."""
    text = read_text(path)
    file = validate(_File, read_yaml(path), str(path))
    copy = {"sha256": _digest(text), "file": file.model_dump(mode="json")}
    return np.frombuffer(json.dumps(copy).encode(), dtype=np.uint8)


def _read_file(path: Path, parsed: np.ndarray | None) -> _File:
    """The YAML file, from its parsed copy if that is of the very same text."""
    if parsed is not None:
        copy = json.loads(parsed.tobytes())
        if copy["sha256"] == _digest(read_text(path)):
            return _File.model_validate(copy["file"])
    return validate(_File, read_yaml(path), str(path))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration written by `save_calibration`.

    Raises:
        InputError: not there, not readable, parameters missing or unknown.
    """
    path = Path(path)
    arrays = _arrays(path.with_suffix(".npz"))
    file = _read_file(path, arrays.pop(_PARSED, None))
    families = tuple(_family(f, arrays, str(path)) for f in file.families)
    return Calibration(
        file.device, file.stack, file.version, families, file.source, file.date, file.note, file.moe_kernel
    )


def calibration_names() -> tuple[str, ...]:
    """Calibrations as ``device/stack``, sorted: those in ``./hardware/calibrations``, and the shipped ones."""
    return tuple(sorted(_files()))


def find_calibration(name: str) -> Calibration:
    """A calibration by ``device/stack``, the current folder's before a shipped one; or one in a file.

    Raises:
        CatalogError: no such name; the nearest are suggested.
        InputError: the file cannot be used.
    """
    if name.endswith((".yaml", ".yml")):
        return load_calibration(name)
    files = _files()
    if name not in files:
        close = nearest(name, files)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see: moesim list calibrations"
        raise CatalogError("no calibration of this name", field="calibration", value=name, hint=hint)
    path = files[name]
    return _loaded(path, path.stat().st_mtime_ns)


def _files() -> dict[str, Path]:
    """Files by ``device/stack``; ``fabrics`` are links and ``stacks`` what stacks add, not a device's kernels."""
    found: dict[str, Path] = {}
    for root in (data_dir(), Path.cwd()):
        for path in (root / "hardware" / "calibrations").glob("*/*.yaml"):
            if path.parent.name not in ("fabrics", "stacks"):
                found[f"{path.parent.name}/{path.stem}"] = path
    return found


@lru_cache(maxsize=32)
def _loaded(path: Path, mtime_ns: int) -> Calibration:
    """A file as it was at `mtime_ns`, so that a new fit is seen by the process that made it."""
    return load_calibration(path)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    text = f"{value:.5g}"
    mantissa, _, exponent = text.partition("e")
    if exponent and "." not in mantissa:
        mantissa += ".0"
    return f"{mantissa}e{exponent}" if exponent else text


def _mapping(pairs: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{k}: {v}" for k, v in pairs) + "}"


def _family_lines(family: Family, correction: str | None) -> list[str]:
    key, target = family.key, family.target
    lines = [f"  - kind: {key.kind}"]
    for name in ("dtype", "act_dtype", "kv_dtype", "kernel"):
        lines.append(f"    {name}: {_text(getattr(key, name))}")
    lines += [f"    n_points: {family.n_points}", f"    n_shapes: {family.n_groups}"]
    peaks = [(n, _number(getattr(target, n))) for n in Target.__dataclass_fields__]
    lines += [f"    target: {_mapping(peaks)}", "    parameters:"]
    for name, value in family.params.values().items():
        sd = family.relative_sd.get(name, math.inf)
        pairs = [("value", _number(value)), ("relative_sd", f"{sd:.2g}" if sd < 1.0 else "null")]
        lines.append(f"      {name}: {_mapping(pairs)}")
    domain = [(n, f"[{_number(low)}, {_number(high)}]") for n, (low, high) in family.domain.items()]
    lines.append(f"    domain: {_mapping(domain)}")
    if family.held_out is not None:
        h = family.held_out
        pairs = [
            (n, _text(v) if isinstance(v := getattr(h, n), str) else _number(v))
            for n in ErrorStats.__dataclass_fields__
        ]
        lines.append(f"    held_out: {_mapping(pairs)}")
    if family.interval is not None:
        sides = [
            (n, "[{}, {}]".format(*map(_number, getattr(family.interval, n)))) for n in Interval.__dataclass_fields__
        ]
        lines.append(f"    interval: {_mapping(sides)}")
    lines.append(f"    correction: {correction or 'null'}")
    if not family.is_converged:
        lines.append("    converged: false")
    return lines


def _pack(key: str, c: Correction) -> dict[str, np.ndarray]:
    return {
        f"{key}.mean": c.mean,
        f"{key}.scale": c.scale,
        f"{key}.centres": c.centres.astype(np.float16),
        f"{key}.weights": c.weights.astype(np.float32),
        f"{key}.length_reach_limit": np.asarray([c.length, c.reach, c.limit]),
    }


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {
                name: stored[name] if name == _PARSED else np.asarray(stored[name], dtype=np.float64)
                for name in stored.files
            }
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot be read: {error}", file=str(path)) from None


def _family(f: _Family, arrays: dict[str, np.ndarray], file: str) -> Family:
    form = form_of(f.kind, f.kernel)
    known, given = set(form.params_type.infos()), set(f.parameters)
    if known != given:
        names = ", ".join(sorted(known ^ given))
        raise InputError(f"parameters missing or unknown: {names}", file=file, field=f"{f.kind} parameters")
    correction = None
    if f.correction is not None and f"{f.correction}.mean" in arrays:
        mean, scale, centres, weights = (arrays[f"{f.correction}.{n}"] for n in ("mean", "scale", "centres", "weights"))
        length, reach, limit = map(float, arrays[f"{f.correction}.length_reach_limit"])
        correction = Correction(mean, scale, centres, weights, length, reach, limit)
        if mean.shape != (len(form.feature_names),):
            raise InputError("correction was fitted on other features", file=file, field=f.kind, hint="fit it again")
    peaks = {**f.target, "n_compute_units": int(f.target.get("n_compute_units", 1))}
    return Family(
        key=FamilyKey(f.kind, f.dtype, f.act_dtype, f.kv_dtype, f.kernel),
        params=form.params_from({n: p.value for n, p in f.parameters.items()}),
        target=Target(**peaks),  # type: ignore[arg-type]
        n_points=f.n_points,
        n_groups=f.n_shapes,
        relative_sd={n: math.inf if p.relative_sd is None else p.relative_sd for n, p in f.parameters.items()},
        domain=f.domain,
        correction=correction,
        interval=None if f.interval is None else Interval(**f.interval),
        held_out=None if f.held_out is None else ErrorStats(**f.held_out),  # type: ignore[arg-type]
        is_converged=f.converged,
    )
