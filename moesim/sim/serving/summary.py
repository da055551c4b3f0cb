"""What a run says: distributions, throughput, goodput, and whether the load can be sustained at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.requests import Outcome

__all__ = [
    "Distribution",
    "Goals",
    "Stability",
    "distribution",
    "good_requests",
    "kept_rows",
    "queue_lengths",
    "stability",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles of a latency in seconds; NaN where nothing was seen."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Goals:
    """Latency goals of one request; None does not matter."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stability:
    """Whether the queue settles. `sustainable_per_s` is the rate at which requests finish while some wait."""

    is_stable: bool
    offered_per_s: float
    sustainable_per_s: float | None

    @property
    def sentence(self) -> str:
        """The finding in words."""
        if self.is_stable:
            return f"stable at {self.offered_per_s:.3g} requests/s"
        rate = f"{self.sustainable_per_s:.3g}" if self.sustainable_per_s is not None else "unknown"
        return (
            f"unstable: the queue grows without bound at {self.offered_per_s:.3g} requests/s; "
            f"sustainable rate {rate} requests/s; latencies depend on the length of the run"
        )


def distribution(values: Floats) -> Distribution:
    """Mean and linear-interpolated percentiles of the finite values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Distribution(*[math.nan] * 5)
    return Distribution(float(finite.mean()), *(float(x) for x in np.percentile(finite, (50, 90, 95, 99))))


def kept_rows(recorder: Recorder, n_warmup: int) -> NDArray[np.bool_]:
    """Finished requests but the first `n_warmup` to arrive."""
    finished = np.asarray([outcome is Outcome.FINISHED for outcome in recorder.outcomes], dtype=bool)
    if n_warmup:
        arrival = np.asarray(recorder.times["arrival_s"])
        order = np.argsort(arrival, kind="stable")
        finished[order[:n_warmup]] = False
    return finished


def good_requests(times: Mapping[str, Floats], goals: Goals) -> NDArray[np.bool_]:
    """Which requests meet every goal; one output token has no TPOT and meets that goal."""
    good = np.ones(len(times["ttft_s"]), dtype=bool)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        goal = getattr(goals, name)
        if goal is not None:
            values = times[name]
            good &= (values <= goal) | (np.isnan(values) if name == "tpot_s" else False)
    return good


def queue_lengths(recorder: Recorder, at_s: Floats) -> Floats:
    """Requests that had arrived and not yet started at each of the times."""
    arrival, wait = np.asarray(recorder.times["arrival_s"]), np.asarray(recorder.times["queue_s"])
    there = np.asarray([outcome in (Outcome.FINISHED, Outcome.IN_FLIGHT) for outcome in recorder.outcomes], dtype=bool)
    arrived = np.sort(arrival[there])
    started = arrival[there] + wait[there]
    started = np.sort(started[np.isfinite(started)])
    waiting: Floats = (
        np.searchsorted(arrived, at_s, side="right") - np.searchsorted(started, at_s, side="right")
    ).astype(float)
    return waiting


def stability(recorder: Recorder) -> Stability:
    """Compare the queue in the middle of the arrivals with the queue at their end.

    Unstable if over the second half of the arrivals the queue grew by more than a tenth of what arrived then, and holds more than
    20 requests in the end. Assumption: a settled queue fluctuates by less.
    """
    arrival = np.asarray(recorder.times["arrival_s"])
    if len(arrival) < 20 or arrival.max() <= arrival.min():
        return Stability(True, math.nan, None)
    first, last = float(arrival.min()), float(arrival.max())
    half = 0.5 * (last - first)
    offered = (len(arrival) - 1) / (last - first)
    quarter = np.linspace(0.0, 0.25 * half, 32)
    at_middle = float(queue_lengths(recorder, first + half + quarter).mean())
    at_end = float(queue_lengths(recorder, last - quarter).mean())
    is_stable = not (at_end - at_middle > 0.1 * offered * half and at_end > 20.0)
    return Stability(is_stable, offered, None if is_stable else _rate_while_waiting(recorder))


def _rate_while_waiting(recorder: Recorder) -> float | None:
    """Tokens out per second while requests wait, over tokens per request: finishes lag behind, tokens do not."""
    tokens, width = recorder.bins.rows()["output_tokens"], recorder.bins.width_s
    full = queue_lengths(recorder, np.asarray((np.arange(len(tokens)) + 0.5) * width)) >= 1.0
    per_request = recorder.totals.output_tokens / max(1, recorder.totals.finished)
    if not full.any() or per_request <= 0:
        return None
    return float(tokens[full].sum() / (full.sum() * width) / per_request)
