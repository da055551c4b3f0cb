"""What a run finds, as plain frozen records that go to ``results.json`` and come back.

`SCHEMA_VERSION` grows when a field changes its meaning or goes away. Nothing here depends on the clock or the machine: the same
scenario, seed and version give the same bytes.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from moesim.specs.base import Frozen, Origin
from moesim.specs.scenario import Basis, FlipAxis, ScenarioSpec, SystemKind
from moesim.study.uncertainty import Spread

__all__ = [
    "SCHEMA_VERSION",
    "AlternativeRow",
    "AwaitedRow",
    "Comparison",
    "ExpertLoad",
    "FlipCurve",
    "GapSplit",
    "InputOrigin",
    "MemoryResult",
    "OperatorRow",
    "PathSample",
    "PhaseDetail",
    "Point",
    "QualitySensitivity",
    "RankDetail",
    "RunResult",
    "SystemResult",
]

SCHEMA_VERSION = 2


class Point(Frozen):
    """One system at one concurrency (requests in flight on the whole hardware).

    `ttft_s` is a request's own prefill and the waits of steady state before it (docs/results-schema.md, Point), not that for
    admission; `tpot_s` the mean gap between output tokens with prefills of other requests in between, `decode_step_s` without
    them. Rates are of the whole hardware unless named otherwise. All None where `outcome` is not "ok", but for
    `memory_bytes_per_device`, the demand. `intervals` holds the 90% interval of each result by its name (none: assumption only),
    `interval_basis` what stands behind them; `error_frac` is the half-width of that of `tpot_s`, as a fraction.
    """

    concurrency: int
    outcome: str
    reason: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    decode_step_s: float | None = None
    output_tokens_per_s: float | None = None
    output_tokens_per_s_per_device: float | None = None
    output_tokens_per_s_per_user: float | None = None
    energy_j_per_output_token: float | None = None
    usd_per_million_output_tokens: float | None = None
    weight_bytes_read_per_step: float | None = None
    memory_bytes_per_device: float | None = None
    exposed_comm_frac: float | None = None
    error_frac: float | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    interval_basis: str = "assumption only"
    origin: Origin = Origin.ASSUMPTION

    def spread(self, name: str) -> Spread | None:
        """The interval of a result as a spread of its logarithm; None where only assumptions stand behind it."""
        value, ends = getattr(self, name), self.intervals.get(name)
        if not value or ends is None:
            return None
        return Spread(math.log(value / ends[0]), math.log(ends[1] / value))


class MemoryResult(Frozen):
    """Projected memory of the fullest rank at the largest concurrency, by purpose, against capacity."""

    outcome: str
    sentence: str
    remedies: tuple[str, ...] = ()
    capacity_bytes: float
    weights_bytes: dict[str, float]
    kv_cache_bytes: float
    activation_bytes: float
    comm_buffer_bytes: float
    runtime_reserve_bytes: float
    total_bytes: float
    kv_bytes_per_token: float
    kv_capacity_tokens: float
    max_sequences: int
    at_concurrency: int


class OperatorRow(Frozen):
    """An operator of a pass on the rank that everyone waits for, over all layers of its segment.

    `arithmetic` names the peak of the device that its products could reach, such as ``fp8``.
    """

    name: str
    group: str
    segment: str
    n_repeat: int
    time_s: float
    hidden_s: float
    bound: Literal["compute", "memory", "link", "latency"]
    flops: float
    moved_bytes: float
    origin: Origin
    error_frac: float | None = None
    is_extrapolated: bool = False
    arithmetic: str | None = None


class GapSplit(Frozen):
    """From a perfectly balanced closed form to the simulated pass, step by step; the parts add up to the difference.

    `imbalance_s`: the drawn load instead of the balanced one. `contention_s`: the simulation instead of the closed form, with
    overlap off (waits for ports and for data that arrives late, less what early senders gain). `overlap_s`: what running shared
    experts beside the dispatch saves (negative) if the system overlaps.
    """

    balanced_s: float
    imbalance_s: float
    contention_s: float
    overlap_s: float
    simulated_s: float
    waits_s: dict[str, float]
    n_holds: int


class AwaitedRow(Frozen):
    """A rank that others waited for: idle time of their engines, mean over all ranks, in how many layers, and what made it late.

    Reasons: groups of operators of which it had more than the mean rank, ``traffic`` for bytes, ``engine`` and ``link`` where
    those are slowed.
    """

    rank: int
    wait_s: float
    n_layers: int
    reasons_s: dict[str, float]


class RankDetail(Frozen):
    """Who waits where and for whom in a simulated pass, and what is in use how much of it; four significant digits.

    A row is the mean over `n_ranks_per_row` neighbouring ranks. `wait_s`, [rows][layers], is time in which an engine stands idle
    for others. `idle_s` is all its idle time by cause, [rows] each, own transfers too; with `engine_frac` of the pass it adds up
    to the pass. `queue_s` is what micro-batches waited while the engine worked. `out_port_frac` and `in_port_frac` are time in
    which transfers run, `up_` and `nic_` bytes over what scale-up ports and NIC could carry at their rated bandwidth; empty
    without such a port. `awaited` are the ranks most waited for, `trace_ranks` those with spans in the trace (empty: all).
    """

    n_ranks: int
    n_ranks_per_row: int
    layers: tuple[int, ...]
    wait_s: tuple[tuple[float, ...], ...]
    out_port_frac: tuple[float, ...]
    in_port_frac: tuple[float, ...]
    engine_frac: tuple[float, ...]
    idle_s: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    queue_s: tuple[float, ...] = ()
    up_out_frac: tuple[float, ...] = ()
    up_in_frac: tuple[float, ...] = ()
    nic_out_frac: tuple[float, ...] = ()
    nic_in_frac: tuple[float, ...] = ()
    awaited: tuple[AwaitedRow, ...] = ()
    trace_ranks: tuple[int, ...] = ()


class AlternativeRow(Frozen):
    """A simulated pass with one thing changed (the first row: with nothing changed), under the same seed.

    `speedup` is the time of the first row over this one's. `exposed_comm_s` and `slower_wait_s` as in `PhaseDetail`; the other
    times are means per rank.
    """

    name: str
    note: str
    time_s: float
    speedup: float
    exposed_comm_s: float
    hidden_comm_s: float
    wait_s: float
    slower_wait_s: float = 0.0


class PhaseDetail(Frozen):
    """One pass in detail: a prefill or decode at the concurrency named.

    `exposed_comm_s` is time in which the rank that the pass waits for computes nothing because of communication, `slower_wait_s`
    what the mean rank waits for slower ones beside that. `ranks` and `what_if` are there for the reference system's decode and
    full prefill if they were simulated on several ranks.
    """

    phase: Literal["prefill", "decode"]
    concurrency: int
    n_tokens: float
    context: float
    time_s: float
    imbalance_s: float
    exposed_comm_s: float
    hidden_comm_s: float
    slower_wait_s: float = 0.0
    mfu: float
    mbu: float
    operators: tuple[OperatorRow, ...]
    gap: GapSplit | None = None
    ranks: RankDetail | None = None
    what_if: tuple[AlternativeRow, ...] = ()


class ExpertLoad(Frozen):
    """Tokens per expert of one decode pass: `counts` is [MoE layers][experts]; `rank_counts` is [MoE layers][expert ranks]."""

    layers: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    rank_counts: tuple[tuple[float, ...], ...]
    expert_imbalance_ratio: tuple[float, ...]
    rank_imbalance_ratio: tuple[float, ...]
    experts_hit: tuple[float, ...]
    source: str


class PathSample(Frozen):
    """The way of a few tokens: for each token, `experts` is [MoE layers][top-k] and `ranks` the expert ranks that hold them.

    `home_ranks` are the devices on which the tokens start; expert rank r lies on devices from r `n_devices_per_expert` on.
    `batches` is the micro-batch of each. With `is_of_pass` the experts are ones to which the home rank sends tokens in the pass
    shown; `replaced_frac` of the router's choices did not fit its counts and were drawn from them.
    """

    layers: tuple[int, ...]
    experts: tuple[tuple[tuple[int, ...], ...], ...]
    ranks: tuple[tuple[tuple[int, ...], ...], ...]
    n_possible_paths_log10: float
    home_ranks: tuple[int, ...] = ()
    n_devices_per_expert: int = 1
    batches: tuple[int, ...] = ()
    is_of_pass: bool = False
    replaced_frac: float = 0.0


class SystemResult(Frozen):
    """All about one system. `basis` tells how a dense twin was made; `named` for the scenario's own systems.

    `details` are a decode and a prefill of one prompt; `full_prefill` is one with prompts on all attention-DP ranks, simulated.
    `no_full_prefill` says why it is absent where one would be meant.
    """

    name: str
    kind: SystemKind
    basis: Basis
    model: str
    hf_id: str | None = None
    n_params: float
    n_active_params: float
    n_experts: int | None = None
    top_k: int | None = None
    n_members: int = 1
    parallel: str
    n_ranks_per_instance: int
    n_instances: int
    weight_dtypes: dict[str, str]
    routing: str | None = None
    memory: MemoryResult
    points: tuple[Point, ...]
    details: tuple[PhaseDetail, ...] = ()
    full_prefill: PhaseDetail | None = None
    no_full_prefill: str | None = None
    expert_load: ExpertLoad | None = None
    paths: PathSample | None = None
    notes: tuple[str, ...] = ()

    @property
    def passes(self) -> tuple[tuple[str, PhaseDetail], ...]:
        """All passes that are known in detail, with their names: ``decode``, ``prefill``, ``full prefill``."""
        full = () if self.full_prefill is None else (("full prefill", self.full_prefill),)
        return (*((detail.phase, detail) for detail in self.details), *full)


class Comparison(Frozen):
    """The reference system against one other, at one concurrency; above 1 the reference is better.

    Ratios of costs are other / reference, `throughput_ratio` is reference / other, `memory_ratio` is weight bytes per rank,
    other / reference. `intervals` holds the 90% interval of each ratio by its name; none: assumption only.
    """

    reference: str
    other: str
    basis: Basis
    concurrency: int
    ttft_ratio: float | None
    tpot_ratio: float | None
    throughput_ratio: float | None
    energy_ratio: float | None
    usd_ratio: float | None
    memory_ratio: float
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    verdict: str
    why: str


class FlipCurve(Frozen):
    """How the cost ratio other / reference runs along one axis, and where it crosses 1.

    `x` are values of the axis, `usd_ratio` and `tpot_ratio` the ratios there (None where either does not fit), with the ends of
    their 90% intervals (None: assumption only). `crossings` are axis values with the verdict below and above them.
    """

    reference: str
    other: str
    axis: FlipAxis
    unit: str
    x: tuple[float, ...]
    usd_ratio: tuple[float | None, ...]
    tpot_ratio: tuple[float | None, ...]
    usd_ratio_low: tuple[float | None, ...] = ()
    usd_ratio_high: tuple[float | None, ...] = ()
    tpot_ratio_low: tuple[float | None, ...] = ()
    tpot_ratio_high: tuple[float | None, ...] = ()
    crossings: tuple[float, ...]
    summary: str


class QualitySensitivity(Frozen):
    """The verdict under each rule for equal quality: dense parameters said to be as good, and the dollar ratio against them."""

    rule: str
    dense_params: float
    usd_ratio: float | None
    tpot_ratio: float | None
    usd_ratio_low: float | None = None
    usd_ratio_high: float | None = None
    verdict: str


class InputOrigin(Frozen):
    """An input of the run with where it comes from."""

    what: str
    value: str
    origin: Origin
    source: str


class RunResult(Frozen):
    """Everything that `report` needs; written as ``results.json``."""

    schema_version: int = SCHEMA_VERSION
    moesim_version: str
    scenario: ScenarioSpec
    scenario_name: str
    engine: str
    seed: int
    hardware_name: str
    device_name: str
    n_devices: int
    scale_up_domain_size: int
    peak_flop_per_s: dict[str, float]
    memory_bytes_per_s: float
    device_memory_bytes: float
    price_usd_per_device_h: float | None
    calibration: str
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    flips: tuple[FlipCurve, ...] = ()
    quality: tuple[QualitySensitivity, ...] = ()
    inputs: tuple[InputOrigin, ...]
    headline: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
