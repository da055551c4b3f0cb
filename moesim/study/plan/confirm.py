"""The best few in the serving simulation: the same deployment under requests that queue, batch and finish one by one.

Requests come at the asked rate where there is one, else in a closed loop at the planned concurrency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.specs.scenario import SystemKind
from moesim.specs.serving import ServeScenarioSpec
from moesim.study.plan.ground import Ground
from moesim.study.plan.results import Confirmation, PlanPoint, PoolPlan
from moesim.study.stepping import backend_of
from moesim.units import plural

__all__ = ["confirm", "ranked", "ranking_sentence"]

#: Lengths vary by this much about the asked mean, so that requests do not march in step. Assumption.
LENGTH_SPREAD = 0.2
LEAST_REQUESTS, MOST_REQUESTS = 60, 1500
#: Turnovers of all requests in flight that pools are served for, and those left out first: all begin with a prompt at once, and
#: the queue that this makes lasts two turnovers more (measured: the figures of 3 in 6 are within 3% of 12 in 20).
POOL_TURNS, POOL_WARM_TURNS = 6, 3
MOST_POOL_REQUESTS = 30_000


def confirm(
    ground: Ground, points: Sequence[PlanPoint], progress: Callable[[str, float], None] = lambda what, done: None
) -> list[Confirmation]:
    """One simulation per point, in their order, with ranks by simulated tokens per second and device."""
    tried = []
    for i, point in enumerate(points):
        progress(f"simulating {point.label}", i / len(points))
        tried.append(_one(ground, point, i + 1))
    return ranked(tried)


def ranked(found: Sequence[Confirmation]) -> list[Confirmation]:
    """The same with ranks by simulated tokens per second and device."""
    rates = sorted((c.output_tokens_per_s_per_device for c in found if c.output_tokens_per_s_per_device), reverse=True)
    return [
        c.model_copy(update={"rank_simulated": rates.index(c.output_tokens_per_s_per_device) + 1})
        if c.output_tokens_per_s_per_device
        else c
        for c in found
    ]


def ranking_sentence(found: Sequence[Confirmation]) -> str | None:
    """Where closed form and simulation rank differently, or that they do not."""
    ran = [c for c in found if c.rank_simulated is not None]
    if len(ran) < 2:
        return None
    aside = "goals aside, " if any(c.meets_goals is False for c in ran) else ""
    by_closed = sorted(ran, key=lambda c: c.rank_closed_form)
    by_simulated = sorted(ran, key=lambda c: (c.rank_simulated or 0, c.rank_closed_form))
    if by_closed == by_simulated:
        return f"{aside}the simulation ranks the best {len(ran)} as the closed form does"
    first = by_simulated[0]
    other = by_closed[0]
    if first != other:
        return (
            f"{aside}the simulation puts {_name(first, ran)} first ({first.output_tokens_per_s_per_device:.0f} tokens/s per"
            f" device), the closed form {_name(other, ran)} (simulated: {other.output_tokens_per_s_per_device:.0f})"
        )
    order = ", ".join(_name(c, ran) for c in by_simulated)
    return f"{aside}the simulation agrees on the first and ranks the rest differently: {order}"


def _name(c: Confirmation, among: Sequence[Confirmation]) -> str:
    """Its split, and its batch where the split is there twice."""
    return f"{c.split} at {c.batch}" if sum(c.split == other.split for other in among) > 1 else c.split


def _one(ground: Ground, point: PlanPoint, rank: int) -> Confirmation:
    load = _load(ground, point)
    try:
        scenario = _scenario(ground, point, load)
        ran = _simulate(ground, scenario)
    except InputError as error:
        return _empty(point, rank, f"not simulated: {error}")
    spec, ttft, tpot = ground.spec, ran.ttft_s, ran.tpot_s
    tokens = ran.output_tokens_per_s_per_device
    meets = None if ttft is None or tpot is None else ttft <= (spec.ttft_s or ttft) and tpot <= (spec.tpot_s or tpot)
    if meets and not ran.is_stable:
        meets = False
    closed = (
        spec.rate_per_s * spec.output_tokens / point.n_devices
        if spec.rate_per_s
        else point.output_tokens_per_s_per_device
    )
    return Confirmation(
        split=point.label, load=load.words, ttft_s=ttft, tpot_s=tpot, output_tokens_per_s_per_device=tokens,
        ttft_ratio=ttft / point.ttft_s if ttft else None, tpot_ratio=tpot / point.tpot_s if tpot else None,
        throughput_ratio=tokens / closed if tokens else None, meets_goals=meets, good_frac=ran.good_frac,
        rank_closed_form=rank, rank_simulated=None, n_requests=load.n_requests,
        note=None if ran.is_stable else "requests come faster than it serves them: queues grow without end",
        batch=point.main.batch,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Ran:
    ttft_s: float | None = None
    tpot_s: float | None = None
    output_tokens_per_s_per_device: float | None = None
    good_frac: float | None = None
    is_stable: bool = True


@dataclass(frozen=True, slots=True)
class _Load:
    """Requests to one unit of a deployment: arrivals, how many are in flight, and how that reads."""

    arrivals: dict[str, Any]
    in_flight: int
    n_requests: int
    words: str


def _simulate(ground: Ground, scenario: ServeScenarioSpec) -> _Ran:
    """Means after the warm-up; in a closed loop the rate by Little's law (requests over time would count the run-down)."""
    from moesim.sim.serving.summary import Goals, good_requests, kept_rows, stability  # brings simpy
    from moesim.study.plan.expected_draws import without_draws
    from moesim.study.serve import simulate_requests
    from moesim.study.serve_build import build_deployment

    deployment = without_draws(build_deployment(scenario, scenario.seed), ground)
    recorder, _ = simulate_requests(deployment, scenario.seed)
    keep = kept_rows(recorder, scenario.serving.warmup_requests)
    arrivals = scenario.serving.arrivals
    if arrivals is not None and arrivals.concurrency is not None:
        keep = keep & _before_run_down(np.asarray(recorder.times["arrival_s"]), arrivals.concurrency)
    if not keep.any() or arrivals is None:
        return _Ran()
    times = {name: np.asarray(values)[keep] for name, values in recorder.times.items()}
    output = float(np.asarray(recorder.counts["output_tokens"])[keep].mean())
    slo = scenario.serving.slo
    if arrivals.concurrency is not None:
        tokens_per_s, is_stable = arrivals.concurrency * output / float(times["e2e_s"].mean()), True
    else:
        finished = np.sort(times["finish_s"])
        tokens_per_s = (len(finished) - 1) * output / max(float(finished[-1] - finished[0]), 1e-9)
        is_stable = stability(recorder).is_stable
    return _Ran(
        float(times["ttft_s"].mean()), float(np.nanmean(times["tpot_s"])), tokens_per_s / deployment.n_devices,
        float(good_requests(times, Goals(slo.ttft_s, slo.tpot_s, slo.e2e_s)).mean()), is_stable,
    )  # fmt: skip


def _before_run_down(arrival_s: NDArray[np.float64], n_last: int) -> NDArray[np.bool_]:
    """All but the last requests, which nobody replaces: they see ever fewer beside them."""
    keep = np.ones(len(arrival_s), dtype=bool)
    keep[np.argsort(arrival_s, kind="stable")[len(arrival_s) - min(n_last, len(arrival_s) // 2) :]] = False
    return keep


def _empty(point: PlanPoint, rank: int, note: str) -> Confirmation:
    return Confirmation(
        split=point.label, load="", ttft_s=None, tpot_s=None, output_tokens_per_s_per_device=None, ttft_ratio=None,
        tpot_ratio=None, throughput_ratio=None, meets_goals=None, good_frac=None, rank_closed_form=rank, rank_simulated=None,
        n_requests=0, note=note, batch=point.main.batch,
    )  # fmt: skip


def _load(ground: Ground, point: PlanPoint) -> _Load:
    """Requests to one unit of the deployment, of which `point.n_units` share the whole load.

    Without a rate a closed loop keeps the batch that the closed form assumes, so what differs is queueing, chunking and the
    scheduler. With one, requests arrive as a Poisson process, at the unit's share.
    """
    spec, pools = ground.spec, [_unit(pool, point) for pool in point.pools]
    n_devices = sum(pool.parallel.n_ranks * k for pool, k in zip(point.pools, pools, strict=True))
    if spec.rate_per_s is not None:
        rate = spec.rate_per_s * (pools[-1] / point.main.n_instances)
        in_flight = max(1, round(rate * (point.ttft_s + spec.output_tokens * point.tpot_s)))
        n = min(MOST_REQUESTS, max(2 * LEAST_REQUESTS, 6 * in_flight))
        words = f"{rate:.3g} requests/s on {plural(n_devices, 'device')}"
        return _Load({"kind": "poisson", "n_requests": n, "rate_per_s": rate}, in_flight, n, words)
    in_flight = point.main.batch * pools[-1]
    if len(pools) > 1:
        # requests that are still prefilled or on their way are in flight too
        in_flight += max(1, round(point.requests_per_s * pools[-1] / point.main.n_instances * point.ttft_s))
    n = max(min(MOST_REQUESTS, max(LEAST_REQUESTS, 4 * in_flight)), min(3 * MOST_REQUESTS, 3 * in_flight))
    if len(pools) > 1:
        n = max(n, min(MOST_POOL_REQUESTS, POOL_TURNS * in_flight))
    arrivals = {"kind": "closed_loop", "n_requests": n, "concurrency": in_flight, "staggered": True}
    return _Load(arrivals, in_flight, n, f"closed loop, {in_flight} in flight on {plural(n_devices, 'device')}")


def _scenario(ground: Ground, point: PlanPoint, load: _Load) -> ServeScenarioSpec:
    """One unit of the deployment under its load."""
    spec, main = ground.spec, point.main
    pools = [_unit(pool, point) for pool in point.pools]
    longest = 2 * (spec.input_tokens + spec.output_tokens)
    longest = min(longest, ground.model.max_position_embeddings or longest)
    serving: dict[str, Any] = {
        "arrivals": load.arrivals, "input": _lengths(spec.input_tokens), "output": _lengths(spec.output_tokens),
        "scheduler": {"policy": backend_of(ground.calibration) or "vllm", "max_num_seqs": main.per_rank,
                      "max_num_batched_tokens": max(spec.max_pass_tokens, main.per_rank), "memory_frac": 1.0,
                      "prefix_caching": False, "max_model_len": longest},
        "slo": {"ttft_s": spec.ttft_s, "tpot_s": spec.tpot_s}, "replicas": pools[-1] if len(pools) == 1 else 1,
        "warmup_requests": _warm_up(load, len(pools)) if spec.rate_per_s is None else load.n_requests // 4,
    }  # fmt: skip
    if len(pools) > 1:
        serving["disaggregation"] = {
            "n_prefill": pools[0], "n_decode": pools[1], "prefill_parallel": point.pools[0].parallel,
            "decode_parallel": main.parallel,
        }  # fmt: skip
    kind = SystemKind.MOE if ground.model.is_moe else SystemKind.DENSE
    system = {
        "name": "plan", "kind": kind, "model": spec.model, "parallel": main.parallel, "routing": spec.routing,
        "weight_dtype": spec.weight_dtype, "kv_dtype": spec.kv_dtype, "dp_prefill": spec.dp_prefill,
    }  # fmt: skip
    n_devices = sum(pool.parallel.n_ranks * k for pool, k in zip(point.pools, pools, strict=True))
    return ServeScenarioSpec.model_validate({
        "title": "plan", "hardware": ground.name, "n_devices": n_devices, "calibration": spec.calibration,
        "system": system, "serving": serving, "seed": spec.seed,
    })  # fmt: skip


def _warm_up(load: _Load, n_pools: int) -> int:
    """Requests of a closed loop that are left out at its start: those caught in the middle, and half of the rest but the last."""
    if n_pools > 1:
        return min(
            load.n_requests * POOL_WARM_TURNS // POOL_TURNS, max(load.in_flight * POOL_WARM_TURNS, LEAST_REQUESTS)
        )
    return min(load.n_requests // 2, max(load.in_flight, (load.n_requests - load.in_flight) // 2))


def _unit(pool: PoolPlan, point: PlanPoint) -> int:
    """Instances of a pool in one unit: one where the deployment prefills in place."""
    return 1 if len(point.pools) == 1 else pool.n_instances // point.n_units


def _lengths(tokens: int) -> dict[str, Any]:
    low = max(1, round(tokens * (1.0 - LENGTH_SPREAD)))
    return {"kind": "uniform", "low": low, "high": 2 * tokens - low}
