"""Files of a serve run: ``requests.csv``, ``timeseries.csv`` and ``results.json``, each moved into place when whole."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from moesim.errors import InputError
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.summary import queue_lengths
from moesim.study.files import write_whole
from moesim.study.serve import ServeRun
from moesim.study.serve_results import ServeResult
from moesim.units import plural

__all__ = [
    "LATENCY_HEADER",
    "REQUEST_COLUMNS",
    "SERIES_COLUMNS",
    "latency_rows",
    "rate_rows",
    "request_rows",
    "series_rows",
    "summary_lines",
    "summary_text",
    "write_serve",
]

REQUEST_COLUMNS = (
    "request_id", "arrival_s", "input_tokens", "output_tokens", "ttft_s", "tpot_s", "e2e_s", "queue_s", "outcome",
    "first_token_s", "finish_s", "queued_s", "cached_tokens", "n_preempted", "replica",
)  # fmt: skip
SERIES_COLUMNS = (
    "t_s", "output_tokens_per_s", "prompt_tokens_per_s", "finished", "running", "waiting", "kv_frac", "n_passes", "busy_s",
    "decode_s", "prefill_s", "mean_decode_batch", "experts_hit", "rank_imbalance",
)  # fmt: skip


def write_serve(run: ServeRun, out_dir: Path, page: str | None = None) -> list[Path]:
    """Write the files of a run, ``results.json`` last; `page` is the text of ``report.html``.

    Raises:
        InputError: `out_dir` is a file or cannot be written.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError("is a file where a directory is meant", file=str(out_dir))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        shown = [write_whole(out_dir / "report.html", lambda f: _write(f, page))] if page is not None else []
        return [
            *shown,
            write_whole(out_dir / "requests.csv", lambda f: _table(f, REQUEST_COLUMNS, request_rows(run.recorder))),
            write_whole(out_dir / "timeseries.csv", lambda f: _table(f, SERIES_COLUMNS, series_rows(run))),
            write_whole(out_dir / "summary.md", lambda f: _write(f, summary_text(run.result))),
            write_whole(out_dir / "results.json", lambda f: _write(f, results_json(run.result))),
        ]
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", file=str(out_dir)) from error


def results_json(result: ServeResult) -> str:
    """The record as JSON with sorted keys."""
    return (
        json.dumps(result.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


def request_rows(recorder: Recorder) -> Iterator[tuple[str, ...]]:
    """One row per request in the order in which they ended; times empty where there is none."""
    t, c = recorder.times, recorder.counts
    for i, name in enumerate(recorder.ids):
        yield (
            name, _s(t["arrival_s"][i]), str(c["input_tokens"][i]), str(c["output_tokens"][i]), _s(t["ttft_s"][i]),
            _s(t["tpot_s"][i]), _s(t["e2e_s"][i]), _s(t["queue_s"][i]), recorder.outcomes[i].value, _s(t["first_token_s"][i]),
            _s(t["finish_s"][i]), _s(t["queued_s"][i]), str(c["cached_tokens"][i]), str(c["n_preempted"][i]),
            str(c["replica"][i]),
        )  # fmt: skip


def series_rows(run: ServeRun) -> Iterator[tuple[str, ...]]:
    """One row per time bin; `running` and `kv_frac` are means while passes ran, `waiting` is counted in its middle."""
    bins, deployment = run.recorder.bins, run.deployment
    rows, width = bins.rows(), bins.width_s
    waiting = queue_lengths(run.recorder, np.asarray((np.arange(bins.n_used) + 0.5) * width))
    draws = (deployment.decode or deployment.main).cost.draws
    for i in range(bins.n_used):
        at = {name: float(values[i]) for name, values in rows.items()}
        busy = max(at["busy_s"], 1e-12)
        batch = max(0.0, at["output_tokens"] / at["n_passes"]) if at["n_passes"] else 0.0
        load = draws.load(max(1.0, round(batch))) if draws is not None and at["n_passes"] else (math.nan, math.nan)
        yield (
            _s((i + 1) * width), _s(at["output_tokens"] / width), _s(at["prompt_tokens"] / width), str(int(at["finished"])),
            _s(at["running_s"] / busy), str(int(waiting[i])), _s(at["kv_s"] / busy), str(int(at["n_passes"])),
            _s(at["busy_s"]), _s(at["decode_s"]), _s(at["prefill_s"]), _s(batch), _s(load[0]), _s(load[1]),
        )  # fmt: skip


LATENCY_HEADER = ("", "mean", "90% of the mean", "p50", "p90", "p95", "p99", "90% of p99")


def latency_rows(r: ServeResult) -> list[tuple[str, ...]]:
    """Latencies in milliseconds, columns as in `LATENCY_HEADER`."""
    rows = []
    for name, label in (
        ("ttft_s", "TTFT"),
        ("tpot_s", "TPOT"),
        ("itl_s", "ITL"),
        ("e2e_s", "end to end"),
        ("queue_s", "queue"),
    ):
        d = getattr(r, name)
        shown = ["-" if v is None else f"{v * 1e3:.1f}" for v in (d.mean, d.p50, d.p90, d.p95, d.p99)]
        mean, high = (_ends(r, f"{name}.{measure}", 1e3, ".1f") for measure in ("mean", "p99"))
        rows.append((f"{label} (ms)", shown[0], mean, *shown[1:], high))
    return rows


def rate_rows(r: ServeResult) -> list[tuple[str, str]]:
    """Rates, use and cost, with 90% intervals."""
    rows = [
        ("requests/s", _with_ends(r, "requests_per_s", ".3g")),
        ("output tokens/s", _with_ends(r, "output_tokens_per_s", ".4g")),
        ("output tokens/s per device", _with_ends(r, "output_tokens_per_s_per_device", ".4g")),
        ("goodput, requests/s", _with_ends(r, "goodput_requests_per_s", ".3g")),
        ("good requests", _with_ends(r, "good_frac", ".1%")),
        ("mean running / waiting", f"{r.mean_running:.1f} / {r.mean_waiting:.1f}"),
        ("mean decode batch", f"{r.mean_decode_batch:.1f}"), ("peak KV use", f"{r.peak_kv_frac:.1%} of {r.kv_blocks} blocks"),
        ("preemptions", str(r.preemptions)), ("prompt tokens found cached", _or_dash(r.prefix_hit_frac, ".1%")),
        ("experts hit per layer and decode pass", _or_dash(r.experts_hit, ".1f")),
        ("USD per million output tokens", _with_ends(r, "usd_per_million_output_tokens", ".3g")),
        ("J per request", _with_ends(r, "energy_j_per_request", ".4g")),
    ]  # fmt: skip
    for name, interval in r.intervals.items():
        if interval.half_width is not None:
            rows.append((f"{name} over seeds", f"{interval.mean:.4g} ± {interval.half_width:.2g}"))
    return rows


def summary_lines(r: ServeResult) -> list[str]:
    """What was served, how it went and what stands behind it, in sentences."""
    counts = f"{r.finished} finished + {r.rejected} rejected + {r.in_flight} in flight"
    return [
        r.stability,
        *(note for note in r.notes if note != r.stability),
        f"{r.deployment} on {plural(r.n_devices, 'device')} ({r.scenario.hardware}); times from {r.cost_source}",
        f"{r.submitted} requests submitted = {counts}",
        f"90% intervals: from {r.interval_basis}" if r.intervals_90 else "assumption only: no intervals",
    ]


def summary_text(r: ServeResult) -> str:
    """The run in a page of Markdown."""
    lines = [f"# {r.scenario.title}", "", *(f"- {line}" for line in summary_lines(r)), ""]
    lines += ["| " + " | ".join(LATENCY_HEADER).lstrip() + " |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    lines += ["| " + " | ".join(row) + " |" for row in latency_rows(r)]
    lines += ["", "| | |", "|---|---:|", *(f"| {k} | {v} |" for k, v in rate_rows(r))]
    return "\n".join(lines) + "\n"


def _ends(r: ServeResult, name: str, factor: float, shape: str) -> str:
    ends = r.intervals_90.get(name)
    return "-" if ends is None else f"[{ends[0] * factor:{shape}}, {ends[1] * factor:{shape}}]"


def _with_ends(r: ServeResult, name: str, shape: str) -> str:
    """A result with its 90% interval."""
    text, ends = _or_dash(getattr(r, name), shape), _ends(r, name, 1.0, shape)
    return text if ends == "-" else f"{text} {ends}"


def _or_dash(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)


def _table(stream: TextIO, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)


def _s(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"
