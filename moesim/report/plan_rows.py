"""What a plan's page shows as rows: the deployments that were costed in full, then others that were searched."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.report.cases import Case, Cases, Column
from moesim.study.plan import HardwarePlan, PlanPoint, PlanResult, PlanSpec
from moesim.study.plan.results import Candidate

__all__ = ["PlanRow", "missed", "plan_cases", "plan_rows"]

_COLUMNS = (
    Column("hardware", "hardware", True), Column("split", "split", True), Column("kind", "shown as", True),
    Column("mode", "prefill", True), Column("n_devices", "devices", True), Column("batch", "batch", False),
    Column("ttft_s", "TTFT (ms)", False), Column("tpot_s", "TPOT (ms)", False),
    Column("per_device", "tokens/s per device", False), Column("per_user", "tokens/s per user", False),
    Column("usd", "$/M output tokens", False), Column("error", "interval of TPOT (±%)", False),
    Column("memory", "memory per rank (GB)", False), Column("bottleneck", "mostly", False),
)  # fmt: skip
#: The column that the table begins with.
_SORT = "per_device"


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A deployment of a page; `kind` is what it is shown as, empty for one that was searched and not costed in full."""

    number: int
    hardware: str
    kind: str
    item: PlanPoint | Candidate
    why: str

    @property
    def is_front(self) -> bool:
        """Beaten by none in both throughput and speed per user."""
        return "front" in self.kind

    @property
    def point(self) -> PlanPoint | None:
        """The deployment where it was costed in full."""
        return self.item if isinstance(self.item, PlanPoint) else None

    @property
    def split(self) -> str:
        """Its pools in short."""
        return self.item.label if isinstance(self.item, PlanPoint) else self.item.split

    @property
    def batch(self) -> int:
        """Requests on one decoding instance."""
        return self.item.main.batch if isinstance(self.item, PlanPoint) else self.item.batch

    @property
    def ends(self) -> tuple[float, float] | None:
        """The 90% interval of its TPOT."""
        point = self.point
        if point is None or point.error_frac is None:
            return None
        return point.tpot_s * (1.0 - point.error_frac), point.tpot_s * (1.0 + point.error_frac)


def missed(spec: PlanSpec, ttft_s: float, tpot_s: float) -> str:
    """Which goals are missed and by how much; empty where none is."""
    goals = (("TTFT", ttft_s, spec.ttft_s), ("TPOT", tpot_s, spec.tpot_s))
    return ", ".join(
        f"{name} {value / goal - 1.0:.0%} over {goal * 1e3:g} ms"
        for name, value, goal in goals
        if goal is not None and value > goal
    )


def plan_rows(result: PlanResult) -> list[PlanRow]:
    """Best, least and front of every hardware, then its candidates that are not among them."""
    rows: list[PlanRow] = []
    for plan in result.plans:
        shown = plan.shown
        for kind, point in shown:
            rows.append(_row(result, len(rows), plan, kind, point))
        for other in plan.candidates:
            if not any(_is_same(point, other) for _, point in shown):
                rows.append(_row(result, len(rows), plan, "", other))
    return rows


def _row(result: PlanResult, number: int, plan: HardwarePlan, kind: str, item: PlanPoint | Candidate) -> PlanRow:
    return PlanRow(number, plan.hardware, kind, item, missed(result.spec, item.ttft_s, item.tpot_s))


def _is_same(point: PlanPoint, other: Candidate) -> bool:
    return (point.label, point.mode, point.main.batch) == (other.split, other.mode, other.batch)


def plan_cases(result: PlanResult, rows: list[PlanRow], name: str) -> Cases:
    """The rows for the page's table; a row is good where it meets the goals."""
    n_all = sum(p.n_options for p in result.plans)
    return Cases(
        name=name, columns=_COLUMNS, rows=tuple(Case(r.number, not r.why, _values(r), r.why) for r in rows), n_all=n_all,
        sort=[c.key for c in _COLUMNS].index(_SORT), is_descending=True, noun="deployments", good_words="that meet the goals",
        bad_words="that miss a goal", why_words="goal missed",
        rest="best, least and front were costed in full; of every other split some that none of it beats, by the search's "
        "closed forms", file="points.csv",
    )  # fmt: skip


def _values(row: PlanRow) -> tuple[object, ...]:
    item, point = row.item, row.point
    error = None if point is None or point.error_frac is None else 100.0 * point.error_frac
    bottleneck = None if point is None else f"{point.main.bottleneck.group}, {point.main.bottleneck.bound}"
    return (
        row.hardware, row.split, row.kind or "searched", "in place" if item.mode == "in place" else "own pool", item.n_devices,
        row.batch, item.ttft_s * 1e3, item.tpot_s * 1e3, item.output_tokens_per_s_per_device, 1.0 / item.tpot_s,
        item.usd_per_million_output_tokens, error, None if point is None else point.main.memory_bytes / 1e9, bottleneck,
    )  # fmt: skip
