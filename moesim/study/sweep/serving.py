"""Cases answered by the serving simulation: a serve scenario with fields changed by path, one run each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as File
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ValidationError

from moesim.errors import InputError, nearest
from moesim.specs.load import plain_words, validate
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import SweepSpec
from moesim.study.serve import load_serve_scenario, run_serve
from moesim.study.sweep.paths import Path

__all__ = ["SERVED", "read_serve_path", "serve_base", "serve_columns", "serve_variant"]

#: Result columns of a served case, by where they are found in a `ServeResult`.
SERVED = {
    "ttft_s": ("ttft_s", "p50"), "ttft_p99_s": ("ttft_s", "p99"), "tpot_s": ("tpot_s", "p50"), "tpot_p99_s": ("tpot_s", "p99"),
    "output_tokens_per_s": ("output_tokens_per_s",), "output_tokens_per_s_per_device": ("output_tokens_per_s_per_device",),
    "usd_per_million_output_tokens": ("usd_per_million_output_tokens",), "goodput_requests_per_s": ("goodput_requests_per_s",),
    "good_frac": ("good_frac",), "rank_imbalance_ratio": ("rank_imbalance",), "concurrency": ("mean_running",),
}  # fmt: skip
_SHORT = (
    "model",
    "parallel",
    "routing",
    "weight_dtype",
    "kv_dtype",
    "overlap",
    "n_members",
    "member_skew",
    "dp_prefill",
)


def serve_base(spec: SweepSpec, file: File | None) -> ServeScenarioSpec:
    """The base of a served sweep: a serve scenario, shipped, in a file or inline.

    Raises:
        InputError: another kind of scenario, or one that is wrong.
    """
    if spec.against is not None or spec.constraints or spec.law is not None:
        raise InputError("takes neither against, constraints nor a law", field="engine", value="serving")
    if isinstance(spec.base, dict):
        return validate(ServeScenarioSpec, spec.base, None if file is None else str(file))
    beside = file.parent / spec.base if file is not None else None
    return load_serve_scenario(str(beside) if beside is not None and beside.is_file() else spec.base)[0]


def read_serve_path(text: str) -> Path:
    """A field of the serve scenario; ``parallel.tp_size`` and the like mean the system's.

    Raises:
        InputError: no such field; the nearest is suggested.
    """
    head = text.split(".", 1)[0]
    full = f"system.{text}" if head in _SHORT else text
    known = _fields(ServeScenarioSpec, "")
    if full not in known:
        close = nearest(full, known)
        hint = (
            f"did you mean {' or '.join(repr(c) for c in close)}?" if close else "see docs/sweeps.md for what can vary"
        )
        raise InputError("no such path in a serve scenario", field="axes", value=text, hint=hint)
    return Path(text, "serve", full)


def _fields(spec: type[BaseModel], prefix: str) -> list[str]:
    """Dotted names of all fields, those of nested specs included."""
    found = []
    for name, info in spec.model_fields.items():
        found.append(f"{prefix}{name}")
        kinds: list[Any] = [info.annotation, *get_args(info.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _fields(kind, f"{prefix}{name}.")
    return found


def serve_variant(base: ServeScenarioSpec, settings: Mapping[Path, Any]) -> ServeScenarioSpec:
    """The base with fields changed.

    Raises:
        InputError: a value that its field does not take.
        ValueError: values that do not go together.
    """
    data = base.model_dump(mode="json")
    for path, value in settings.items():
        node, keys = data, path.name.split(".")
        for key in keys[:-1]:
            node[key] = node.get(key) or {}
            node = node[key]
        node[keys[-1]] = list(value) if isinstance(value, tuple) else value
    try:
        return ServeScenarioSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":
            raise ValueError(plain_words(first["msg"])) from None
        loc = ".".join(map(str, first["loc"]))
        text = next((p.text for p in settings if p.name == loc), loc)
        raise InputError(plain_words(first["msg"]), field=text, value=first.get("input")) from None


def serve_columns(variant: ServeScenarioSpec, seed: int) -> dict[str, Any]:
    """Result columns of one served case; percentiles are over requests."""
    out: dict[str, Any] = {name: np.full(1, np.nan) for name in SERVED}
    outcome, reason = "ok", None
    try:
        result = run_serve(variant, seed=seed).result
    except InputError as error:
        outcome, reason = "cannot be served", str(error)
    else:
        outcome = result.outcome
        reason = result.stability if outcome != "ok" else None
        for name, keys in SERVED.items():
            value: Any = result
            for key in keys:
                value = getattr(value, key)
            out[name][0] = np.nan if value is None else value
        tpot = out["tpot_s"][0]
        out["output_tokens_per_s_per_user"] = np.full(1, 1.0 / tpot if tpot > 0 else np.nan)
    out.setdefault("output_tokens_per_s_per_user", np.full(1, np.nan))
    for name in ("memory_bytes", "error_frac"):
        out[name] = np.full(1, np.nan)
    out |= {n: np.full(1, v, dtype=object) for n, v in (("outcome", outcome), ("reason", reason), ("origin", None))}
    return out
