"""Driving a profile on a device: rounds over all points, within a time budget, every record kept at once."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moesim.calibrate.measure import blocks, machine
from moesim.calibrate.measure.cases import Bench, build_case
from moesim.calibrate.measure.collectives import measure_collectives
from moesim.calibrate.measure.layers import has_grouped_mm
from moesim.calibrate.measure.partial import FORMAT_VERSION, Partial, Record
from moesim.calibrate.measure.plan import (
    ELEMENT_BYTES,
    Mode,
    Point,
    Scale,
    collective_points,
    plan_points,
    scale_for,
    user_points,
)
from moesim.calibrate.measure.pool import Pool
from moesim.calibrate.measure.timing import Clock, Settings, clock_for, take_samples
from moesim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Request", "Session", "Tick", "measure", "prepare"]

#: (what, points done in this round or of all, how many, rounds done)
Tick = Callable[[str, int, int], None]

_POOL_CACHES = 8.0
_POOL_MIN_BYTES = 384 << 20
_COLLECTIVE_LIMIT_S = 90.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be measured and how."""

    device: str
    mode: Mode
    out: Path
    layer: str | None
    seed: int
    n_threads: int
    budget_s: float
    n_rounds: int
    world_sizes: tuple[int, ...]
    with_transformers: bool
    name: str | None = None
    only: frozenset[str] | None = None
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A prepared profile: its points in order, the file of records, facts about the machine."""

    request: Request
    device: torch.device
    dtype: str
    points: tuple[Point, ...]
    group_points: tuple[Point, ...]
    partial: Partial
    facts: dict[str, Any]
    user_layer: blocks.UserLayer | None
    n_threads_before: int

    @property
    def all_points(self) -> tuple[Point, ...]:
        """Points of one process and of several."""
        return self.points + self.group_points


def prepare(request: Request) -> Session:
    """Look at the machine, plan, and open the file of records.

    Raises:
        InputError: no such device, a bad layer, or a folder that holds another profile.
    """
    device = machine.pick_device(request.device)
    dtype, n_threads_before = machine.native_dtype(device), torch.get_num_threads()
    torch.set_num_threads(request.n_threads)
    layer = None if request.layer is None else blocks.load_layer(request.layer, device)
    points, group_points = _plan(request, device, dtype, layer)
    facts = {
        **machine.describe(device),
        "dtype": dtype,
        "date": machine.today(),
        "seed": request.seed,
        "mode": request.mode,
    }
    header = {
        **facts,
        "format_version": FORMAT_VERSION,
        "device": request.name or machine.catalog_name(device, request.n_threads),
        "layer": request.layer,
    }
    partial = Partial(request.out / "partial.jsonl", header)
    return Session(request, device, dtype, points, group_points, partial, header, layer, n_threads_before)


def _plan(
    request: Request, device: torch.device, dtype: str, layer: blocks.UserLayer | None
) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    scale = request.scale or scale_for(device.type, request.mode)
    families = blocks.available_families() if request.with_transformers else ()
    points = plan_points(scale, dtype, 0.35 * _free_bytes(device), families)
    if not has_grouped_mm():
        points = tuple(p for p in points if "grouped" not in p.kernel)
    if layer is not None:
        own = _format_of(next((p.dtype for p in layer.module.parameters()), torch.float32))
        points = user_points(scale, own, layer.name) + points
    backend = "nccl" if device.type == "cuda" else "gloo"
    groups = collective_points(scale, dtype, backend, request.world_sizes)
    if request.only is not None:
        points = tuple(p for p in points if p.kind in request.only or p.kernel in request.only)
        groups = tuple(p for p in groups if p.kind in request.only)
    return points, groups


def _format_of(dtype: torch.dtype) -> str:
    known = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    if dtype not in known:
        raise InputError("layers in this number format cannot be profiled", field="layer", value=str(dtype),
                         allowed=", ".join(known.values()))  # fmt: skip
    return known[dtype]


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 4e9  # assumption, where the system does not say


def measure(session: Session, tick: Tick) -> None:
    """Measure rounds until all are done or the time budget is used up.

    Raises:
        KeyboardInterrupt: stopped by the user; all records so far are kept.
    """
    settings = Settings(max_samples=7, target_s=0.08) if session.request.mode == "quick" else Settings()
    clock = clock_for(session.device)
    with _undisturbed(session.n_threads_before):
        bench = _bench(session)
        # setting up is not measuring: a short budget must still measure something on a busy machine
        deadline = time.monotonic() + session.request.budget_s
        for round_ in range(session.request.n_rounds):
            done = session.partial.done()
            todo = [p for p in _shuffled(session.points, session.request.seed, round_) if done.get(p.key, 0) <= round_]
            for i, point in enumerate(todo):
                if time.monotonic() > deadline:
                    return
                tick(f"round {round_ + 1}: {point.kind} {point.kernel} {point.name}".rstrip(), i, len(todo))
                session.partial.add(_measured(session, point, bench, clock, settings, round_))
            if round_ == 0:
                _groups(session, deadline, tick)


def _groups(session: Session, deadline: float, tick: Tick) -> None:
    for n_ranks in session.request.world_sizes:
        done = session.partial.done()
        points = [p for p in session.group_points if p.sizes["n_ranks"] == n_ranks and p.key not in done]
        left = deadline - time.monotonic()
        if points and left > 5.0:
            tick(f"collectives over {n_ranks} processes", 0, len(points))
            for record in measure_collectives(points, n_ranks, min(left, _COLLECTIVE_LIMIT_S)):
                session.partial.add(record)


def _bench(session: Session) -> Bench:
    element = ELEMENT_BYTES[session.dtype]
    cache = machine.last_level_cache_bytes(session.device)
    largest = max((_weights(p) * element for p in session.points), default=0)
    pool_bytes = max(_POOL_CACHES * cache, _POOL_MIN_BYTES, 1.02 * largest)
    pool_bytes = min(pool_bytes, max(0.6 * _free_bytes(session.device), 1.02 * largest))
    pool = Pool(pool_bytes, machine.torch_dtype(session.dtype), session.device, session.request.seed)
    return Bench(session.device, pool, cache, session.request.seed)


def _weights(point: Point) -> int:
    s = point.sizes
    experts = s.get("n_local_experts", 1) + s.get("n_shared_experts", 0)
    return 3 * s.get("hidden_size", 0) * s.get("inter_size", 0) * experts + s.get("n", 0) * s.get("k", 0)


def _shuffled(points: Sequence[Point], seed: int, round_: int) -> list[Point]:
    """Another order in every round, so that a slow minute of the machine does not fall on one shape."""
    order = np.random.default_rng([seed, round_]).permutation(len(points))
    return [points[i] for i in order]


def _measured(session: Session, point: Point, bench: Bench, clock: Clock, settings: Settings, round_: int) -> Record:
    """One record; what a point cannot do on this machine is recorded, not raised."""
    clock.reset_peak()
    try:
        if point.kernel == "user" and session.user_layer is not None:
            case = blocks.user_case(session.user_layer, point, bench)
        else:
            case = build_case(point, bench)
        samples = take_samples(case.calls, clock, settings)
    except (RuntimeError, MemoryError, NotImplementedError, TypeError) as error:
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        said = str(error).splitlines()
        return Record(point.key, round_, error=f"{type(error).__name__}: {said[0][:160] if said else ''}")
    record = Record(point.key, round_, samples.seconds, samples.n_preempted, dict(case.stats))
    return replace(record, peak_bytes=clock.peak_bytes())


@contextmanager
def _undisturbed(n_threads_after: int) -> Iterator[None]:
    """No autograd, and no garbage collection in the middle of a sample; threads as before afterwards."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(n_threads_after)
        if was_on:
            gc.enable()
