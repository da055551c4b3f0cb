"""90% intervals of a serve run: errors of the stack, what the passes are exposed to, and the scatter of requests and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.summary import Goals, distribution, good_requests, kept_rows
from moesim.specs.serving import ArrivalKind
from moesim.study.uncertainty import POWER_WIDTH, Basis, Spread, current_bands, spread_of

if TYPE_CHECKING:
    from moesim.study.serve_build import Deployment
    from moesim.study.serve_results import ServeResult

__all__ = ["serve_intervals"]

Floats = NDArray[np.float64]
Ends = tuple[float, float]
MEASURES = ("mean", "p50", "p90", "p95", "p99")
#: Pieces of a run whose scatter stands for that of runs with other seeds (batch means).
N_PIECES = 10
#: Two-sided 90% quantile of Student's t with N_PIECES - 1 degrees of freedom, and by the number of seeds.
T_PIECES = 1.833
T_SEEDS = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895}


def serve_intervals(
    deployment: Deployment, recorder: Recorder, results: Sequence[ServeResult]
) -> tuple[dict[str, Ends], Basis]:
    """Ends of each result's 90% interval by its name (``ttft_s.mean``, ``output_tokens_per_s``), and what stands behind them.

    Errors of model and stack are those of TPOT and TTFT; a request's end-to-end time takes them by its parts. Scatter: between
    seeds where there are several, else between tenths of the run. Under an open load that is kept up with, rates are the load's.
    Assumes: errors scale all latencies of a kind alike; queues react as the passes do.
    """
    result = results[0]
    basis = deployment.basis
    exposure = deployment.exposure(max(1.0, result.mean_decode_batch))
    bands, is_moe = current_bands(), deployment.model.is_moe
    tpot = spread_of(basis, exposure, bands, is_moe=is_moe)
    ttft = spread_of(basis, exposure, bands, is_moe=is_moe, is_ttft=True)
    if math.isnan(float(tpot.low)):
        return {}, Basis.ASSUMPTION
    whole = _of_parts(result, ttft, tpot)
    spreads = {"ttft_s": ttft, "queue_s": ttft, "tpot_s": tpot, "itl_s": tpot, "e2e_s": whole}
    found: dict[str, Ends] = {}
    pieces = _pieces(deployment, recorder)
    for name, spread in spreads.items():
        for measure in MEASURES:
            value = getattr(getattr(result, name), measure)
            seeds = [getattr(getattr(r, name), measure) for r in results]
            scatter = _scatter(seeds, [p.get(name, {}).get(measure) for p in pieces])
            ends = spread.widened(scatter).interval(value) if value else None
            if ends is not None:
                found[f"{name}.{measure}"] = ends
    return found | _rates(deployment, result, results, whole) | _goodput(
        deployment, recorder, result, ttft, tpot
    ), basis


def _of_parts(result: ServeResult, ttft: Spread, tpot: Spread) -> Spread:
    """Of a sum of a first token's time and of what follows, errors of both kinds independent."""
    total, first = result.e2e_s.mean or 0.0, result.ttft_s.mean or 0.0
    a = min(1.0, first / total) if total > 0 else 0.0
    b = 1.0 - a
    return Spread(
        math.hypot(a * float(ttft.low), b * float(tpot.low)), math.hypot(a * float(ttft.high), b * float(tpot.high))
    )


def _pieces(deployment: Deployment, recorder: Recorder) -> list[Mapping[str, Mapping[str, float]]]:
    """Latencies of tenths of the finished requests, in the order in which they ended."""
    keep = np.flatnonzero(kept_rows(recorder, deployment.scenario.serving.warmup_requests))
    if len(keep) < 5 * N_PIECES:
        return []
    found: list[Mapping[str, Mapping[str, float]]] = []
    for rows in np.array_split(keep, N_PIECES):
        piece = {}
        for name in ("ttft_s", "tpot_s", "e2e_s", "queue_s"):
            d = distribution(np.asarray(recorder.times[name])[rows])
            piece[name] = {measure: float(getattr(d, measure)) for measure in MEASURES}
        found.append(piece)
    return found


def _scatter(seeds: Sequence[float | None], pieces: Sequence[float | None]) -> float:
    """Half-width of the 90% interval of a mean's logarithm by chance alone."""
    known = [math.log(v) for v in seeds if v]
    if len(known) > 1:
        return T_SEEDS.get(len(known), 1.8) * float(np.std(known, ddof=1)) / math.sqrt(len(known))
    parts = [math.log(v) for v in pieces if v and math.isfinite(v)]
    return T_PIECES * float(np.std(parts, ddof=1)) / math.sqrt(len(parts)) if len(parts) > 2 else 0.0


def _rates(
    deployment: Deployment, result: ServeResult, results: Sequence[ServeResult], whole: Spread
) -> dict[str, Ends]:
    """Rates, dollars and joules."""
    arrivals = deployment.scenario.serving.arrivals
    is_closed = arrivals is not None and arrivals.kind is ArrivalKind.CLOSED_LOOP
    base = whole.inverse() if is_closed or result.outcome != "ok" else Spread(0.0, 0.0)
    found = {}
    for name, spread in (
        ("requests_per_s", base), ("output_tokens_per_s", base), ("total_tokens_per_s", base),
        ("output_tokens_per_s_per_device", base), ("usd_per_request", base.inverse()),
        ("usd_per_million_output_tokens", base.inverse()), ("energy_j_per_request", base.inverse().widened(POWER_WIDTH)),
        ("energy_j_per_million_output_tokens", base.inverse().widened(POWER_WIDTH)),
    ):  # fmt: skip
        value = getattr(result, name)
        ends = spread.widened(_scatter([getattr(r, name) for r in results], [])).interval(value) if value else None
        if ends is not None:
            found[name] = ends
    return found


def _goodput(
    deployment: Deployment, recorder: Recorder, result: ServeResult, ttft: Spread, tpot: Spread
) -> dict[str, Ends]:
    """Goodput with all latencies at the upper, and at the lower end of their intervals."""
    slo = deployment.scenario.serving.slo
    goals = Goals(slo.ttft_s, slo.tpot_s, slo.e2e_s)
    if goals == Goals() or not result.good_frac:
        return {}
    keep = kept_rows(recorder, deployment.scenario.serving.warmup_requests)
    times = {name: np.asarray(values)[keep] for name, values in recorder.times.items()}
    shares = []
    rest = times["e2e_s"] - times["ttft_s"]
    for first, gap in ((float(ttft.high), float(tpot.high)), (-float(ttft.low), -float(tpot.low))):
        a, b = math.exp(first), math.exp(gap)
        moved = {
            **times, "ttft_s": times["ttft_s"] * a, "tpot_s": times["tpot_s"] * b, "e2e_s": times["ttft_s"] * a + rest * b,
        }  # fmt: skip
        shares.append(float(good_requests(moved, goals).mean()))
    scale = result.goodput_requests_per_s / result.good_frac
    return {"good_frac": (shares[0], shares[1]), "goodput_requests_per_s": (shares[0] * scale, shares[1] * scale)}
