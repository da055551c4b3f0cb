"""A sweep file: a base scenario, the fields to vary, what stays fixed while they do, and what to make of the answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import Field, model_validator

from moesim.specs.base import Count, Flag, Frozen, Natural, Number

__all__ = [
    "AxisSpec",
    "ConstraintKind",
    "ConstraintSpec",
    "LawSpec",
    "LogRange",
    "Question",
    "Range",
    "ReportSpec",
    "SampleAxis",
    "SampleSpec",
    "SolvedBy",
    "SweepEngine",
    "SweepSpec",
]

MOST_VALUES = 1_000_000
Scalar = bool | int | float | str | None


class SweepEngine(StrEnum):
    """How a case is answered: closed form, token-flow simulation of passes, or the serving simulation."""

    ANALYTIC = "analytic"
    FLOW = "flow"
    SERVING = "serving"


class Range(Frozen):
    """start, start + step, ... up to and including stop."""

    start: Number | int
    stop: Number | int
    step: Number | int = 1

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.step <= 0:
            raise ValueError("step: must be more than 0")
        if self.stop < self.start:
            raise ValueError("stop: must be no less than start")
        if (self.stop - self.start) / self.step > MOST_VALUES:
            raise ValueError(f"step: gives more than {MOST_VALUES} values")
        return self


class LogRange(Frozen):
    """`n` values from start to stop at equal ratios; `whole` rounds them to whole numbers and drops repeats."""

    start: float = Field(gt=0)
    stop: float = Field(gt=0)
    n: int = Field(ge=2, le=MOST_VALUES, strict=True)
    whole: Flag = False

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.stop <= self.start:
            raise ValueError("stop: must be more than start")
        return self


class SampleAxis(Frozen):
    """One dimension of a low-discrepancy sample: from `low` to `high` (in equal ratios if `log`), or one of `values`."""

    path: str = Field(min_length=1)
    low: float | None = None
    high: float | None = None
    log: Flag = False
    whole: Flag = False
    values: tuple[Any, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _bounds_or_values(self) -> Self:
        bounded = self.low is not None and self.high is not None
        if bounded == (self.values is not None):
            raise ValueError("values: give either values or both low and high")
        if self.low is not None and self.high is not None and (self.high <= self.low or (self.log and self.low <= 0)):
            raise ValueError("high: must be more than low, and both above 0 with log")
        return self


class SampleSpec(Frozen):
    """`n` points of a scrambled Sobol sequence over several fields at once."""

    n: int = Field(ge=1, le=MOST_VALUES, strict=True)
    seed: Natural = 0
    over: tuple[SampleAxis, ...] = Field(min_length=1)


class AxisSpec(Frozen):
    """One axis: a path with values, a range or a log range; several paths that move together; or a sample.

    Axes are crossed with each other; the paths inside `zip` have equally many values and advance in step.
    """

    path: str | None = None
    values: tuple[Any, ...] | None = None
    range: Range | None = None
    log_range: LogRange | None = None
    zip: tuple[AxisSpec, ...] | None = Field(default=None, min_length=2)
    sample: SampleSpec | None = None
    label: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [name for name in ("values", "range", "log_range") if getattr(self, name) is not None]
        if self.zip is not None or self.sample is not None:
            if self.path is not None or forms or (self.zip is not None and self.sample is not None):
                raise ValueError("zip: an axis is either a path with values, a zip or a sample")
            for inner in self.zip or ():
                if inner.zip is not None or inner.sample is not None:
                    raise ValueError("zip: holds paths with values only")
            return self
        if self.path is None:
            raise ValueError("path: an axis needs one (or a zip, or a sample)")
        if len(forms) != 1:
            raise ValueError("values: an axis needs exactly one of values, range and log_range")
        if self.values is not None and not self.values:
            raise ValueError("values: is empty; an axis needs at least one value")
        return self


class ConstraintKind(StrEnum):
    """What is held equal over all cases, so that they can be compared."""

    TOTAL_PARAMS = "fixed_total_params"
    ACTIVE_PARAMS = "fixed_active_params"
    TRAINING_COMPUTE = "fixed_training_compute"
    MEMORY = "fixed_memory"


class SolvedBy(StrEnum):
    """The field that gives way."""

    EXPERT_WIDTH = "moe_intermediate_size"
    N_EXPERTS = "n_routed_experts"
    TOP_K = "num_experts_per_tok"
    CONCURRENCY = "concurrency"
    TRAIN_TOKENS = "train_tokens"


_SOLVES = {
    ConstraintKind.TOTAL_PARAMS: (SolvedBy.EXPERT_WIDTH, SolvedBy.N_EXPERTS),
    ConstraintKind.ACTIVE_PARAMS: (SolvedBy.EXPERT_WIDTH, SolvedBy.TOP_K),
    ConstraintKind.TRAINING_COMPUTE: (SolvedBy.TRAIN_TOKENS,),
    ConstraintKind.MEMORY: (SolvedBy.CONCURRENCY, SolvedBy.EXPERT_WIDTH, SolvedBy.N_EXPERTS),
}


class ConstraintSpec(Frozen):
    """One quantity that every case must meet.

    `value` is parameters, flops of training, or bytes: of one rank's memory where concurrency gives way (default: all of it), of
    all weights otherwise; by default what the base has. `by` gives way, in whole multiples of `multiple_of`; a case that misses
    the value by more than `tolerance_frac` is infeasible.
    """

    kind: ConstraintKind
    value: Number | None = Field(default=None, gt=0)
    by: SolvedBy | None = None
    multiple_of: Count | None = None
    tolerance_frac: Number = Field(default=0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _can_solve(self) -> Self:
        fits = _SOLVES[self.kind]
        if self.by is not None and self.by not in fits:
            raise ValueError(f"by: {self.kind.value} is met by {' or '.join(f.value for f in fits)}")
        if self.kind is ConstraintKind.TRAINING_COMPUTE and self.value is None:
            raise ValueError("value: fixed_training_compute needs the flops")
        return self

    @property
    def solved_by(self) -> SolvedBy:
        """The field that gives way, the kind's own by default."""
        return self.by if self.by is not None else _SOLVES[self.kind][0]


class LawSpec(Frozen):
    """Scaling laws that predict a loss for each case from its training tokens; `other` is reported beside `name`.

    `clark_2022_hoffmann_2022`, `clark_2022_besiroglu_2024` or `joint_2025`.
    """

    name: str = "clark_2022_hoffmann_2022"
    other: str | None = None


class Question(StrEnum):
    """What the report answers."""

    BEST = "best"
    BREAK_EVEN = "break_even"
    TRAINING = "training"


class ReportSpec(Frozen):
    """What the report shows: `objective` is a result column, minimised unless `maximise`; `heat` names two axes' paths.

    `condition` names axes that are not chosen but met, such as requests in flight: cases are compared with those of the same
    values only. `pareto` names two columns, both better when larger unless prefixed with ``-``.
    """

    question: Question = Question.BEST
    objective: str = "usd_per_million_output_tokens"
    maximise: Flag = False
    condition: str | tuple[str, ...] | None = None
    heat: tuple[str, str] | None = None
    pareto: tuple[str, str] = ("output_tokens_per_s_per_user", "output_tokens_per_s_per_device")


class SweepSpec(Frozen):
    """A whole sweep.

    Args:
        base: a shipped scenario's name, a file, or a scenario inline (a serve scenario with engine serving).
        system: the base's system that axes without ``systems.N`` mean and that is measured; its reference by default.
        against: another system of the base that is measured beside it, or the basis of a dense twin of each case (equal_active,
            equal_total, equal_memory, equal_quality); results hold ratios other / measured.
    """

    title: str = Field(min_length=1)
    description: str = ""
    base: str | dict[str, Any]
    system: str | None = None
    against: str | None = None
    axes: tuple[AxisSpec, ...] = Field(min_length=1)
    constraints: tuple[ConstraintSpec, ...] = ()
    law: LawSpec | None = None
    engine: SweepEngine = SweepEngine.ANALYTIC
    seed: Natural = 0
    report: ReportSpec = ReportSpec()
    is_assumption: Flag = False

    @model_validator(mode="after")
    def _kinds_once(self) -> Self:
        solved = [c.solved_by for c in self.constraints]
        if len(set(solved)) != len(solved):
            raise ValueError("constraints: two of them are met by the same field; set by: on one of them")
        return self
