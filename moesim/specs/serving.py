"""A serve scenario: what is served where, the requests, the scheduler, and what counts as good."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from moesim.specs.base import Bytes, BytesPerS, Count, Flag, Fraction, Frozen, Natural, Number, Seconds
from moesim.specs.flow import EVEN
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import SystemSpec

__all__ = [
    "ArrivalKind",
    "ArrivalSpec",
    "DisaggregationSpec",
    "LengthKind",
    "LengthSpec",
    "LinkOverride",
    "OverheadSpec",
    "PolicyKind",
    "ReplicaRouter",
    "RequestFileSpec",
    "RequestFormat",
    "SchedulerSpec",
    "ServeScenarioSpec",
    "ServingSpec",
    "SloSpec",
    "SpeculationSpec",
]  # fmt: skip


class PolicyKind(StrEnum):
    """Scheduler policies."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"
    STATIC = "static"


class ArrivalKind(StrEnum):
    """How requests arrive."""

    POISSON = "poisson"
    GAMMA = "gamma"
    DIURNAL = "diurnal"
    UNIFORM = "uniform"
    CLOSED_LOOP = "closed_loop"


class LengthKind(StrEnum):
    """Distributions of token counts."""

    FIXED = "fixed"
    UNIFORM = "uniform"
    LOGNORMAL = "lognormal"
    EMPIRICAL = "empirical"


class RequestFormat(StrEnum):
    """Layouts of request files."""

    AUTO = "auto"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    AZURE_2023 = "azure_2023"
    MOONCAKE = "mooncake"


class ReplicaRouter(StrEnum):
    """How requests are dealt to replicas."""

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"


class ArrivalSpec(Frozen):
    """Arrivals of `n_requests` requests.

    `gamma` draws gaps with coefficient of variation `cv` (1 is Poisson, more is bursty); `diurnal` is Poisson with rate
    rate (1 + amplitude sin(2 pi t / period)); `uniform` has equal gaps; `closed_loop` keeps `concurrency` requests in flight,
    the first of them caught in the middle of their outputs if `staggered`, as in a server that has run for long.
    """

    kind: ArrivalKind = ArrivalKind.POISSON
    n_requests: Count = 1000
    rate_per_s: Number | None = Field(default=None, gt=0)
    cv: Number = Field(default=2.0, gt=0)
    amplitude: Fraction = 0.5
    period_s: Seconds = 86400.0
    concurrency: Count | None = None
    staggered: Flag = False

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        closed = self.kind is ArrivalKind.CLOSED_LOOP
        if closed != (self.concurrency is not None):
            raise ValueError("concurrency: is needed by kind 'closed_loop', and only by it")
        if closed == (self.rate_per_s is not None):
            raise ValueError("rate_per_s: is needed by every kind but 'closed_loop'")
        if self.staggered and not closed:
            raise ValueError("staggered: is of kind 'closed_loop'")
        if self.period_s <= 0:
            raise ValueError("period_s: must be above zero")
        return self


class LengthSpec(Frozen):
    """Tokens of an input or output.

    `fixed` uses `tokens`; `uniform` whole numbers `low`..`high`; `lognormal` has median `median` and `sigma` of the logarithm,
    cut to `low`..`high`; `empirical` draws from `values`.
    """

    kind: LengthKind = LengthKind.FIXED
    tokens: Count | None = None
    low: Count | None = None
    high: Count | None = None
    median: Count | None = None
    sigma: Number | None = Field(default=None, gt=0)
    values: tuple[Count, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        needs = {
            LengthKind.FIXED: ("tokens",), LengthKind.UNIFORM: ("low", "high"), LengthKind.LOGNORMAL: ("median", "sigma"),
            LengthKind.EMPIRICAL: ("values",),
        }[self.kind]  # fmt: skip
        for name in needs:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: is needed by kind {self.kind.value!r}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low: is more than high")
        return self


class RequestFileSpec(Frozen):
    """Requests from a file, or arrivals and lengths that repeat it.

    `rate_per_s` draws Poisson arrivals at that rate instead of the file's own; `limit` takes only the first requests.
    """

    file: str = Field(min_length=1)
    format: RequestFormat = RequestFormat.AUTO
    limit: Count | None = None
    rate_per_s: Number | None = Field(default=None, gt=0)


class SchedulerSpec(Frozen):
    """Scheduler and its limits; defaults are vLLM's for its server.

    `kv_blocks` per attention-DP rank overrides what the memory model finds at `memory_frac` of the device. `cuda_graph_tokens`
    is the largest pass run as a CUDA graph and padded to a captured size: by default min(2 max_num_seqs, 512); 0 is eager.
    New requests are looked at every `poll_passes` passes of decodes (SGLang's scheduler_recv_interval); attention-DP ranks let
    prompts wait for up to `balance_passes` until all have some (TensorRT-LLM's attention_dp_config with enable_balance), by
    default as the system's `dp_prefill` says. Prompts wait for up to `fill_passes` until a pass holds `fill_frac` of its token
    budget (TensorRT-LLM's batch_wait_timeout_iters and batch_wait_max_tokens_ratio).
    """

    policy: PolicyKind = PolicyKind.VLLM
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 8192
    max_model_len: Count | None = None
    chunked_prefill: Flag = True
    prefix_caching: Flag = True
    block_size: Count = 16
    kv_blocks: Count | None = None
    memory_frac: Fraction = 0.9
    asynchronous: Flag = True
    cuda_graph_tokens: Natural | None = None
    poll_passes: Count = 1
    balance_passes: Natural | None = None
    fill_passes: Natural = 0
    fill_frac: Fraction = 0.0

    @property
    def graph_tokens(self) -> int:
        """The largest pass that runs as a CUDA graph."""
        return self.cuda_graph_tokens if self.cuda_graph_tokens is not None else min(2 * self.max_num_seqs, 512)


class SloSpec(Frozen):
    """A request is good if it meets all of these; none given: every finished request is good."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None


class OverheadSpec(Frozen):
    """Host time that operator times leave out; None takes the fitted value (docs/serving.md)."""

    pass_s: Seconds | None = None
    host_s: Seconds | None = None
    prefill_s: Seconds | None = None
    sequence_s: Seconds | None = None
    request_s: Seconds | None = None
    first_pass_s: Seconds | None = None


class LinkOverride(Frozen):
    """Collectives between ranks, which operator tables do not have: latency + bytes through a port / bandwidth."""

    bandwidth: BytesPerS = Field(gt=0)
    latency_s: Seconds = 0.0


class SpeculationSpec(Frozen):
    """Speculative decoding or MTP: draft tokens per step, chance that each is accepted, draft's time over a step's."""

    n_draft_tokens: Count
    acceptance_frac: Fraction
    draft_cost_frac: Fraction = 0.0


class DisaggregationSpec(Frozen):
    """Prefill and decode on instances of their own; a prompt's KV cache travels over the fabric.

    Splits default to the system's; `bandwidth` is per prefill instance and by default the slowest link of the hardware that
    leaves a node, or the scale-up link where there is only one node.
    """

    n_prefill: Count = 1
    n_decode: Count = 1
    prefill_parallel: ParallelSpec | None = None
    decode_parallel: ParallelSpec | None = None
    bandwidth: BytesPerS | None = Field(default=None, gt=0)
    latency_s: Seconds | None = None


class ServingSpec(Frozen):
    """The ``serving:`` block: requests, scheduler, replicas and goals."""

    requests: RequestFileSpec | None = None
    arrivals: ArrivalSpec | None = None
    input: LengthSpec | None = None
    output: LengthSpec | None = None
    shared_prefix_tokens: Natural = 0
    scheduler: SchedulerSpec = SchedulerSpec()
    slo: SloSpec = SloSpec()
    overheads: OverheadSpec = OverheadSpec()
    link: LinkOverride | None = None
    replicas: Count = 1
    router: ReplicaRouter = ReplicaRouter.ROUND_ROBIN
    disaggregation: DisaggregationSpec | None = None
    speculation: SpeculationSpec | None = None
    warmup_requests: Natural = 0
    n_seeds: Count = 1
    kv_cache_bytes: Bytes | None = None

    @model_validator(mode="after")
    def _requests_come_from_somewhere(self) -> Self:
        synthetic = (self.arrivals, self.input, self.output)
        if self.requests is None and self.arrivals is not None and None in (self.input, self.output):
            raise ValueError("input: synthetic arrivals need input and output lengths")
        if self.requests is not None and any(part is not None for part in synthetic[1:]):
            raise ValueError("input: lengths come from the requests file")
        closed = self.arrivals is not None and self.arrivals.kind is ArrivalKind.CLOSED_LOOP
        if self.requests is not None and self.arrivals is not None and not closed:
            raise ValueError("arrivals: with a requests file only 'closed_loop' can replace its arrivals")
        if self.disaggregation is not None and self.replicas != 1:
            raise ValueError("replicas: with disaggregation give n_prefill and n_decode")
        return self


class ServeScenarioSpec(Frozen):
    """A file for ``moesim serve``.

    `operator_tables` is a folder of measured layer times (see docs/serving.md); without it the calibration or the default
    efficiencies give the times of operators.
    """

    title: str = Field(min_length=1)
    description: str = ""
    hardware: str
    n_devices: Count | None = None
    calibration: str | None = None
    operator_tables: str | None = None
    system: SystemSpec
    serving: ServingSpec = ServingSpec()
    seed: Natural = 0
    is_assumption: Flag = False

    @model_validator(mode="after")
    def _closed_form(self) -> Self:
        if self.system.flow != EVEN:
            raise ValueError(
                "system.flow: is known to `moesim run` and `moesim sweep`; serve prices passes in closed form"
            )
        return self
