"""The page of a serve run: verdict, latencies, and what happened over time; built from the report's own parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.report.colours import stand_in
from moesim.report.document import Bullets, Callout, Cell, Document, FigureBlock, Section, Table, cells
from moesim.report.page import render_page
from moesim.report.svg import drawing, to_svg
from moesim.sim.serving.summary import queue_lengths

if TYPE_CHECKING:
    from moesim.study.serve import ServeRun
    from moesim.study.serve_results import ServeResult

__all__ = ["serve_page"]

LATENCIES = (("ttft_s", "time to first token"), ("tpot_s", "time per output token"), ("itl_s", "gap between tokens"),
             ("e2e_s", "end to end"), ("queue_s", "wait before the first pass"))  # fmt: skip


def serve_page(run: ServeRun) -> str:
    """One self-contained HTML file."""
    return render_page(_document(run), "moesim serve")


def _document(run: ServeRun) -> Document:
    r = run.result
    counts = f"{r.submitted} submitted = {r.finished} finished + {r.rejected} rejected + {r.in_flight} in flight"
    notes = tuple(note for note in r.notes if note != r.stability)
    answer = Section(
        "answer", "What users feel",
        (_verdict(r), _latency_table(r), _rate_table(r), Bullets((counts, *notes))),
    )  # fmt: skip
    over_time = Section("time", "Over time", (_series(run),))
    facts = (
        ("deployment", r.deployment), ("hardware", f"{r.scenario.hardware}, {r.n_devices} in use"), ("times", r.cost_source),
        ("routing", r.routing or "no experts"), ("scheduler", r.scenario.serving.scheduler.policy.value), ("seed", str(r.seed)),
    )  # fmt: skip
    banner = _overload(r) if r.outcome == "unstable" else ""
    return Document(
        r.scenario.title, r.scenario.description, facts, banner, (answer, over_time), f"moesim {r.moesim_version}"
    )


def _overload(r: ServeResult) -> str:
    served = "" if r.sustainable_requests_per_s is None else f", {r.sustainable_requests_per_s:.3g} can be served"
    return f"Overloaded: {r.offered_requests_per_s or 0.0:.3g} requests come per second{served}. The queue grows without end."


def _verdict(r: ServeResult) -> Callout:
    if r.outcome == "unstable":
        text = (
            "The longer it lasts, the longer requests wait; no user would feel just these. Lower the rate, add devices, or look "
            "for a deployment that keeps up with moesim plan."
        )
        return Callout("warning", "Latencies below depend on the length of this run", text)
    title = r.stability if r.outcome == "ok" else f"{r.outcome}: {r.stability}"
    good = "" if r.good_frac is None else f"{r.good_frac:.1%} of the requests meet the goals{_goals(r)}."
    return Callout("verdict", f"{title[:1].upper()}{title[1:]}", good)


def _goals(r: ServeResult) -> str:
    slo = r.scenario.serving.slo
    goals = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("end to end", slo.e2e_s))
    told = ", ".join(f"{name} {value * 1e3:g} ms" for name, value in goals if value is not None)
    return f" ({told})" if told else " (none are set)"


def _latency_table(r: ServeResult) -> Table:
    rows = []
    for name, label in LATENCIES:
        d = getattr(r, name)
        row = [Cell(label)]
        for measure in ("mean", "p50", "p90", "p95", "p99"):
            v, ends = getattr(d, measure), r.intervals_90.get(f"{name}.{measure}")
            row.append(Cell("-" if v is None else f"{v * 1e3:.1f}", ends=_ends(ends, 1e3, ".1f")))
        rows.append(tuple(row))
    headings = ("ms", "mean", "P50", "P90", "P95", "P99")
    return Table("latency", "Latencies of finished requests", headings, (False, *[True] * 5), tuple(rows), _note(r))


def _rate_table(r: ServeResult) -> Table:
    known = [
        ("requests/s", "requests_per_s", ".3g"), ("output tokens/s", "output_tokens_per_s", ".4g"),
        ("output tokens/s per device", "output_tokens_per_s_per_device", ".4g"),
        ("good requests/s", "goodput_requests_per_s", ".3g"), ("share of good requests", "good_frac", ".1%"),
        ("USD per million output tokens", "usd_per_million_output_tokens", ".3g"),
        ("J per request", "energy_j_per_request", ".4g"),
    ]  # fmt: skip
    pairs: list[tuple[str, float | None, str]] = [
        ("mean decode batch", r.mean_decode_batch, ".1f"), ("peak share of KV blocks", r.peak_kv_frac, ".1%"),
        ("preemptions", float(r.preemptions), ".0f"), ("prompt tokens found cached", r.prefix_hit_frac, ".1%"),
        ("experts hit per layer and decode pass", r.experts_hit, ".1f"), ("rank load over its mean", r.rank_imbalance, ".2f"),
    ]  # fmt: skip
    rows: list[tuple[Cell, ...]] = [
        (Cell(label), Cell(format(v, shape), ends=_ends(r.intervals_90.get(name), 1.0, shape)))
        for label, name, shape in known
        if (v := getattr(r, name)) is not None
    ]
    rows += [cells(name, format(v, shape)) for name, v, shape in pairs if v is not None]
    for name, interval in r.intervals.items():
        if interval.half_width is not None:
            rows.append(cells(f"{name}, mean over seeds", f"{interval.mean:.4g} ± {interval.half_width:.2g}"))
    return Table("rates", "Rates, use and cost", ("", "value"), (False, True), tuple(rows), _note(r))


def _note(r: ServeResult) -> str:
    """Where times and intervals come from."""
    if not r.intervals_90:
        return f"{r.cost_source}; assumption only, no intervals"
    return f"{r.cost_source}; 90% intervals from {r.interval_basis}, and from the scatter of requests"


def _ends(ends: tuple[float, float] | None, factor: float, shape: str) -> str | None:
    return None if ends is None else f"[{ends[0] * factor:{shape}}, {ends[1] * factor:{shape}}]"


_CAPTION = "Output tokens, requests in passes and requests that wait, and KV blocks held, over the time since the first arrival."


def _series(run: ServeRun) -> FigureBlock:
    bins = run.recorder.bins
    rows, width = bins.rows(), bins.width_s
    at = (np.arange(bins.n_used) + 0.5) * width
    waiting = queue_lengths(run.recorder, np.asarray(at))
    busy = np.maximum(rows["busy_s"], 1e-12)
    lines = (
        ("output tokens/s", rows["output_tokens"] / width), ("requests running", rows["running_s"] / busy),
        ("requests waiting", waiting), ("KV blocks held (%)", 100.0 * rows["kv_s"] / busy),
    )  # fmt: skip
    last = float(waiting[at <= max((float(t) for t in run.recorder.times["arrival_s"]), default=0.0)][-1:].sum())
    most = f"at most {waiting.max():.0f} wait"
    title = (
        f"The queue grows: {last:.0f} wait when the last request comes"
        if run.result.outcome == "unstable"
        else f"The queue settles: {most}"
        if waiting.max() >= 1
        else "No request waits"
    )
    alt = f"Throughput, running and waiting requests, KV use over {bins.n_used * width:.0f} s; {most}."
    with drawing(6.4, n_rows=4, sharex=True) as (figure, axes):
        for axis, (label, values) in zip(axes, lines, strict=True):
            axis.plot(at, values, color=stand_in("s0"), linewidth=1.2)
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
        axes[-1].set_xlabel("time (s)")
        svg = to_svg(figure, "serving-series", title, alt)
    return FigureBlock("serving-series", title, alt, svg, _CAPTION)
