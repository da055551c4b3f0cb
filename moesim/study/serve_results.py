"""What ``moesim serve`` finds, as plain frozen records that go to ``results.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moesim.specs.base import Frozen
from moesim.specs.serving import ServeScenarioSpec

__all__ = ["SERVE_SCHEMA_VERSION", "Interval", "LatencyResult", "ServeResult"]

SERVE_SCHEMA_VERSION = 1


class LatencyResult(Frozen):
    """Mean and percentiles in seconds; None where nothing was seen."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class Interval(Frozen):
    """Mean over seeds and the half-width of its 95% confidence interval (Student's t)."""

    mean: float
    half_width: float | None


class ServeResult(Frozen):
    """One serve scenario. Rates are of the whole deployment; `outcome` is "ok", "unstable" or "interrupted".

    `intervals` are of chance alone, over seeds; `intervals_90` hold the 90% interval of each result by its name
    (``ttft_s.mean``), errors of the stack included, and `interval_basis` what stands behind them (none: assumption only).
    """

    kind: Literal["serve"] = "serve"
    schema_version: Literal[1] = 1
    moesim_version: str
    scenario: ServeScenarioSpec
    scenario_name: str
    seed: int
    outcome: str
    stability: str
    sustainable_requests_per_s: float | None
    offered_requests_per_s: float | None
    cost_source: str
    routing: str | None
    n_devices: int
    deployment: str
    kv_blocks: int
    submitted: int
    finished: int
    rejected: int
    in_flight: int
    rejections: dict[str, int]
    preemptions: int
    prefix_hit_frac: float | None
    duration_s: float
    ttft_s: LatencyResult
    tpot_s: LatencyResult
    itl_s: LatencyResult
    e2e_s: LatencyResult
    queue_s: LatencyResult
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    output_tokens_per_s_per_device: float
    goodput_requests_per_s: float
    good_frac: float | None
    mean_running: float
    mean_waiting: float
    mean_decode_batch: float
    peak_kv_frac: float
    busy_frac: float
    n_passes: int
    experts_hit: float | None
    rank_imbalance: float | None
    energy_j_per_request: float | None
    energy_j_per_million_output_tokens: float | None
    usd_per_request: float | None
    usd_per_million_output_tokens: float | None
    intervals: dict[str, Interval] = Field(default_factory=dict)
    intervals_90: dict[str, tuple[float, float]] = Field(default_factory=dict)
    interval_basis: str = "assumption only"
    notes: tuple[str, ...] = ()
