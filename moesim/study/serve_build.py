"""From a serve scenario to engines: costs, KV blocks, policies, replicas, pools."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CalibratedOps, CostModel
from moesim.cost.measured_links import SimpleLink, link_of
from moesim.errors import InputError
from moesim.memory import check_memory
from moesim.memory.count import Serving, kv_bytes_per_sequence, stage_layers
from moesim.sim.serving.cluster import Transfer
from moesim.sim.serving.cost import PassCost
from moesim.sim.serving.engine import Overheads
from moesim.sim.serving.rank import Limits
from moesim.specs.catalog import load_hardware
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import DpPrefill, ParallelSpec
from moesim.specs.scenario import SystemKind
from moesim.specs.serving import ServeScenarioSpec
from moesim.study.calibrated import calibration_for
from moesim.study.instance import Instance, build_instance
from moesim.study.operator_tables import find_tables, read_tables
from moesim.study.resolve import resolve_model
from moesim.study.serve_cost import CostLimits, analytic_cost, send_seconds, table_cost
from moesim.study.serve_deployment import Deployment, Pool
from moesim.study.serve_host import overheads_of

__all__ = ["Deployment", "Pool", "build_deployment"]

#: Contexts that lookups reach where the model names no limit.
LONGEST_CONTEXT = 131072


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
    if scenario.system.dp_prefill is DpPrefill.TOGETHER and scenario.system.parallel.dp_size > 1 and split is None:
        raise InputError("is a bound that no engine reaches", field="system.dp_prefill", value="together",
                         allowed="lockstep, balanced")  # fmt: skip
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
