"""One instance of a model on its ranks: passes timed by the closed form or the token-flow simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moesim.analytic import StepEstimate, estimate
from moesim.cost import CostModel
from moesim.cost.served import stack_of
from moesim.lowering import MoeLoad, Pass, Routed, expert_layout, lower, route_model
from moesim.lowering.route import Counts
from moesim.memory import MemoryReport, Serving, check_memory
from moesim.ops import Phase, Program
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.halves import HalvedCounts, halved, split_pass
from moesim.study.kernels import as_run

if TYPE_CHECKING:
    from moesim.sim import FlowResult

__all__ = ["Instance", "PassTime", "build_instance"]


@dataclass(frozen=True, slots=True)
class PassTime:
    """A pass as one of the engines sees it; `estimate` explains it in closed form under the same load."""

    time_s: float
    estimate: StepEstimate
    flow: FlowResult | None = None
    program: Program | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """A model split over `parallel.n_ranks` devices of `hardware`, with its router and the cost of its operators."""

    model: ModelSpec
    parallel: ParallelSpec
    hardware: Hardware
    cost: CostModel
    routed: Routed | None
    overlap: Overlap = Overlap.NONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "overlap", Overlap.of(self.overlap))

    @property
    def is_wide(self) -> bool:
        """Whether its ranks span scale-up domains."""
        return self.parallel.n_ranks > self.hardware.scale_up_domain_size

    def balanced(self) -> Instance:
        """The same instance with perfectly even routing."""
        if self.routed is None:
            return self
        even = route_model(self.model, RoutingSpec(family=RouterFamily.BALANCED), ParallelSpec())
        return replace(self, routed=replace(even, placements=self.routed.placements))

    def program(
        self, step: Pass, counts: Counts | None = None, *, overlap: Overlap | bool | None = None, pairs: bool = False
    ) -> Program:
        """Lower a pass, under the expected load or a drawn one.

        Args:
            step: the pass.
            counts: what `draw` gave for it.
            overlap: instead of the instance's own.
            pairs: keep the bytes of every pair of ranks (needs `counts`).
        """
        mode = self.overlap if overlap is None else Overlap.of(overlap)
        whole = self._lower(step, counts, bool(mode), pairs)
        halves = split_pass(step, self.parallel.dp_size) if mode is Overlap.TWO_BATCH and self._has_exchanges else None
        if halves is None:
            return whole
        drawn = counts.halves if isinstance(counts, HalvedCounts) else halved(counts, halves)
        batches = tuple(self._lower(half, part, True, pairs) for half, part in zip(halves, drawn, strict=True))
        return replace(whole, micro_batches=batches)

    def _lower(self, step: Pass, counts: Counts | None, shared: bool, pairs: bool) -> Program:
        layout = expert_layout(self.parallel, step.phase, self.hardware.scale_up_domain_size)

        def load_for(ffn: MoeFfn, indices: tuple[int, ...]) -> MoeLoad:
            if self.routed is None:
                raise ValueError("a MoE model needs a router")
            if counts is None:
                return self.routed.expected(ffn, indices, step, layout)
            return self.routed.drawn(ffn, indices, step, layout, counts, pairs=pairs)

        return lower(self.model, self.parallel, step, load_for, overlap=shared)

    @property
    def _has_exchanges(self) -> bool:
        return (
            self.routed is not None and self.parallel.ep_size > 1 and self.parallel.dp_size * self.parallel.cp_size > 1
        )

    def draw(self, step: Pass, rng: np.random.Generator) -> Counts | None:
        """Where every token of the pass goes; None for a dense model. Two micro-batches are drawn one after the other."""
        if self.routed is None:
            return None
        layout = expert_layout(self.parallel, step.phase, self.hardware.scale_up_domain_size)
        halves = split_pass(step, self.parallel.dp_size) if self.overlap is Overlap.TWO_BATCH else None
        if halves is None:
            return self.routed.draw(step, layout, rng)
        return HalvedCounts((self.routed.draw(halves[0], layout, rng), self.routed.draw(halves[1], layout, rng)))

    def analytic(self, step: Pass) -> PassTime:
        """Closed form under the expected load."""
        result = estimate(self.program(step), self.cost)
        return PassTime(result.time_s, result)

    def flow(self, step: Pass, rng: np.random.Generator, *, record: bool = False) -> PassTime:
        """Simulation under one draw of every token's experts."""
        program = self.program(step, self.draw(step, rng))
        from moesim.sim import simulate  # the closed form can do without

        result = simulate(program, self.cost, record=record)
        return PassTime(result.time_s, estimate(program, self.cost), result, program)

    def decode_pass(self, batch: float, context: float) -> Pass:
        """One output token for each of `batch` sequences; pipeline stages work on equal shares of the batch in turn."""
        share = math.ceil(batch / self.parallel.pp_size)
        return Pass(Phase.DECODE, float(share), 1.0, float(max(0.0, context - 1.0)))

    def prefill_passes(self, new_tokens: int, cached_tokens: int, max_pass_tokens: int, batch: int = 1) -> list[Pass]:
        """Chunks of at most `max_pass_tokens` per attention-DP rank for `batch` sequences side by side."""
        per_rank = math.ceil(batch / self.parallel.dp_size)
        chunk = max(1, min(new_tokens, max_pass_tokens // max(1, per_rank)))
        starts = range(0, new_tokens, chunk)
        return [
            Pass(Phase.PREFILL, float(batch), float(min(chunk, new_tokens - start)), float(cached_tokens + start))
            for start in starts
        ]

    def memory(
        self, batch: float, context: float, max_pass_tokens: float, *, n_models: int = 1, explain: bool = True
    ) -> MemoryReport:
        """Projected memory of the fullest rank with `batch` sequences of `context` tokens, beside `n_models` - 1 others."""
        serving = Serving(float(batch), float(context), float(max_pass_tokens), n_models)
        return check_memory(self.model, self.parallel, serving, self.hardware.device.memory_bytes, explain=explain)


def build_instance(
    model: ModelSpec,
    parallel: ParallelSpec,
    hardware: Hardware,
    routing: RoutingSpec | None = None,
    *,
    cost: CostModel | None = None,
    overlap: Overlap | bool = False,
    rng: np.random.Generator | None = None,
) -> Instance:
    """Check the split and build routers and costs; a serving stack's experts get the activations that it runs them with.

    Raises:
        ParallelError: a split that does not divide the model.
        InputError: a routing that does not fit it.
    """
    parallel.check(model)
    used = hardware.with_n_devices(parallel.n_ranks)
    if cost is not None and stack_of(cost.calibration) is not None:
        model = as_run(model, hardware.device.name)
    routed = None
    if model.is_moe:
        routed = route_model(model, routing or RoutingSpec(), parallel, hardware.scale_up_domain_size, rng)
    return Instance(model, parallel, used, cost or CostModel.of(used), routed, Overlap.of(overlap))
