"""From a serve scenario to engines: costs, KV blocks, policies, replicas, pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CalibratedOps, CostModel
from moesim.cost.measured_links import SimpleLink, link_of
from moesim.cost.served import stack_of
from moesim.cost.stack import StackParams
from moesim.errors import InputError
from moesim.memory import check_memory
from moesim.memory.count import Serving, kv_bytes_per_sequence, stage_layers
from moesim.sim.serving.cluster import Cluster, Replica, RouterKind, Transfer
from moesim.sim.serving.cost import PassCost
from moesim.sim.serving.engine import Engine, Overheads
from moesim.sim.serving.kv import BlockPool
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.pipeline import Pipeline, Stages
from moesim.sim.serving.policies import POLICIES
from moesim.sim.serving.rank import Limits, Rank, Speculation
from moesim.specs.catalog import load_hardware
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import SystemKind
from moesim.specs.serving import ServeScenarioSpec
from moesim.study.calibrated import basis_of, calibration_for
from moesim.study.instance import Instance, build_instance
from moesim.study.operator_tables import find_tables, read_tables
from moesim.study.resolve import resolve_model
from moesim.study.serve_cost import CostLimits, analytic_cost, send_seconds, table_cost
from moesim.study.serve_host import overheads_of
from moesim.study.uncertainty import Basis, Exposure, exposure_of

__all__ = ["Deployment", "Pool", "build_deployment"]

#: Half-width of the 90% interval of times from layer tables: TTFT, TPOT and end-to-end of two logs were within 5%
#: (docs/serving.md), other models and hosts may be farther off (assumption).
LAYERS_WIDTH = 0.1
#: Context of the pass whose exposure stands for all.
TYPICAL_CONTEXT = 2048
#: Contexts that lookups reach where the model names no limit.
LONGEST_CONTEXT = 131072


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas alike: how many, their split, cost, KV blocks per attention-DP rank; with stages, seconds of a send by tokens."""

    n: int
    parallel: ParallelSpec
    cost: PassCost
    kv_blocks: int
    send_s: NDArray[np.float64] | None = None
    instance: Instance | None = None

    @property
    def n_engines(self) -> int:
        """Engines that schedule passes: one per pipeline stage of a replica."""
        return self.n * self.parallel.pp_size


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything that stays the same from seed to seed."""

    scenario: ServeScenarioSpec
    hardware: Hardware
    model: ModelSpec
    limits: Limits
    overheads: Overheads
    main: Pool
    decode: Pool | None
    transfer: Transfer | None
    cost_source: str
    routing: str | None

    @property
    def n_devices(self) -> int:
        """Devices in use."""
        pools = [self.main] + ([self.decode] if self.decode else [])
        return sum(pool.n * pool.parallel.n_ranks for pool in pools)

    @property
    def stack(self) -> StackParams | None:
        """Fitted parameters of the serving stack, None without."""
        instance = self.main.instance
        return None if instance is None else stack_of(instance.cost.calibration)

    @property
    def basis(self) -> Basis:
        """What stands behind its times; layer tables are kernels of the very stack."""
        if self.scenario.operator_tables is not None:
            return Basis.KERNELS
        instance = (self.decode or self.main).instance
        return Basis.ASSUMPTION if instance is None else basis_of(instance.cost.calibration)

    def exposure(self, batch: float) -> Exposure:
        """How a decode pass of `batch` sequences is exposed to errors."""
        pool = self.decode or self.main
        if self.scenario.operator_tables is not None or pool.instance is None:
            return Exposure(kernels=LAYERS_WIDTH)
        context = float(min(self.limits.max_model_len or TYPICAL_CONTEXT, TYPICAL_CONTEXT))
        step = pool.instance.decode_pass(batch, context)
        return exposure_of(pool.instance.analytic(step).estimate, is_wide=pool.instance.is_wide)

    @property
    def label(self) -> str:
        """Short text such as ``2 x TP2`` or ``prefill 1 x TP2, decode 3 x TP1``."""
        main = f"{self.main.n} x {self.main.parallel.label}"
        if self.decode is None:
            return main
        return f"prefill {main}, decode {self.decode.n} x {self.decode.parallel.label}"

    def cluster(self, recorder: Recorder, rng: np.random.Generator, *, jump: bool = True) -> Cluster:
        """Fresh engines on a fresh clock."""
        serving = self.scenario.serving
        router = RouterKind(serving.router.value)
        cluster = Cluster(recorder, router, self.overheads.request_s, self.limits.max_model_len)
        finish = cluster.prefilled if self.decode is not None else cluster.finished
        for i in range(self.main.n):
            cluster.engines.append(
                self._replica(cluster, self.main, recorder, finish(i), rng, jump, hand_over=self.decode is not None)
            )
        if self.decode is not None:
            for i in range(self.decode.n):
                cluster.decoders.append(self._replica(cluster, self.decode, recorder, cluster.finished(i), rng, jump))
            cluster.transfer, cluster.link_free_s = self.transfer, [0.0] * self.main.n
        return cluster

    def _replica(
        self, cluster: Cluster, pool: Pool, recorder: Recorder, done: Callable[..., None], rng: np.random.Generator,
        jump: bool, *, hand_over: bool = False,
    ) -> Replica:  # fmt: skip
        """An engine, or one per pipeline stage that share the stages, the sequences and the KV blocks."""
        n = pool.parallel.pp_size
        if n == 1 or pool.send_s is None:
            return self._engine(cluster, pool, recorder, done, rng, jump, hand_over=hand_over)
        n_layers = len(self.model.layers)
        shares = tuple(len(stage) / n_layers for stage in stage_layers(n_layers, n))
        stages = Stages(shares, pool.send_s, self.overheads.host_s)
        part = replace(pool, kv_blocks=pool.kv_blocks // n)
        return Pipeline([
            self._engine(cluster, part, recorder, done, rng, jump, hand_over=hand_over, stages=stages) for _ in range(n)
        ])  # fmt: skip

    def _engine(
        self, cluster: Cluster, pool: Pool, recorder: Recorder, done: Callable[..., None], rng: np.random.Generator,
        jump: bool, *, hand_over: bool = False, stages: Stages | None = None,
    ) -> Engine:  # fmt: skip
        s = self.scenario.serving
        spec = s.speculation
        speculation = Speculation(spec.n_draft_tokens, spec.acceptance_frac) if spec is not None else None
        n_lanes = 1 if stages is None else pool.parallel.pp_size
        limits = replace(self.limits, max_num_seqs=-(-self.limits.max_num_seqs // n_lanes))
        ranks = [
            Rank(BlockPool(pool.kv_blocks, s.scheduler.block_size, caching=s.scheduler.prefix_caching), limits, speculation,
                 rng.spawn(1)[0])
            for _ in range(pool.parallel.dp_size)
        ]  # fmt: skip
        policy = POLICIES[s.scheduler.policy.value](
            overlapped=s.scheduler.asynchronous and stages is None, poll_passes=s.scheduler.poll_passes,
            balance_passes=s.scheduler.balance_passes, fill_passes=s.scheduler.fill_passes, fill_frac=s.scheduler.fill_frac,
        )  # fmt: skip
        return Engine(
            cluster.env,
            ranks,
            policy,
            pool.cost,
            self.overheads,
            recorder,
            jump=jump,
            hand_over=hand_over,
            on_finished=done,
            stages=stages,
        )


def build_deployment(scenario: ServeScenarioSpec, seed: int) -> Deployment:
    """Costs, memory and limits of a scenario.

    Raises:
        InputError: anything that does not fit together, with the field.
    """
    serving, spec = scenario.serving, scenario.system
    hardware = load_hardware(scenario.hardware, scenario.n_devices)
    model = resolve_model(spec)
    _check(scenario, model)
    longest = model.max_position_embeddings
    max_len = serving.scheduler.max_model_len
    if max_len is not None and longest is not None and max_len > longest:
        raise InputError("is beyond the model's context", field="serving.scheduler.max_model_len", value=max_len,
                         allowed=f"up to {longest}")  # fmt: skip
    limits = Limits(serving.scheduler.max_num_seqs, serving.scheduler.max_num_batched_tokens, max_len or longest,
                    serving.scheduler.chunked_prefill)  # fmt: skip
    build = _Builder(scenario, hardware, model, limits, seed)
    split = serving.disaggregation
    if split is None:
        main, decode, transfer = build.pool(serving.replicas, spec.parallel), None, None
    else:
        main = build.pool(split.n_prefill, split.prefill_parallel or spec.parallel)
        decode = build.pool(split.n_decode, split.decode_parallel or spec.parallel)
        transfer = build.transfer()
    o = serving.overheads.model_dump()
    is_hidden = serving.scheduler.asynchronous and all(p.parallel.pp_size == 1 for p in (main, decode) if p is not None)
    fitted = overheads_of(build.calibration, is_hidden=is_hidden)
    overheads = Overheads(**{name: getattr(fitted, name) if value is None else value for name, value in o.items()})
    deployment = Deployment(
        scenario, hardware, model, limits, overheads, main, decode, transfer, build.source, build.routing
    )
    if deployment.n_devices > hardware.n_devices:
        raise InputError(
            f"{deployment.label} needs {deployment.n_devices} devices", field="n_devices", value=hardware.n_devices,
            hint="use larger hardware, fewer replicas or a smaller split",
        )  # fmt: skip
    return deployment


def _check(scenario: ServeScenarioSpec, model: ModelSpec) -> None:
    kind = scenario.system.kind
    if kind is SystemKind.ENSEMBLE:
        raise InputError("serves one model", field="system.kind", value=kind.value, allowed="dense or moe")
    if (kind is SystemKind.MOE) != model.is_moe:
        has = "has experts" if model.is_moe else "is dense"
        raise InputError(
            f"{has}, but the system's kind is {kind.value!r}", field="system.model", value=scenario.system.model
        )
    split = scenario.serving.disaggregation
    for parallel in (scenario.system.parallel, *((split.prefill_parallel, split.decode_parallel) if split else ())):
        if parallel is not None and parallel.cp_size > 1:
            raise InputError("is not modelled by serve", field="system.parallel", value=parallel.label,
                             allowed="tp_size, dp_size, ep_size, pp_size")  # fmt: skip
        if parallel is not None and parallel.pp_size > 1 and scenario.operator_tables is not None:
            raise InputError("has no sends between pipeline stages", field="operator_tables", value=parallel.label,
                             hint="leave operator_tables out, or use pp_size 1")  # fmt: skip


class _Builder:
    """Pools of one scenario; equal splits share their cost."""

    def __init__(
        self, scenario: ServeScenarioSpec, hardware: Hardware, model: ModelSpec, limits: Limits, seed: int
    ) -> None:
        self.scenario, self.hardware, self.model, self.limits, self.seed = scenario, hardware, model, limits, seed
        self.made: dict[ParallelSpec, tuple[PassCost, int, NDArray[np.float64] | None, Instance]] = {}
        self.source = ""
        self.calibration: CalibratedOps | None = None
        self.routing: str | None = None

    def pool(self, n: int, parallel: ParallelSpec) -> Pool:
        """`n` engines with a split."""
        if parallel.n_ranks > self.hardware.n_devices:
            raise InputError(
                f"{parallel.label} needs {parallel.n_ranks} devices", field="system.parallel", value=self.hardware.n_devices,
                hint="use larger hardware or a smaller split",
            )  # fmt: skip
        if parallel not in self.made:
            instance = self._instance(parallel)
            send_s = send_seconds(instance, self._most_tokens()) if parallel.pp_size > 1 else None
            self.made[parallel] = (self._cost(instance), self._kv_blocks(parallel), send_s, instance)
        return Pool(n, parallel, *self.made[parallel])

    def _instance(self, parallel: ParallelSpec) -> Instance:
        spec = self.scenario.system
        used = self.hardware.with_n_devices(parallel.n_ranks)
        calibration = None
        if self.scenario.operator_tables is None:
            prefer = self.scenario.serving.scheduler.policy.value
            calibration = calibration_for(self.scenario.calibration, self.hardware.device.name, prefer)
        self.calibration = calibration
        instance = build_instance(
            self.model, parallel, self.hardware, spec.routing, cost=CostModel.of(used, calibration), overlap=spec.overlap,
            rng=np.random.default_rng([self.seed, 3]),
        )  # fmt: skip
        if instance.routed is not None:
            self.routing = next(iter(instance.routed.routers.values())).source
        self.source = calibration.name if calibration is not None else "default efficiencies (assumption)"
        return instance

    def _cost(self, instance: Instance) -> PassCost:
        serving, scheduler = self.scenario.serving, self.scenario.serving.scheduler
        spec = serving.speculation
        limits = CostLimits(
            max_tokens=scheduler.max_num_batched_tokens, max_seqs=scheduler.max_num_seqs, graph_tokens=scheduler.graph_tokens,
            max_context=min(self.limits.max_model_len or LONGEST_CONTEXT, LONGEST_CONTEXT),
            tokens_per_decode=1 + (spec.n_draft_tokens if spec else 0), draft_cost_frac=spec.draft_cost_frac if spec else 0.0,
            seed=self.seed,
        )  # fmt: skip
        if self.scenario.operator_tables is None:
            return analytic_cost(instance, limits)
        names = tuple(n for n in (self.model.hf_id, self.model.name, self.scenario.system.model) if n)
        tables = read_tables(find_tables(self.scenario.operator_tables, names, instance.parallel.tp_size))
        link = link_of(self.hardware)
        if serving.link is not None:
            link = SimpleLink(serving.link.bandwidth, serving.link.latency_s, "the scenario")
        self.source = tables.source + (f"; links: {link.source}" if instance.parallel.n_ranks > 1 else "")
        return table_cost(tables, self.model, instance.parallel, link, instance.routed, limits)

    def _most_tokens(self) -> int:
        """Tokens of a rank's largest pass."""
        scheduler, spec = self.scenario.serving.scheduler, self.scenario.serving.speculation
        return max(
            scheduler.max_num_batched_tokens, scheduler.max_num_seqs * (1 + (spec.n_draft_tokens if spec else 0))
        )

    def _kv_blocks(self, parallel: ParallelSpec) -> int:
        serving, scheduler = self.scenario.serving, self.scenario.serving.scheduler
        if scheduler.kv_blocks is not None:
            return scheduler.kv_blocks
        context = float(min(self.limits.max_model_len or 8192, 8192))
        stages = stage_layers(len(self.model.layers), parallel.pp_size)
        per_token = max(kv_bytes_per_sequence(self.model, parallel, context, stage) for stage in stages) / context
        capacity = self.hardware.device.memory_bytes * scheduler.memory_frac
        report = check_memory(
            self.model,
            parallel,
            Serving(float(parallel.dp_size), context, float(scheduler.max_num_batched_tokens)),
            capacity,
        )
        free = capacity - report.memory.without_kv if serving.kv_cache_bytes is None else serving.kv_cache_bytes
        n_blocks = int(free / (per_token * scheduler.block_size)) if per_token > 0 else 10**9
        if n_blocks < 1:
            raise InputError(
                f"{self.model.name} leaves no memory for a KV cache: {report.sentence}", field="system.parallel",
                value=parallel.label, hint="use more devices per instance or a narrower weight_dtype",
            )  # fmt: skip
        return n_blocks

    def transfer(self) -> Transfer:
        """KV from prefill to decode engines: all layers' bytes of a token, over the fabric."""
        split = self.scenario.serving.disaggregation
        hardware = self.hardware
        link = hardware.scale_out if hardware.n_devices > hardware.scale_up_domain_size else hardware.scale_up
        rate = split.bandwidth if split is not None else None
        latency = split.latency_s if split is not None else None
        if rate is None:
            if link is None:
                raise InputError(
                    "no link between prefill and decode is known", field="serving.disaggregation.bandwidth"
                )
            rate = link.bytes_per_s * 0.85
        if latency is None:
            latency = link.latency_s if link is not None else 0.0
        per_token = kv_bytes_per_sequence(self.model, ParallelSpec(), 4096.0) / 4096.0
        return Transfer(per_token, rate, latency)
