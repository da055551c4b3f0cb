"""Run a serve scenario: requests through engines, once per seed, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim._version import __version__
from moesim.errors import ConservationError, InputError
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.requests import Outcome, Request
from moesim.sim.serving.summary import Goals, Stability, distribution, good_requests, kept_rows, stability
from moesim.sim.serving.workload import arrival_times, synthetic_requests
from moesim.specs.catalog import path_of
from moesim.specs.load import line_of, read_yaml, validate
from moesim.specs.serving import ArrivalKind, ArrivalSpec, RequestFileSpec, ServeScenarioSpec, ServingSpec
from moesim.study.requests import read_requests
from moesim.study.serve_build import Deployment, build_deployment
from moesim.study.serve_client import add_client_time
from moesim.study.serve_intervals import serve_intervals
from moesim.study.serve_results import Interval, LatencyResult, ServeResult

__all__ = ["ServeRun", "load_serve_scenario", "run_serve", "simulate_requests"]

Progress = Callable[[str, float], None]
Floats = NDArray[np.float64]
REPORT_EVERY = 500


@dataclass(frozen=True, slots=True)
class ServeRun:
    """A finished (or interrupted) run: the record, and the first seed's books."""

    result: ServeResult
    recorder: Recorder
    deployment: Deployment


def load_serve_scenario(name: str) -> tuple[ServeScenarioSpec, Path]:
    """A serve scenario by path, or by the name of a shipped one.

    Raises:
        InputError: for the first thing wrong in it, with file, line and field.
    """
    path = path_of("serving", name)
    return validate(ServeScenarioSpec, read_yaml(path), str(path)), path


def run_serve(
    scenario: ServeScenarioSpec, *, name: str = "serve", requests: Path | None = None, seed: int | None = None,
    file: Path | None = None, progress: Progress = lambda what, done: None,
) -> ServeRun:  # fmt: skip
    """Serve a scenario's requests.

    Args:
        scenario: the checked scenario.
        name: what the results call it.
        requests: a request file in place of the scenario's workload.
        seed: overrides the scenario's seed.
        file: where the scenario was read, for the line of an error and for files it names.
        progress: called with a step's name and the fraction done.

    Raises:
        InputError: anything in the scenario or the request file that does not fit together.
    """
    seed = scenario.seed if seed is None else seed
    if requests is not None:
        keep = scenario.serving.arrivals
        keep = keep if keep is not None and keep.kind is ArrivalKind.CLOSED_LOOP else None
        update = {"requests": RequestFileSpec(file=str(requests)), "arrivals": keep, "input": None, "output": None}
        scenario = scenario.model_copy(update={"serving": scenario.serving.model_copy(update=update)})
    if scenario.serving.requests is None and scenario.serving.arrivals is None:
        raise InputError("no requests: give a requests file or arrivals with lengths", field="serving",
                         hint="or --requests FILE")  # fmt: skip
    try:
        return _run(scenario, name, seed, file.parent if file is not None else Path(), progress)
    except InputError as error:
        if file is not None and error.file is None:
            loc = tuple(int(part) if part.isdigit() else part for part in (error.field or "").split("."))
            error.at(file=str(file), line=line_of(read_yaml(file), loc))
        raise


def _run(scenario: ServeScenarioSpec, name: str, seed: int, folder: Path, progress: Progress) -> ServeRun:
    progress("measuring passes", 0.0)
    deployment = build_deployment(scenario, seed)
    n_seeds = scenario.serving.n_seeds
    results: list[ServeResult] = []
    first: Recorder | None = None
    for i in range(n_seeds):
        label = "serving" if n_seeds == 1 else f"serving, seed {i + 1} of {n_seeds}"

        def tell(done: float, i: int = i, label: str = label) -> None:
            progress(label, (i + done) / n_seeds)

        recorder, interrupted = simulate_requests(deployment, seed + i, folder, tell)
        results.append(_record(deployment, recorder, name, seed, interrupted))
        first = first or recorder
        if interrupted:
            break
    if first is None:
        raise ValueError("a run needs a seed")
    ends, basis = serve_intervals(deployment, first, results)
    update = {"intervals": _intervals(results), "intervals_90": ends, "interval_basis": basis.value}
    result = results[0].model_copy(update=update)
    progress("done", 1.0)
    return ServeRun(result, first, deployment)


def simulate_requests(
    deployment: Deployment, seed: int, folder: Path = Path(), tell: Callable[[float], None] = lambda done: None, *,
    jump: bool = True,
) -> tuple[Recorder, bool]:  # fmt: skip
    """One pass through all requests; True if the user interrupted it, with what was done kept.

    A fitted stack's client time is in the record, unless the scenario says its own `overheads.request_s`.

    Args:
        deployment: what serves.
        seed: of arrivals and lengths.
        folder: where relative request files are looked for first.
        tell: called with the fraction of requests submitted.
        jump: many equal passes at once; False goes pass by pass, with the same outcome.

    Raises:
        InputError: a request file that cannot be read on.
        ConservationError: requests, tokens or KV blocks do not add up.
    """
    serving = deployment.scenario.serving
    streams = np.random.default_rng(seed).spawn(3)
    recorder = Recorder()
    cluster = deployment.cluster(recorder, streams[1], jump=jump)
    stream = _counted(_requests(serving, folder, streams[0]), _expected_number(serving), tell)
    arrivals = serving.arrivals
    if arrivals is not None and arrivals.kind is ArrivalKind.CLOSED_LOOP:
        cluster.feed_closed(stream, arrivals.concurrency or 1)
    else:
        cluster.feed(stream)
    interrupted = False
    try:
        cluster.run()
    except KeyboardInterrupt:
        interrupted = True
    cluster.close()
    if deployment.stack is not None and serving.overheads.request_s is None:
        add_client_time(recorder, deployment.stack, None if arrivals is None else arrivals.concurrency)
    if cluster.alive and not interrupted:
        raise ConservationError(f"{len(cluster.alive)} requests never finished")
    return recorder, interrupted


def _requests(serving: ServingSpec, folder: Path, rng: np.random.Generator) -> Iterator[Request]:
    spec = serving.requests
    if spec is None:
        if serving.arrivals is None or serving.input is None or serving.output is None:
            raise InputError("needs input and output lengths", field="serving.arrivals")
        return synthetic_requests(serving.arrivals, serving.input, serving.output, rng, serving.shared_prefix_tokens)
    path = Path(spec.file).expanduser()
    if not path.is_absolute() and not path.exists() and (folder / path).exists():
        path = folder / path
    requests = read_requests(path, spec.format, spec.limit)
    if spec.rate_per_s is None:
        return requests
    return _retimed(requests, spec.rate_per_s, rng)


def _retimed(requests: Iterator[Request], rate: float, rng: np.random.Generator) -> Iterator[Request]:
    blocks = arrival_times(ArrivalSpec(rate_per_s=rate, n_requests=10**9), rng)
    times = (at for block in blocks for at in block.tolist())
    for request, at in zip(requests, times, strict=False):
        yield replace(request, arrival_s=at)


def _expected_number(serving: ServingSpec) -> int | None:
    if serving.requests is not None:
        return serving.requests.limit
    return serving.arrivals.n_requests if serving.arrivals is not None else None


def _counted(requests: Iterator[Request], n: int | None, tell: Callable[[float], None]) -> Iterator[Request]:
    for i, request in enumerate(requests):
        if i % REPORT_EVERY == 0:
            tell(min(1.0, i / n) if n else 0.0)
        yield request


def _latency(values: Floats) -> LatencyResult:
    d = distribution(values)
    return LatencyResult(**{k: _number(getattr(d, k)) for k in ("mean", "p50", "p90", "p95", "p99")})


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _record(deployment: Deployment, recorder: Recorder, name: str, seed: int, interrupted: bool) -> ServeResult:
    serving, totals = deployment.scenario.serving, recorder.totals
    keep = kept_rows(recorder, serving.warmup_requests)
    times = {k: np.asarray(v)[keep] for k, v in recorder.times.items()}
    output = np.asarray(recorder.counts["output_tokens"])[keep]
    prompt = np.asarray(recorder.counts["input_tokens"])[keep]
    slo = serving.slo
    good = good_requests(times, Goals(slo.ttft_s, slo.tpot_s, slo.e2e_s))
    n = int(keep.sum())
    duration = float(times["finish_s"].max() - times["arrival_s"].min()) if n else 0.0
    rate = 1.0 / duration if duration > 0 else 0.0
    found = (
        stability(recorder)
        if serving.arrivals is None or serving.arrivals.kind is not ArrivalKind.CLOSED_LOOP
        else None
    )
    outcome = "interrupted" if interrupted else "ok" if found is None or found.is_stable else "unstable"
    gaps = recorder.gaps
    itl = LatencyResult(mean=_number(gaps.mean_s), p50=_number(gaps.quantile(0.5)), p90=_number(gaps.quantile(0.9)),
                        p95=_number(gaps.quantile(0.95)), p99=_number(gaps.quantile(0.99)))  # fmt: skip
    rows = recorder.bins.rows()
    busy = float(rows["busy_s"].sum())
    n_engines = deployment.main.n_engines + (deployment.decode.n_engines if deployment.decode else 0)
    rejections: dict[str, int] = {}
    for reason in recorder.outcomes:
        if reason not in (Outcome.FINISHED, Outcome.IN_FLIGHT):
            rejections[reason.value] = rejections.get(reason.value, 0) + 1
    span = float(len(rows["busy_s"]) * recorder.bins.width_s)
    hits, imbalance = _expert_load(deployment, recorder)
    cached = float(np.asarray(recorder.counts["cached_tokens"])[keep].sum())
    energy, usd = _energy_and_price(deployment, busy / max(n_engines, 1), duration)
    out_rate = float(output.sum()) * rate
    return ServeResult(
        moesim_version=__version__, scenario=deployment.scenario, scenario_name=name, seed=seed, outcome=outcome,
        stability=_sentence(found, serving), sustainable_requests_per_s=found.sustainable_per_s if found else None,
        offered_requests_per_s=_number(found.offered_per_s) if found else None, cost_source=deployment.cost_source,
        routing=deployment.routing, n_devices=deployment.n_devices, deployment=deployment.label,
        kv_blocks=deployment.main.kv_blocks, submitted=totals.submitted, finished=totals.finished, rejected=totals.rejected,
        in_flight=totals.submitted - totals.finished - totals.rejected, rejections=rejections, preemptions=totals.preemptions,
        prefix_hit_frac=cached / float(prompt.sum()) if n else None, duration_s=duration, ttft_s=_latency(times["ttft_s"]),
        tpot_s=_latency(times["tpot_s"]), itl_s=itl, e2e_s=_latency(times["e2e_s"]), queue_s=_latency(times["queue_s"]),
        requests_per_s=n * rate, output_tokens_per_s=out_rate, total_tokens_per_s=out_rate + float(prompt.sum()) * rate,
        output_tokens_per_s_per_device=out_rate / deployment.n_devices, goodput_requests_per_s=float(good.sum()) * rate,
        good_frac=float(good.mean()) if n else None, mean_running=float(rows["running_s"].sum()) / max(busy, 1e-12),
        mean_waiting=float(np.nansum(times["queue_s"])) * rate,
        mean_decode_batch=totals.decode_tokens / max(1, totals.passes), peak_kv_frac=_peak(rows["kv_s"], rows["busy_s"]),
        busy_frac=min(1.0, busy / max(span * n_engines, 1e-12)), n_passes=totals.passes, experts_hit=hits,
        rank_imbalance=imbalance, energy_j_per_request=energy / n if energy is not None and n else None,
        energy_j_per_million_output_tokens=energy / float(output.sum()) * 1e6 if energy is not None and n else None,
        usd_per_request=usd / n if usd is not None and n else None,
        usd_per_million_output_tokens=usd / float(output.sum()) * 1e6 if usd is not None and n else None,
        notes=_notes(deployment, recorder, found),
    )  # fmt: skip


def _sentence(found: Stability | None, serving: ServingSpec) -> str:
    if found is None:
        return f"closed loop with {serving.arrivals.concurrency if serving.arrivals else '?'} requests in flight"
    return found.sentence


def _peak(held: Floats, seconds: Floats) -> float:
    used = seconds > 0
    return float((held[used] / seconds[used]).max()) if used.any() else 0.0


def _expert_load(deployment: Deployment, recorder: Recorder) -> tuple[float | None, float | None]:
    pool = deployment.decode or deployment.main
    draws = pool.cost.draws
    if draws is None or not recorder.totals.passes:
        return None, None
    return draws.load(max(1.0, recorder.totals.decode_tokens / recorder.totals.passes))


def _energy_and_price(deployment: Deployment, busy_s: float, duration_s: float) -> tuple[float | None, float | None]:
    """Board power while passes run and idle power otherwise (assumption), and the price of the time."""
    device, n = deployment.hardware.device, deployment.n_devices
    energy = None
    if device.board_power_w is not None:
        idle_w = device.idle_power_w if device.idle_power_w is not None else 0.15 * device.board_power_w
        active_w = idle_w + 0.75 * (device.board_power_w - idle_w)
        busy_s = min(busy_s, duration_s)
        energy = n * (busy_s * active_w + (duration_s - busy_s) * idle_w)
    price = deployment.hardware.price_usd_per_device_h
    return energy, None if price is None else n * price * duration_s / 3600.0


def _notes(deployment: Deployment, recorder: Recorder, found: Stability | None) -> tuple[str, ...]:
    notes = []
    if found is not None and not found.is_stable:
        notes.append(found.sentence)
    if recorder.totals.rejected:
        notes.append(f"{recorder.totals.rejected} requests were rejected; latencies are of the others")
    if not deployment.scenario.serving.warmup_requests:
        opening = (
            "the burst of the opening, where all requests come at once" if found is None else "the opening, as it fills"
        )
        notes.append(f"no warm-up: the statistics hold {opening}; serving.warmup_requests leaves the first ones out")
    if deployment.scenario.operator_tables is None and deployment.stack is None:
        notes.append("host overheads are those fitted on vLLM 0.19 with an RTX PRO 6000 (assumption for other hosts)")
    return tuple(notes)


def _intervals(results: list[ServeResult]) -> dict[str, Interval]:
    from scipy import stats

    found: dict[str, Interval] = {}
    picks: dict[str, Callable[[ServeResult], float | None]] = {
        "ttft_mean_s": lambda r: r.ttft_s.mean, "ttft_p99_s": lambda r: r.ttft_s.p99, "tpot_mean_s": lambda r: r.tpot_s.mean,
        "tpot_p99_s": lambda r: r.tpot_s.p99, "e2e_mean_s": lambda r: r.e2e_s.mean, "e2e_p99_s": lambda r: r.e2e_s.p99,
        "output_tokens_per_s": lambda r: r.output_tokens_per_s, "goodput_requests_per_s": lambda r: r.goodput_requests_per_s,
    }  # fmt: skip
    for name, pick in picks.items():
        values = [v for v in (pick(r) for r in results) if v is not None]
        if not values:
            continue
        half = None
        if len(values) > 1:
            half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        found[name] = Interval(mean=float(np.mean(values)), half_width=half)
    return found
