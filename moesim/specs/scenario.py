"""A scenario file: hardware, the systems to compare on it, the workload, and the questions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from moesim.specs.base import Count, Flag, Frozen, Natural, Number
from moesim.specs.dtypes import Dtype
from moesim.specs.flow import FlowSpec
from moesim.specs.parallel import DpPrefill, Overlap, ParallelSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.workload import WorkloadSpec

__all__ = ["Basis", "ComparisonSpec", "Engine", "FlipAxis", "QualityRule", "ScenarioSpec", "SystemKind", "SystemSpec"]


class SystemKind(StrEnum):
    """The three ways to spend parameters."""

    DENSE = "dense"
    ENSEMBLE = "ensemble"
    MOE = "moe"


class Basis(StrEnum):
    """What is held equal when a dense twin is made for the MoE; `named` compares the scenario's own systems."""

    NAMED = "named"
    EQUAL_ACTIVE = "equal_active"
    EQUAL_TOTAL = "equal_total"
    EQUAL_MEMORY = "equal_memory"
    EQUAL_QUALITY = "equal_quality"


class QualityRule(StrEnum):
    """How many dense parameters are as good as an MoE."""

    GEOMETRIC_MEAN = "geometric_mean"
    SCALING_LAW = "scaling_law"


class FlipAxis(StrEnum):
    """Inputs along which the verdict is traced."""

    CONCURRENCY = "concurrency"
    CONTEXT = "context"
    N_EXPERTS = "n_experts"
    TOP_K = "top_k"
    LINK_BANDWIDTH = "link_bandwidth"


class Engine(StrEnum):
    """How passes are timed."""

    ANALYTIC = "analytic"
    FLOW = "flow"


def _overlap(value: Any) -> Any:
    """Files may say true and false, as they could before there was a choice."""
    return Overlap.of(value) if isinstance(value, bool) else value


class SystemSpec(Frozen):
    """One system on the scenario's hardware; instances of it fill the devices.

    An ensemble is `n_members` whole models of which a request router picks one per request, `member_skew` the zipf exponent of
    their popularity. `weight_dtype` and `kv_dtype` override the model's own storage. `dp_prefill` says when attention-DP ranks
    take prompts; by default as the calibration's engine does: TensorRT-LLM balanced, others in lockstep.
    """

    name: str = Field(min_length=1, max_length=60)
    kind: SystemKind
    model: str
    parallel: ParallelSpec = ParallelSpec()
    routing: RoutingSpec | None = None
    n_members: Count = 1
    member_skew: Number = Field(default=0.0, ge=0)
    weight_dtype: Dtype | None = None
    kv_dtype: Dtype | None = None
    overlap: Annotated[Overlap, BeforeValidator(_overlap)] = Overlap.NONE
    dp_prefill: DpPrefill | None = None
    flow: FlowSpec = FlowSpec()

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if (self.kind is SystemKind.ENSEMBLE) != (self.n_members > 1):
            raise ValueError("n_members: an ensemble has at least 2 members, other kinds have 1")
        if self.routing is not None and self.kind is not SystemKind.MOE:
            raise ValueError("routing: only a system of kind 'moe' routes tokens")
        return self


class ComparisonSpec(Frozen):
    """What to compare the reference system with, and along which axes to look for the point where the verdict flips."""

    reference: str | None = None
    bases: tuple[Basis, ...] = (Basis.NAMED,)
    quality_rule: QualityRule = QualityRule.GEOMETRIC_MEAN
    flips: tuple[FlipAxis, ...] = ()


class ScenarioSpec(Frozen):
    """Everything a run needs. `n_devices` None takes the whole cluster; `is_assumption` marks a scenario of rumours."""

    title: str = Field(min_length=1)
    description: str = ""
    hardware: str
    n_devices: Count | None = None
    calibration: str | None = None
    systems: tuple[SystemSpec, ...] = Field(min_length=1)
    workload: WorkloadSpec
    comparison: ComparisonSpec = ComparisonSpec()
    engine: Engine = Engine.FLOW
    seed: Natural = 0
    is_assumption: Flag = False

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [system.name for system in self.systems]
        if len(set(names)) != len(names):
            raise ValueError("systems: two systems have the same name")
        reference = self.comparison.reference
        if reference is not None and reference not in names:
            raise ValueError(f"comparison.reference: {reference!r} is none of the systems: {', '.join(names)}")
        return self

    @property
    def reference(self) -> SystemSpec:
        """The system that others are compared with: the named one, else the first MoE, else the first."""
        if self.comparison.reference is not None:
            return next(s for s in self.systems if s.name == self.comparison.reference)
        return next((s for s in self.systems if s.kind is SystemKind.MOE), self.systems[0])
