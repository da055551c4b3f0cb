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
from moesim.specs.flow import EVEN, N_CHUNKS, Exchange, FlowSpec, Granularity
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.flow_settings import check_settings, lending
from moesim.study.halves import HalvedCounts, halved, split_pass
from moesim.study.kernels import as_run

if TYPE_CHECKING:
    from moesim.sim import FlowOptions, FlowResult

__all__ = ["Instance", "PassTime", "build_instance", "travel"]


@dataclass(frozen=True, slots=True)
class PassTime:
    """A pass as one of the engines sees it; `estimate` explains it in closed form under the same load."""

    time_s: float
    estimate: StepEstimate
    flow: FlowResult | None = None
    program: Program | None = None

    @property
    def exposed_comm_s(self) -> float:
        """Time in which the rank that the pass waits for computes nothing because of communication."""
        return self.estimate.exposed_comm_s if self.flow is None else self.flow.exposed_comm_s

    @property
    def hidden_comm_s(self) -> float:
        """Communication with compute beside it."""
        return self.estimate.hidden_comm_s if self.flow is None else self.flow.hidden_comm_s

    @property
    def slower_wait_s(self) -> float:
        """What the mean rank waits for slower ones; nothing in the closed form, which has one rank."""
        return 0.0 if self.flow is None else self.flow.slower_wait_s


@dataclass(frozen=True, slots=True)
class Instance:
    """A model split over `parallel.n_ranks` devices of `hardware`, with its router and the cost of its operators.

    `settings` say how its passes are simulated, and what is uneven or slow.
    """

    model: ModelSpec
    parallel: ParallelSpec
    hardware: Hardware
    cost: CostModel
    routed: Routed | None
    overlap: Overlap = Overlap.NONE
    settings: FlowSpec = EVEN

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
        mode, step = self.overlap if overlap is None else Overlap.of(overlap), self._as_set(step)
        whole = self._lower(step, counts, bool(mode), pairs)
        halves = split_pass(step, self.parallel.dp_size) if mode is Overlap.TWO_BATCH and self.has_exchanges else None
        if halves is None:
            return whole
        drawn = counts.halves if isinstance(counts, HalvedCounts) else halved(counts, halves)
        batches = tuple(self._lower(half, part, True, pairs) for half, part in zip(halves, drawn, strict=True))
        return replace(whole, micro_batches=batches)

    def _lower(self, step: Pass, counts: Counts | None, shared: bool, pairs: bool) -> Program:
        domain_size = self.hardware.scale_up_domain_size
        layout = expert_layout(self.parallel, step.phase, domain_size, low_latency=step.low_latency)

        def load_for(ffn: MoeFfn, indices: tuple[int, ...]) -> MoeLoad:
            if self.routed is None:
                raise ValueError("a MoE model needs a router")
            if counts is None:
                return self.routed.expected(ffn, indices, step, layout)
            return self.routed.drawn(ffn, indices, step, layout, counts, pairs=pairs)

        return lower(self.model, self.parallel, step, load_for, overlap=shared)

    def _as_set(self, step: Pass) -> Pass:
        """The pass with the kernels of expert exchanges that the settings name."""
        if self.settings.exchange is Exchange.AUTO:
            return step
        return replace(step, low_latency=self.settings.exchange is Exchange.LOW_LATENCY)

    @property
    def has_exchanges(self) -> bool:
        """Whether tokens travel between ranks; without that there is nothing to overlap."""
        return travel(self.model, self.parallel)

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
        program, result = self.simulated(step, self.draw(step, rng), record=record)
        return PassTime(result.time_s, estimate(program, self.cost), result, program)

    def simulated(
        self, step: Pass, counts: Counts | None, *, overlap: Overlap | bool | None = None, record: bool = True
    ) -> tuple[Program, FlowResult]:
        """The program of a pass under a drawn load, and its simulation with the instance's settings."""
        from moesim.sim import simulate  # the closed form can do without

        pairs = counts is not None and self.settings.granularity is not Granularity.RANK
        program = self.program(step, counts, overlap=overlap, pairs=pairs)
        return program, simulate(program, self.cost, record=record, options=self.options(step.phase))

    def options(self, phase: Phase) -> FlowOptions:
        """How passes of a phase are simulated."""
        from moesim.sim import FlowOptions

        s = self.settings
        replayed = bool(s.cuda_graphs) and phase is Phase.DECODE
        launch_s = 0.0 if replayed or s.launch_s is None else s.launch_s
        return FlowOptions(s.granularity, s.slow_ranks, s.slow_links, launch_s, s.n_chunks or N_CHUNKS)

    def padded(self, batch: float) -> float:
        """Sequences that a pass of `batch` costs: attention-DP ranks that share experts run as many tokens as the fullest.

        Source: vLLM pads to it for CUDA graphs (coordinate_batch_across_dp), TensorRT-LLM gives idle ranks dummy requests; the
        serving simulation does the same. Groups whose loads are given have theirs, without padding.
        """
        dp = self.parallel.dp_size
        if dp == 1 or self.routed is None or self.settings.sequences(math.ceil(batch), dp) is not None:
            return float(batch)
        return float(math.ceil(batch / dp) * dp)

    def decode_pass(self, batch: float, context: float) -> Pass:
        """One output token for each of `batch` sequences; pipeline stages work on equal shares of the batch in turn."""
        share = self.padded(math.ceil(batch / self.parallel.pp_size))
        return self.dealt(Pass(Phase.DECODE, float(share), 1.0, float(max(0.0, context - 1.0))))

    def dealt(self, step: Pass) -> Pass:
        """The pass with its sequences, and in decode their contexts, dealt to attention-DP groups as the settings say."""
        groups = self.settings.sequences(round(float(step.batch)), self.parallel.dp_size)
        if groups is None:
            return step
        cached = self.settings.contexts(float(step.cached_tokens), groups) if step.phase is Phase.DECODE else None
        return replace(step, batch=float(sum(groups)), group_batch=groups, group_cached=cached)

    def prefill_passes(self, new_tokens: int, cached_tokens: int, max_pass_tokens: int, batch: int = 1) -> list[Pass]:
        """Chunks of at most `max_pass_tokens` per attention-DP rank for `batch` sequences side by side."""
        whole = Pass(Phase.PREFILL, self.padded(batch), float(new_tokens), float(cached_tokens))
        if batch >= self.parallel.dp_size:  # fewer prompts are on some groups only, whatever the groups' loads
            whole = self.dealt(whole)
        per_rank = math.ceil(batch / self.parallel.dp_size) if whole.group_batch is None else max(whole.group_batch)
        chunk = max(1, min(new_tokens, max_pass_tokens // max(1, per_rank)))
        return [
            replace(whole, new_tokens=float(min(chunk, new_tokens - start)), cached_tokens=float(cached_tokens + start))
            for start in range(0, new_tokens, chunk)
        ]

    def _fullest(self, batch: float, context: float) -> float:
        """Sequences of so many alike groups as hold what the fullest attention-DP group has to."""
        dp = self.parallel.dp_size
        groups = self.settings.sequences(math.ceil(batch), dp)
        if groups is None:
            return float(batch)
        contexts = self.settings.contexts(context, groups) or (context,) * dp
        return max(n * c for n, c in zip(groups, contexts, strict=True)) / context * dp

    def memory(
        self, batch: float, context: float, max_pass_tokens: float, *, n_models: int = 1, explain: bool = True
    ) -> MemoryReport:
        """Projected memory of the fullest rank with `batch` sequences of `context` tokens, beside `n_models` - 1 others."""
        serving = Serving(self._fullest(batch, context), float(context), float(max_pass_tokens), n_models)
        return check_memory(self.model, self.parallel, serving, self.hardware.device.memory_bytes, explain=explain)


def travel(model: ModelSpec, parallel: ParallelSpec) -> bool:
    """Whether a model's tokens travel between the ranks of a split."""
    return model.is_moe and parallel.ep_size > 1 and parallel.dp_size * parallel.cp_size > 1


def build_instance(
    model: ModelSpec,
    parallel: ParallelSpec,
    hardware: Hardware,
    routing: RoutingSpec | None = None,
    *,
    cost: CostModel | None = None,
    overlap: Overlap | bool | str = False,
    settings: FlowSpec = EVEN,
    rng: np.random.Generator | None = None,
) -> Instance:
    """Check the split and build routers and costs; a serving stack's experts get the activations that it runs them with.

    Raises:
        ParallelError: a split that does not divide the model.
        InputError: a routing or settings that do not fit it.
    """
    parallel.check(model)
    used = hardware.with_n_devices(parallel.n_ranks)
    if cost is not None and stack_of(cost.calibration) is not None:
        model = as_run(model, hardware.device.name)
    routed = None
    if model.is_moe:
        routed = route_model(model, routing or RoutingSpec(), parallel, hardware.scale_up_domain_size, rng)
    price = lending(cost or CostModel.of(used), settings.comm_sms)
    used = used.model_copy(update={"fabric": price.hardware.fabric}) if settings.comm_sms is not None else used
    instance = Instance(model, parallel, used, price, routed, Overlap.of(overlap), settings)
    check_settings(settings, parallel, used, has_exchanges=instance.has_exchanges)
    return instance
