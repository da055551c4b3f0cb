"""What a plan finds, as plain frozen records."""

from __future__ import annotations

from typing import Literal

from moesim.specs.base import Frozen, Origin
from moesim.specs.parallel import ParallelSpec
from moesim.study.plan.spec import PlanSpec
from moesim.study.tabular import Row, Tabular, html_table

__all__ = [
    "Bottleneck",
    "Candidate",
    "Confirmation",
    "EngineFlags",
    "HardwarePlan",
    "NearMiss",
    "PlanPoint",
    "PlanResult",
    "PoolPlan",
]


class Bottleneck(Frozen):
    """The group of operators that takes most of a pool's time, what bounds it, and its share."""

    group: str
    bound: str
    share_frac: float


class PoolPlan(Frozen):
    """Instances alike: `batch` requests at most on each of `n_instances`; memory is of the fullest rank.

    `static_bytes` of it are weights and cache.
    """

    role: Literal["serve", "prefill", "decode"]
    n_instances: int
    parallel: ParallelSpec
    batch: int
    memory_bytes: float
    capacity_bytes: float
    pass_s: float
    busy_frac: float | None
    bottleneck: Bottleneck
    static_bytes: float | None = None

    @property
    def label(self) -> str:
        """Short text such as ``2 x TP8 EP8``."""
        return f"{self.n_instances} x {self.parallel.label}" if self.n_instances > 1 else self.parallel.label

    @property
    def n_devices(self) -> int:
        """Devices of all its instances."""
        return self.n_instances * self.parallel.n_ranks

    @property
    def per_rank(self) -> int:
        """Sequences at most on each attention-DP rank."""
        return -(-self.batch // self.parallel.dp_size)


class EngineFlags(Frozen):
    """Command lines, one per pool, and what they do not say; no command where the engine cannot run the split."""

    commands: tuple[str, ...]
    note: str | None = None


class PlanPoint(Frozen):
    """A deployment. Rates are of the whole of it; `error_frac` is the half-width of the 90% interval of its TPOT.

    It is `n_units` equal groups of pools; `limited_by` says what keeps the batch from growing. `ttft_s` holds `queue_s` and
    `transfer_s`.
    """

    hardware: str
    mode: Literal["in place", "disaggregated"]
    pools: tuple[PoolPlan, ...]
    n_units: int
    n_devices: int
    concurrency: int
    ttft_s: float
    queue_s: float
    transfer_s: float
    tpot_s: float
    requests_per_s: float
    output_tokens_per_s: float
    output_tokens_per_s_per_device: float
    output_tokens_per_s_per_user: float
    usd_per_million_output_tokens: float | None
    usd_per_h: float | None
    error_frac: float | None
    ttft_error_frac: float | None
    origin: Origin
    extrapolated_frac: float
    meets_goals: bool
    limited_by: str
    vllm: EngineFlags
    sglang: EngineFlags

    @property
    def main(self) -> PoolPlan:
        """The pool that decodes."""
        return self.pools[-1]

    @property
    def label(self) -> str:
        """Short text such as ``TP8 EP8`` or ``prefill 2 x TP8, decode DP16 EP16``."""
        if len(self.pools) == 1:
            return self.pools[0].label
        return ", ".join(f"{pool.role} {pool.label}" for pool in self.pools)

    @property
    def design(self) -> tuple[object, ...]:
        """What makes it this deployment, however many equal units of it there are."""
        return tuple((p.role, p.parallel, p.batch, p.n_instances / self.n_units) for p in self.pools)

    def row(self, **first: object) -> Row:
        """One row of a table."""
        main = self.main
        return {
            **first, "hardware": self.hardware, "mode": self.mode, "split": self.label, "n_devices": self.n_devices,
            "concurrency": self.concurrency, "batch": main.batch, "ttft_s": self.ttft_s, "tpot_s": self.tpot_s,
            "requests_per_s": self.requests_per_s, "output_tokens_per_s_per_device": self.output_tokens_per_s_per_device,
            "output_tokens_per_s_per_user": self.output_tokens_per_s_per_user, "error_frac": self.error_frac,
            "usd_per_million_output_tokens": self.usd_per_million_output_tokens, "meets_goals": self.meets_goals,
            "memory_bytes": main.memory_bytes, "capacity_bytes": main.capacity_bytes, "bottleneck": main.bottleneck.group,
            "bound": main.bottleneck.bound, "limited_by": self.limited_by, "origin": self.origin.value,
        }  # fmt: skip


class Candidate(Frozen):
    """A deployment that was searched, by the closed forms between costed batches; not explained, so without an interval."""

    mode: Literal["in place", "disaggregated"]
    split: str
    n_devices: int
    batch: int
    ttft_s: float
    tpot_s: float
    output_tokens_per_s_per_device: float
    usd_per_million_output_tokens: float | None


class NearMiss(Frozen):
    """A split that did not make it, and by how much: a goal missed by `by_frac`, or memory by `gap_bytes` per rank."""

    hardware: str
    split: str
    n_devices: int
    missed: Literal["ttft", "tpot", "memory"]
    value: float
    limit: float
    by_frac: float
    gap_bytes: float | None
    sentence: str


class Confirmation(Frozen):
    """One of the best in the serving simulation; ratios are simulated over closed form. Ranks count from 1."""

    split: str
    load: str
    ttft_s: float | None
    tpot_s: float | None
    output_tokens_per_s_per_device: float | None
    ttft_ratio: float | None
    tpot_ratio: float | None
    throughput_ratio: float | None
    meets_goals: bool | None
    good_frac: float | None
    rank_closed_form: int
    rank_simulated: int | None
    n_requests: int
    note: str | None = None
    batch: int = 0


class HardwarePlan(Frozen):
    """All that was found on one kind of hardware; `best` and `least` are None where nothing meets the goals.

    `candidates` are some of the `n_options` deployments that were searched. `is_met` says whether what is recommended (`least`
    with a rate, else `best`) meets the goals in simulation: False where no simulated plan does, None where it was not simulated.
    """

    hardware: str
    device: str
    n_devices: int
    calibration: str
    price_usd_per_device_h: float | None
    outcome: str
    n_splits: int
    n_too_large: int
    n_options: int
    n_front: int
    best: PlanPoint | None
    least: PlanPoint | None
    front: tuple[PlanPoint, ...]
    near_misses: tuple[NearMiss, ...]
    confirmations: tuple[Confirmation, ...] = ()
    ranking: str | None = None
    candidates: tuple[Candidate, ...] = ()
    is_met: bool | None = None

    def simulated(self, point: PlanPoint) -> Confirmation | None:
        """Its simulation, where it had one."""
        return next((c for c in self.confirmations if (c.split, c.batch) == (point.label, point.main.batch)), None)

    @property
    def shown(self) -> list[tuple[str, PlanPoint]]:
        """Best, least and front, each deployment once with all that it is, such as ``best, front``."""
        found: dict[object, tuple[list[str], PlanPoint]] = {}
        named = [(kind, point) for kind, point in (("best", self.best), ("least", self.least)) if point is not None]
        for kind, point in [*named, *(("front", point) for point in self.front)]:
            found.setdefault(point.design, ([], point))[0].append(kind)
        return [(", ".join(dict.fromkeys(kinds)), point) for kinds, point in found.values()]


class PlanResult(Frozen, Tabular):
    """A plan's answer; `cheapest` names the hardware with the lowest price of what was asked for (None: no prices)."""

    kind: Literal["plan"] = "plan"
    schema_version: Literal[1] = 1
    moesim_version: str
    spec: PlanSpec
    outcome: str
    sentences: tuple[str, ...]
    cheapest: str | None
    plans: tuple[HardwarePlan, ...]

    @property
    def best(self) -> PlanPoint | None:
        """The cheapest hardware's best point; where no price is known, the one with most tokens per second and device."""
        found = [p for p in self.plans if p.best is not None]
        if self.cheapest is not None:
            found = [p for p in found if p.hardware == self.cheapest] or found
        points = [p.best for p in found if p.best is not None]
        return max(points, key=lambda p: p.output_tokens_per_s_per_device, default=None)

    def rows(self) -> list[Row]:
        """Best, least and front of every hardware."""
        rows = []
        for plan in self.plans:
            rows += [point.row(kind=kind) for kind, point in (("best", plan.best), ("least", plan.least)) if point]
            rows += [point.row(kind="front") for point in plan.front]
        return rows

    def _repr_html_(self) -> str:
        return html_table(self.rows(), " ".join(self.sentences))
