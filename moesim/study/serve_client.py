"""What a request spends outside its passes: on its way to the server and back, as tokens are made, until the scheduler looks."""

from __future__ import annotations

import heapq
from array import array

import numpy as np
from numpy.typing import NDArray

from moesim.cost.stack import StackParams
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.requests import Outcome
from moesim.study.host import wait_s

__all__ = ["add_client_time"]

Floats = NDArray[np.float64]
#: Columns of spans and of moments that lie later by it.
SPANS = ("ttft_s", "e2e_s", "queue_s")
MOMENTS = ("queued_s", "first_token_s", "finish_s")


def add_client_time(recorder: Recorder, stack: StackParams, concurrency: int | None) -> None:
    """Each request's times with what its client waits beyond them: request_s + token_s x prompt + wait_passes x mean TPOT.

    As in the fit of these parameters, it does not move the schedule. In a closed loop each client goes on that much later,
    request by request, so that its next one arrives when the last has ended and rates follow Little's law; passes keep the
    engine's clock.

    Args:
        recorder: of a run that is over; changed in place.
        stack: fitted parameters.
        concurrency: clients of a closed loop; None for arrivals at times of their own.
    """
    gaps = np.asarray(recorder.times["tpot_s"])
    step_s = float(np.nanmean(gaps)) if np.isfinite(gaps).any() else 0.0
    client_s = np.asarray(wait_s(stack, step_s, np.asarray(recorder.counts["input_tokens"], dtype=float)), dtype=float)
    arrivals = np.asarray(recorder.times["arrival_s"])
    late_s = np.zeros(len(arrivals)) if concurrency is None else _lateness(recorder, client_s, concurrency)
    for name in SPANS:
        recorder.times[name] = array("d", np.asarray(recorder.times[name]) + client_s)
    for name in MOMENTS:
        recorder.times[name] = array("d", np.asarray(recorder.times[name]) + client_s + late_s)
    recorder.times["arrival_s"] = array("d", arrivals + late_s)


def _lateness(recorder: Recorder, client_s: Floats, concurrency: int) -> Floats:
    """Seconds by which each request of a closed loop starts later: what those before it at its client have waited."""
    arrivals, ends = np.asarray(recorder.times["arrival_s"]), np.asarray(recorder.times["finish_s"])
    late_s = np.zeros(len(arrivals))
    free: list[tuple[float, float]] = []
    for n, i in enumerate(np.argsort(arrivals, kind="stable").tolist()):
        if n >= concurrency and free:
            late_s[i] = heapq.heappop(free)[1]
        outcome = recorder.outcomes[i]
        if outcome is Outcome.FINISHED:
            heapq.heappush(free, (float(ends[i]), float(late_s[i] + client_s[i])))
        elif outcome is not Outcome.IN_FLIGHT:
            heapq.heappush(free, (float(arrivals[i]), float(late_s[i])))
    return late_s
