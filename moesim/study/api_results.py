"""What the public functions return: frozen, with `to_frame()` and a table in notebooks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.study.single import EstimateResult
from moesim.study.tabular import MOST_HTML_ROWS, Row, Tabular, html_table

if TYPE_CHECKING:
    import pandas as pd

    from moesim.calibrate.check import CheckReport
    from moesim.calibrate.profile import ProfileSummary
    from moesim.cost.forms_calibration import Calibration
    from moesim.sim.serving.metrics import Recorder
    from moesim.study.results import RunResult
    from moesim.study.serve_results import ServeResult
    from moesim.study.sweep import SweepResult
    from moesim.timeline import Timeline

__all__ = [
    "CheckTable",
    "Estimate",
    "FittedCalibrations",
    "Profile",
    "ScenarioAnswer",
    "Served",
    "SweepAnswer",
]


class Estimate(EstimateResult, Tabular):
    """One pass; rows are its operators."""

    def rows(self) -> list[Row]:
        """One operator each."""
        return [o.model_dump(mode="json") for o in self.operators]

    def __str__(self) -> str:
        what = f"{self.model} on {self.hardware}, {self.parallel}: {self.phase}, batch {self.batch}, context {self.context}: "
        found = f"{1e3 * self.time_s:.3f} ms, {self.bound} bound" if self.time_s is not None else str(self.reason)
        return what + found

    def _repr_html_(self) -> str:
        return html_table(self.rows(), str(self))


@dataclass(frozen=True, slots=True)
class ScenarioAnswer(Tabular):
    """A scenario's answer; rows are systems at concurrencies. Timelines are None for the closed form."""

    result: RunResult
    timeline: Timeline | None = None
    prefill_timeline: Timeline | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer in words."""
        return self.result.headline

    def rows(self) -> list[Row]:
        """One system at one concurrency each."""
        return [
            {
                "system": s.name,
                "kind": s.kind.value,
                "basis": s.basis.value,
                "model": s.model,
                **p.model_dump(mode="json", exclude={"intervals"}),
                **{f"{name}_low": ends[0] for name, ends in p.intervals.items()},
                **{f"{name}_high": ends[1] for name, ends in p.intervals.items()},
            }
            for s in self.result.systems
            for p in s.points
        ]

    def __str__(self) -> str:
        return "\n".join((self.result.scenario.title, *(f"- {sentence}" for sentence in self.sentences)))

    def _repr_html_(self) -> str:
        return html_table(self.rows(), " ".join(self.sentences))


@dataclass(frozen=True, slots=True)
class Served(Tabular):
    """A serving run: the summary, and the book of requests; rows are the summary's latencies."""

    result: ServeResult
    recorder: Recorder

    def rows(self) -> list[Row]:
        """Mean and percentiles of each latency."""
        names = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")
        found = []
        for name in names:
            row: Row = {"latency": name, **getattr(self.result, name).model_dump()}
            for measure in ("mean", "p99"):
                low, high = self.result.intervals_90.get(f"{name}.{measure}", (None, None))
                row |= {f"{measure}_low": low, f"{measure}_high": high}
            found.append(row)
        return found

    def requests(self) -> pd.DataFrame:
        """One row per request: outcome, tokens, times in seconds."""
        import pandas as pd

        r = self.recorder
        return pd.DataFrame(
            {"outcome": [o.value for o in r.outcomes]}
            | {name: np.asarray(values) for name, values in {**r.counts, **r.times}.items()}
        )

    def __str__(self) -> str:
        r = self.result
        return (
            f"{r.deployment}: {r.requests_per_s:.2f} requests/s, {r.output_tokens_per_s:.0f} output tokens/s, goodput "
            f"{r.goodput_requests_per_s:.2f} requests/s; {r.outcome}"
        )

    def _repr_html_(self) -> str:
        return html_table(self.rows(), str(self))


@dataclass(frozen=True, slots=True)
class SweepAnswer(Tabular):
    """A sweep's answers; rows are its cases, infeasible ones with their reason."""

    result: SweepResult

    def to_frame(self) -> pd.DataFrame:
        """One row per case: identity, settings by path, results."""
        return self.result.to_frame()

    def rows(self) -> list[Row]:
        """One case each."""
        return [{str(k): v for k, v in row.items()} for row in self.to_frame().to_dict("records")]

    def __str__(self) -> str:
        ended = ", ".join(f"{n} {word}" for word, n in self.result.outcomes().items())
        return f"{self.result.name}: {self.result.n_cases} cases ({ended})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        rows: list[dict[str, Any]] = [
            {str(k): v for k, v in r.items()} for r in frame.head(MOST_HTML_ROWS).to_dict("records")
        ]
        return html_table(rows, str(self))


@dataclass(frozen=True, slots=True)
class Profile(Tabular):
    """A profile of this machine; rows are measured points."""

    summary: ProfileSummary

    @property
    def table(self) -> Path:
        """The measured table, ready for `moesim.fit`."""
        return self.summary.table

    def to_frame(self) -> pd.DataFrame:
        """The measured table."""
        import pandas as pd

        return pd.read_csv(self.table)

    def rows(self) -> list[Row]:
        """One measured point each."""
        return [{str(k): v for k, v in row.items()} for row in self.to_frame().to_dict("records")]


@dataclass(frozen=True, slots=True)
class FittedCalibrations(Tabular):
    """Calibrations, one per software stack; rows are families with errors on shapes that the fit did not see.

    `notes` says which families were left out of it, and which to read with care.
    """

    calibrations: tuple[Calibration, ...]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        """One family each; errors are fractions, None where nothing was left out."""
        return [
            {"calibration": c.name, "family": f.key.name, "n_points": f.n_points, "n_shapes": f.n_groups,
             "median_frac": f.held_out.median_frac if f.held_out else None,
             "bias_frac": f.held_out.bias_frac if f.held_out else None,
             "p90_frac": f.held_out.p90_frac if f.held_out else None,
             "coverage_frac": f.held_out.coverage_frac if f.held_out else None}
            for c in self.calibrations
            for f in c.families
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckTable(Tabular):
    """Projected against measured, a row per group."""

    report: CheckReport

    def rows(self) -> list[Row]:
        """One group each; errors are fractions."""
        return [asdict(row) for row in self.report.rows]
