"""Search: which split, batch and hardware meet the goals at the least cost, and why others do not."""

from __future__ import annotations

from moesim.study.plan.results import (
    Bottleneck,
    Confirmation,
    EngineFlags,
    HardwarePlan,
    NearMiss,
    PlanPoint,
    PlanResult,
    PoolPlan,
)
from moesim.study.plan.run import plan
from moesim.study.plan.spec import PlanSpec

__all__ = [
    "Bottleneck",
    "Confirmation",
    "EngineFlags",
    "HardwarePlan",
    "NearMiss",
    "PlanPoint",
    "PlanResult",
    "PlanSpec",
    "PoolPlan",
    "plan",
]
