"""Synthetic requests: arrival processes and length distributions, in order of arrival, made in blocks as they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.sim.serving.requests import Request
from moesim.specs.serving import ArrivalKind, ArrivalSpec, LengthKind, LengthSpec

__all__ = ["arrival_times", "draw_lengths", "synthetic_requests"]

Floats = NDArray[np.float64]
BLOCK = 4096


def draw_lengths(spec: LengthSpec, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`n` token counts, at least 1 each."""
    if spec.kind is LengthKind.FIXED:
        return np.full(n, spec.tokens or 1, dtype=np.int64)
    if spec.kind is LengthKind.UNIFORM:
        return np.asarray(rng.integers(spec.low or 1, (spec.high or 1) + 1, n), dtype=np.int64)
    if spec.kind is LengthKind.EMPIRICAL:
        return np.asarray(rng.choice(np.asarray(spec.values, dtype=np.int64), n))
    drawn = np.rint((spec.median or 1) * np.exp(rng.standard_normal(n) * (spec.sigma or 1.0)))
    return np.asarray(np.clip(drawn, spec.low or 1, spec.high or 10**9), dtype=np.int64)


def arrival_times(spec: ArrivalSpec, rng: np.random.Generator) -> Iterator[Floats]:
    """Arrival times in blocks; for a closed loop all zero.

    Gamma gaps have shape 1 / cv^2; diurnal arrivals are thinned from a Poisson process at the peak rate (Lewis & Shedler, 1979).
    """
    left, now = spec.n_requests, 0.0
    rate = spec.rate_per_s or 1.0
    while left > 0:
        n = min(BLOCK, left)
        if spec.kind is ArrivalKind.CLOSED_LOOP:
            times = np.zeros(n)
        elif spec.kind is ArrivalKind.DIURNAL:
            peak = rate * (1.0 + spec.amplitude)
            candidates = now + np.cumsum(rng.exponential(1.0 / peak, 2 * n))
            now = float(candidates[-1])
            wave = rate * (1.0 + spec.amplitude * np.sin(2.0 * np.pi * candidates / spec.period_s))
            times = candidates[rng.random(2 * n) * peak < wave][:left]
        else:
            times = now + np.cumsum(_gaps(spec, rate, n, rng))
            now = float(times[-1])
        left -= len(times)
        yield times


def _gaps(spec: ArrivalSpec, rate: float, n: int, rng: np.random.Generator) -> Floats:
    if spec.kind is ArrivalKind.UNIFORM:
        return np.full(n, 1.0 / rate)
    if spec.kind is ArrivalKind.GAMMA:
        return rng.gamma(1.0 / spec.cv**2, spec.cv**2 / rate, n)
    return rng.exponential(1.0 / rate, n)


def synthetic_requests(
    arrivals: ArrivalSpec, input_spec: LengthSpec, output_spec: LengthSpec, rng: np.random.Generator,
    shared_prefix_tokens: int = 0,
) -> Iterator[Request]:  # fmt: skip
    """Requests of a synthetic workload.

    Args:
        arrivals: when, and how many.
        input_spec: input tokens.
        output_spec: output tokens.
        rng: arrivals and lengths have streams of their own, spawned from it.
        shared_prefix_tokens: leading input tokens that are the same in every request (a system prompt), in whole 16s.
    """
    when, lengths = rng.spawn(2)
    shared = shared_prefix_tokens // 16
    prefix = tuple(range(shared))
    number, n_early = 0, (arrivals.concurrency or 0) if arrivals.staggered else 0
    early = rng.spawn(1)[0].random(n_early)
    for times in arrival_times(arrivals, when):
        inputs, outputs = (draw_lengths(spec, len(times), lengths) for spec in (input_spec, output_spec))
        here = min(len(outputs), max(0, n_early - number))
        outputs[:here] = np.maximum(1, np.ceil(outputs[:here] * early[number : number + here]))
        for at, n_in, n_out in zip(times.tolist(), inputs.tolist(), outputs.tolist(), strict=True):
            yield Request(str(number), at, n_in, n_out, prefix[: n_in // 16], 16)
            number += 1
