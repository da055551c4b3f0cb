"""Profile real PyTorch layers on this machine, and record what their routers choose.

This module knows no torch; it is asked for when a function is called. See docs/profile.md.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moesim.calibrate.measure.device_file import device_text
from moesim.calibrate.measure.plan import Mode, Scale
from moesim.calibrate.measure.table import Origin, rows_frame, split_frame
from moesim.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import pandas as pd

    from moesim.calibrate.measure.run import Session

__all__ = ["ProfileSummary", "Progress", "RecordingSummary", "profile", "record_routing"]

_BUDGET_S: dict[str, float] = {"quick": 75.0, "full": 280.0}
_N_ROUNDS: dict[str, int] = {"quick": 2, "full": 5}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a profile is: what runs now, how much of the round is done, and how much of the time."""

    label: str
    n_done: int
    n_planned: int
    elapsed_s: float
    budget_s: float


@dataclass(frozen=True, slots=True)
class ProfileSummary:
    """What a profile measured.

    Attributes:
        table: operators and whole layers in the measurement schema.
        parts: dense twins, parts of layers, memory tests.
        metadata: machine, versions, settings.
        n_planned: points in the plan.
        n_measured: points with a time.
        n_failed: points that this machine cannot run, with the first reason in `failures`.
        median_spread_frac: median over points of the median absolute deviation over the median.
        is_complete: every point of the plan was measured, or failed, at least once.
        is_interrupted: Ctrl-C ended it.
    """

    out: Path
    table: Path
    parts: Path
    metadata: Path
    device: str
    device_name: str
    mode: Mode
    n_planned: int
    n_measured: int
    n_failed: int
    failures: tuple[str, ...]
    median_spread_frac: float
    elapsed_s: float
    is_complete: bool
    is_interrupted: bool


@dataclass(frozen=True, slots=True)
class RecordingSummary:
    """A routing trace that was written."""

    path: Path
    model: str
    n_tokens: int
    n_layers: int
    n_experts: int
    top_k: int


def profile(
    device: str,
    mode: Literal["quick", "full"],
    out: Path,
    layer: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    *,
    n_threads: int = 1,
    budget_s: float | None = None,
    n_rounds: int | None = None,
    world_sizes: tuple[int, ...] | None = None,
    with_transformers: bool = True,
    name: str | None = None,
    only: Iterable[str] | None = None,
    scale: Scale | None = None,
) -> ProfileSummary:
    """Measure real layers and operators on a device, or go on with a profile that was stopped.

    Args:
        device: auto, cpu, cuda or cuda:N.
        mode: `quick` (about a minute) or `full` (up to five, more shapes and rounds).
        out: folder for the records, the tables and the metadata.
        layer: ``package.module:factory`` of the user's own layer, measured as well.
        progress: called before every point.
        seed: of weights, inputs and routing.
        n_threads: threads of PyTorch on a CPU; one is the least disturbed by other programs.
        budget_s: seconds after which no new point is started; by mode if None.
        n_rounds: rounds over all points; by mode if None.
        world_sizes: process counts of the collectives; 2, and more with `full`, if None; () for none.
        with_transformers: measure blocks of transformers if it is installed.
        name: of the device in the tables and device.yaml; the catalog's if None; for a CPU made from its model and the threads.
        only: keep points of these kinds or kernels.
        scale: sizes instead of those of the mode.

    Raises:
        MissingExtraError: PyTorch is not installed.
        InputError: no such device or mode, a layer that cannot be used, or a folder with another profile.
    """
    _require_torch()
    if mode not in _BUDGET_S:
        raise InputError("unknown mode", field="mode", value=mode, allowed=", ".join(_BUDGET_S))
    if n_threads < 1:
        raise InputError("must be at least 1", field="n_threads", value=n_threads)
    from moesim.calibrate.measure import run

    budget = _BUDGET_S[mode] if budget_s is None else budget_s
    request = run.Request(
        device, mode, Path(out), layer, seed, n_threads, budget, n_rounds or _N_ROUNDS[mode],
        _world_sizes(mode, device) if world_sizes is None else world_sizes, with_transformers,
        name, None if only is None else frozenset(only), scale,
    )  # fmt: skip
    start = time.monotonic()

    def tick(label: str, n_done: int, n_planned: int) -> None:
        if progress is not None:
            progress(Progress(label, n_done, n_planned, time.monotonic() - start, budget))

    session = run.prepare(request)
    interrupted = False
    try:
        run.measure(session, tick)
    except KeyboardInterrupt:
        interrupted = True
    return _finish(session, time.monotonic() - start, interrupted)


def record_routing(
    layer: str, out: Path, n_tokens: int = 4096, seed: int = 0, batch_tokens: int = 512, model_name: str | None = None
) -> RecordingSummary:
    """Record which experts a layer chooses for random hidden states, as a routing trace.

    Random inputs show the layer's own skew, not that of text; to record a model on text, use
    `moesim.calibrate.measure.record.RoutingRecorder` around your own calls.

    Args:
        layer: ``reference``, ``hf:FAMILY`` (a block of transformers with random weights), or ``package.module:factory``.
        out: the Parquet file.
        n_tokens: tokens to route.
        seed: of inputs and weights.
        batch_tokens: tokens per call.
        model_name: name in the trace; `layer` if None.

    Raises:
        MissingExtraError: PyTorch, or transformers for ``hf:``, is not installed.
        InputError: the layer cannot be used, or shows no choices.
    """
    _require_torch()
    if n_tokens < 1 or batch_tokens < 1:
        raise InputError("must be at least 1", field="n_tokens", value=min(n_tokens, batch_tokens))
    from moesim.calibrate.measure.recording import record_layer

    found = record_layer(layer, Path(out), n_tokens, seed, batch_tokens, model_name or layer)
    return RecordingSummary(Path(out), model_name or layer, *found)


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "calibrate")


def _world_sizes(mode: Mode, device: str) -> tuple[int, ...]:
    """2 processes, and 4 in a full profile; on GPUs no more than there are."""
    wanted = (2,) if mode == "quick" else (2, 4)
    if device == "cpu":
        return wanted
    import torch

    if not torch.cuda.is_available():
        return wanted
    return tuple(n for n in (2, 4, 8) if n <= torch.cuda.device_count() and (mode == "full" or n == 2))


def _finish(session: Session, elapsed_s: float, interrupted: bool) -> ProfileSummary:
    """Write the tables and the metadata, also of a profile that was stopped."""
    facts, request = session.facts, session.request
    origin = Origin(
        device=facts["device"], stack="pytorch", version=str(facts["torch_version"]).split("+")[0],
        source=f"moesim calibrate profile on {facts['device_name']}, {facts['n_threads']} thread(s)", date=facts["date"],
    )  # fmt: skip
    records = session.partial.records
    frame = rows_frame(session.all_points, records, origin)
    known, rest = split_frame(frame)
    paths = {name: request.out / name for name in ("measurements.csv", "parts.csv", "metadata.json")}
    _write_csv(known, paths["measurements.csv"])
    _write_csv(rest, paths["parts.csv"])
    failures = {r.key: r.error for r in records if r.error}
    done = session.partial.done()
    spread = 0.0 if frame.empty else float((frame["spread_s"] / frame["measured_s"]).median())
    summary = ProfileSummary(
        request.out, paths["measurements.csv"], paths["parts.csv"], paths["metadata.json"], facts["device"],
        facts["device_name"], request.mode, len(session.all_points), len(frame), len(failures),
        tuple(f"{key}: {error}" for key, error in list(failures.items())[:5]), spread, elapsed_s,
        all(p.key in done for p in session.all_points), interrupted,
    )  # fmt: skip
    achieved = {**facts, **_achieved(frame)}
    _write_text(json.dumps({**achieved, **_counts(summary)}, indent=2, sort_keys=True) + "\n", paths["metadata.json"])
    described = device_text(achieved)
    if described is not None:
        _write_text(described, request.out / "device.yaml")
    return summary


def _counts(summary: ProfileSummary) -> dict[str, Any]:
    names = ("n_planned", "n_measured", "n_failed", "median_spread_frac", "is_complete", "failures")
    return {name: getattr(summary, name) for name in names} | {"elapsed_s": round(summary.elapsed_s, 1)}


def _achieved(frame: pd.DataFrame) -> dict[str, float]:
    """The best rates that were seen: what a description of this machine can take as its peaks."""
    best: dict[str, float] = {}
    if frame.empty:
        return best
    gemm = frame[frame["op_kind"] == "gemm"]
    if len(gemm):
        best["best_gemm_flop_per_s"] = float((2.0 * gemm["m"] * gemm["n"] * gemm["k"] / gemm["measured_s"]).max())
    for kind in ("memory_copy", "memory_triad"):
        rows = frame[frame["op_kind"] == kind]
        if len(rows):
            largest = rows[rows["n_bytes"] == rows["n_bytes"].max()]
            best[f"{kind}_bytes_per_s"] = float((largest["moved_bytes"] / largest["measured_s"]).median())
    return best


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    used = frame.dropna(axis=1, how="all") if len(frame) else frame
    part = path.with_name(path.name + ".part")
    used.to_csv(part, index=False, float_format="%.9g")
    part.replace(path)


def _write_text(text: str, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
