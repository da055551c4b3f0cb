"""What a plan is asked: a model, hardware to choose from, requests, and goals."""

from __future__ import annotations

from pydantic import Field

from moesim.specs.base import Count, Flag, Fraction, Frozen, Natural, Number
from moesim.specs.dtypes import Dtype
from moesim.specs.parallel import DpPrefill
from moesim.specs.routing import RoutingSpec
from moesim.specs.workload import WorkloadSpec

__all__ = ["PlanSpec"]


class PlanSpec(Frozen):
    """The question. Goals are means per request; a goal of None is always met.

    `n_devices` is the most that may be used; `max_batch` and `max_pass_tokens` are per attention-DP rank, as engines count.
    `headroom_frac` of the capacity is kept free where a plan is sized for `rate_per_s` and in prefill pools: Poisson arrivals
    queue without end at full load (assumption: 10%). `dp_prefill` as in a scenario's systems.
    """

    model: str
    hardware: tuple[str, ...] = Field(min_length=1)
    n_devices: Count
    input_tokens: Count
    output_tokens: Count
    ttft_s: Number | None = Field(default=None, gt=0)
    tpot_s: Number | None = Field(default=None, gt=0)
    rate_per_s: Number | None = Field(default=None, gt=0)
    max_pass_tokens: Count = 8192
    max_batch: Count = 1024
    headroom_frac: Fraction = 0.1
    disaggregated: Flag = True
    routing: RoutingSpec | None = None
    weight_dtype: Dtype | None = None
    kv_dtype: Dtype | None = None
    calibration: str | None = None
    dp_prefill: DpPrefill | None = None
    n_confirm: Natural = 3
    seed: Natural = 0

    @property
    def workload(self) -> WorkloadSpec:
        """The requests."""
        return WorkloadSpec(
            input_tokens=self.input_tokens, output_tokens=self.output_tokens, max_pass_tokens=self.max_pass_tokens
        )
