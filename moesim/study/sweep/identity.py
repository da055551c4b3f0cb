"""What a case's answer depends on, as a hash: settings, base, rules, hardware, model, calibration and version; not how it ran."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from moesim._version import __version__
from moesim.calibrate.store import calibration_names, find_calibration
from moesim.cost import CalibratedOps
from moesim.cost.forms_calibration import Calibration
from moesim.specs.base import Frozen

__all__ = ["canonical", "case_ids", "fingerprint", "group_key"]

ID_DIGITS = 24


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.model_dump(mode="json")
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no canonical form")


_SPECS: dict[int, tuple[Frozen, str]] = {}
_MOST_SPECS = 1024


def fingerprint(spec: Frozen) -> str:
    """Hash of a whole spec, such as a resolved device or model; remembered for the object."""
    known = _SPECS.get(id(spec))
    if known is None or known[0] is not spec:
        if len(_SPECS) >= _MOST_SPECS:
            _SPECS.clear()
        _SPECS[id(spec)] = known = (spec, hashlib.sha256(spec.model_dump_json().encode()).hexdigest())
    return known[1]


_CALIBRATIONS: dict[int, tuple[CalibratedOps, str]] = {}


def calibration_identity(calibration: CalibratedOps | None) -> str:
    """Hash of everything a calibration predicts with; its name alone would not tell a refit."""
    if calibration is None:
        return "none"
    known = _CALIBRATIONS.get(id(calibration))
    if known is None or known[0] is not calibration:
        _CALIBRATIONS[id(calibration)] = known = (calibration, _hash_calibration(calibration))
    return known[1]


def _hash_calibration(calibration: CalibratedOps) -> str:
    digest = hashlib.sha256()
    for layer in _layers(calibration):
        digest.update(layer.name.encode())
        digest.update(repr(getattr(layer, "stack", "")).encode())
        for family in layer.families if isinstance(layer, Calibration) else ():
            target = {name: getattr(family.target, name) for name in family.target.__dataclass_fields__}
            digest.update(canonical([family.key.name, family.params.values(), target, family.n_groups]).encode())
            digest.update(repr(family.interval).encode())
            if family.correction is not None:
                for name in ("mean", "scale", "centres", "weights"):
                    digest.update(np.ascontiguousarray(getattr(family.correction, name)).tobytes())
    return digest.hexdigest()


def _layers(calibration: CalibratedOps) -> list[CalibratedOps]:
    """A calibration and all that it is made of."""
    found = [calibration]
    for name in ("own", "inner", "wide", "narrow", "rest"):
        part = getattr(calibration, name, None)
        found += _layers(part) if part is not None else []
    for name in ("layers", "kernels"):
        found += [layer for part in getattr(calibration, name, ()) for layer in _layers(part)]
    return found


def group_key(parts: Mapping[str, Any]) -> Any:
    """A hash object over what all cases of a group share, to be copied for each case."""
    return hashlib.sha256((canonical({**parts, "moesim": __version__}) + "|").encode())


def case_ids(
    key: Any, paths: Sequence[str], texts: Sequence[Sequence[str]], codes: Sequence[Sequence[int]]
) -> list[str]:
    """Identities of the cases of a group.

    Args:
        key: what `group_key` gave.
        paths: of the numbers that vary inside the group.
        texts: for each path, its values as canonical text.
        codes: for each path, which value each case has.
    """
    order = sorted(range(len(paths)), key=lambda i: paths[i])
    if not order:
        return []
    fragments = [[f"{canonical(paths[i])}:{text},".encode() for text in texts[i]] for i in order]
    columns = [map(fragment.__getitem__, codes[i]) for fragment, i in zip(fragments, order, strict=True)]
    found = []
    for row in zip(*columns, strict=True):
        own = key.copy()
        own.update(b"".join(row))
        found.append(own.hexdigest()[:ID_DIGITS])
    return found


@lru_cache(maxsize=1)
def shipped_calibrations() -> str:
    """Names of all calibrations and their hashes, for a run whose engine looks them up itself."""
    names = calibration_names()
    return hashlib.sha256("".join(f"{n}{_hash_calibration(find_calibration(n))}" for n in names).encode()).hexdigest()
