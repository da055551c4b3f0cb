"""What is kept of a run: one row per request, totals in time bins, and a histogram of gaps between tokens."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.sim.serving.requests import Outcome, Request, Sequence

__all__ = ["GapHistogram", "Recorder", "TimeBins"]

Floats = NDArray[np.float64]
COLUMNS = ("arrival_s", "ttft_s", "tpot_s", "e2e_s", "queue_s", "queued_s", "first_token_s", "finish_s")
COUNTS = ("input_tokens", "output_tokens", "cached_tokens", "n_preempted", "replica")


class GapHistogram:
    """Weighted histogram of durations with bins 0.5% wide, so that a quantile is within 0.25%."""

    WIDTH = math.log(1.005)

    def __init__(self) -> None:
        self.weights: dict[int, float] = {}
        self.total = 0.0
        self.sum_s = 0.0

    def add(self, seconds: float, weight: float) -> None:
        """Count a duration `weight` times."""
        if seconds <= 0.0:
            return
        key = round(math.log(seconds) / self.WIDTH)
        self.weights[key] = self.weights.get(key, 0.0) + weight
        self.total += weight
        self.sum_s += seconds * weight

    def quantile(self, q: float) -> float:
        """The duration below which a share `q` lies; NaN when empty."""
        if not self.total:
            return math.nan
        seen = 0.0
        for key in sorted(self.weights):
            seen += self.weights[key]
            if seen >= q * self.total:
                return math.exp(key * self.WIDTH)
        return math.exp(max(self.weights) * self.WIDTH)

    @property
    def mean_s(self) -> float:
        """Mean duration; NaN when empty."""
        return self.sum_s / self.total if self.total else math.nan


class TimeBins:
    """Sums over equal bins of time; bins double in width when there are too many, so that memory stays bounded."""

    NAMES = (
        "output_tokens", "prompt_tokens", "n_passes", "busy_s", "finished", "running_s", "kv_s", "decode_s", "prefill_s",
    )  # fmt: skip

    def __init__(self, width_s: float = 1.0, most: int = 4096) -> None:
        self.width_s, self.most = width_s, most
        self.data = np.zeros((len(self.NAMES), 256))
        self.n_used = 0

    def index(self, at_s: float) -> int:
        """The bin of a time; makes room for it."""
        i = int(at_s / self.width_s)
        while i >= self.most:
            self._double()
            i = int(at_s / self.width_s)
        if i >= self.data.shape[1]:
            grown = np.zeros((len(self.NAMES), min(self.most, max(2 * self.data.shape[1], i + 1))))
            grown[:, : self.data.shape[1]] = self.data
            self.data = grown
        if i >= self.n_used:
            self.n_used = i + 1
        return i

    def _double(self) -> None:
        even = self.data.shape[1] // 2 * 2
        merged = self.data[:, 0:even:2] + self.data[:, 1:even:2]
        self.data = np.zeros_like(self.data)
        self.data[:, : merged.shape[1]] = merged
        self.width_s *= 2.0
        self.n_used = (self.n_used + 1) // 2

    def rows(self) -> dict[str, Floats]:
        """Sums per bin by name."""
        return {name: self.data[i, : self.n_used].copy() for i, name in enumerate(self.NAMES)}


@dataclass(slots=True)
class Totals:
    """Counts that must add up: submitted = finished + rejected + in flight."""

    submitted: int = 0
    finished: int = 0
    rejected: int = 0
    output_tokens: int = 0
    input_tokens: int = 0
    passes: int = 0
    busy_s: float = 0.0
    decode_tokens: float = 0.0
    prefill_tokens: int = 0
    preemptions: int = 0


class Recorder:
    """Everything that a run leaves; grows by about 110 bytes per request."""

    def __init__(self, bin_s: float = 1.0) -> None:
        self.ids: list[str] = []
        self.times = {name: array("d") for name in COLUMNS}
        self.counts = {name: array("q") for name in COUNTS}
        self.outcomes: list[Outcome] = []
        self.gaps = GapHistogram()
        self.bins = TimeBins(bin_s)
        self.totals = Totals()

    def one_pass(
        self, previous_s: float, start_s: float, end_s: float, n_decode: float, n_prefill: int, n_first: int, running: int,
        held: float,
    ) -> None:  # fmt: skip
        """One pass; `previous_s` is when the tokens before it came out."""
        t = self.totals
        t.passes += 1
        t.busy_s += end_s - start_s
        t.decode_tokens += n_decode
        t.prefill_tokens += n_prefill
        if n_decode:
            self.gaps.add(end_s - previous_s, n_decode)
        self._one_bin(self.bins.index(end_s), 1, n_decode, n_prefill, n_first, end_s - start_s, running, held)

    def passes(
        self, previous_s: float, start_s: float, ends: Floats, n_decode: float, running: int, held: float
    ) -> None:  # fmt: skip
        """Equal passes of decodes one after another, ending at `ends`."""
        n, end_s, first_s = len(ends), float(ends[-1]), float(ends[0])
        t = self.totals
        t.passes += n
        t.busy_s += end_s - start_s
        t.decode_tokens += n_decode * n
        self.gaps.add(first_s - previous_s, n_decode)
        if n > 1:
            self.gaps.add((end_s - first_s) / (n - 1), n_decode * (n - 1))
        first, last = self.bins.index(start_s), self.bins.index(end_s)
        if first == last:
            self._one_bin(last, n, n_decode, 0, 0, end_s - start_s, running, held)
            return
        first = self.bins.index(start_s)
        edges = ends.searchsorted(np.arange(first + 1, last + 1) * self.bins.width_s).tolist()
        done, before_s = 0, start_s
        for place, stop in enumerate((*edges, n), start=first):
            if stop > done:
                until_s = float(ends[stop - 1])
                self._one_bin(place, stop - done, n_decode, 0, 0, until_s - before_s, running, held)
                done, before_s = stop, until_s

    def _one_bin(
        self, i: int, n: int, n_decode: float, n_prefill: int, n_first: int, span: float, running: int, held: float
    ) -> None:  # fmt: skip
        column = self.bins.data[:, i]
        column[0] += n_decode * n + n_first
        column[1] += n_prefill
        column[2] += n
        column[3] += span
        column[5] += running * span
        column[6] += held * span
        column[8 if n_prefill else 7] += span

    def finish(self, seq: Sequence, replica: int) -> None:
        """A request is done."""
        r = seq.request
        tpot = (seq.last_s - seq.first_s) / (r.output_tokens - 1) if r.output_tokens > 1 else math.nan
        at = r.arrival_s
        times = (seq.first_s - at, tpot, seq.last_s - at, seq.scheduled_s - at, seq.queued_s, seq.first_s, seq.last_s)
        self._append(r, Outcome.FINISHED, times, (seq.cached, seq.n_preempted, replica))
        t = self.totals
        t.finished += 1
        t.output_tokens += r.output_tokens
        t.input_tokens += r.input_tokens
        t.preemptions += seq.n_preempted
        i = self.bins.index(seq.last_s)  # first: it may replace the array
        self.bins.data[4, i] += 1

    def reject(self, request: Request, outcome: Outcome) -> None:
        """A request that cannot be served."""
        self.totals.rejected += 1
        self._append(request, outcome, (math.nan,) * 7, (0, 0, -1))

    def leave_in_flight(self, seq: Sequence, replica: int) -> None:
        """A request that is still there when the run stops."""
        at = seq.request.arrival_s
        first, started, queued = (t if t >= 0.0 else math.nan for t in (seq.first_s, seq.scheduled_s, seq.queued_s))
        times = (first - at, math.nan, math.nan, started - at, queued, first, math.nan)
        self._append(seq.request, Outcome.IN_FLIGHT, times, (seq.cached, seq.n_preempted, replica))

    def _append(
        self, request: Request, outcome: Outcome, times: tuple[float, ...], counts: tuple[int, int, int]
    ) -> None:
        self.ids.append(request.request_id)
        self.outcomes.append(outcome)
        for column, value in zip(self.times.values(), (request.arrival_s, *times), strict=True):
            column.append(value)
        row = (request.input_tokens, request.output_tokens, *counts)
        for count, number in zip(self.counts.values(), row, strict=True):
            count.append(number)
