"""What a serve scenario is served by, the same from seed to seed: pools of replicas, and the engines made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost.served import stack_of
from moesim.cost.stack import StackParams
from moesim.memory.count import stage_layers
from moesim.sim.serving.cluster import Cluster, Replica, RouterKind, Transfer
from moesim.sim.serving.cost import PassCost
from moesim.sim.serving.engine import Engine, Overheads
from moesim.sim.serving.kv import BlockPool
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.pipeline import Pipeline, Stages
from moesim.sim.serving.policies import POLICIES
from moesim.sim.serving.rank import Limits, Rank, Speculation
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import DpPrefill, ParallelSpec
from moesim.specs.serving import PolicyKind, ServeScenarioSpec
from moesim.study.calibrated import basis_of
from moesim.study.instance import Instance
from moesim.study.stepping import BALANCE_PASSES
from moesim.study.uncertainty import Basis, Exposure, exposure_of

__all__ = ["Deployment", "Pool"]

#: Half-width of the 90% interval of times from layer tables: TTFT, TPOT and end-to-end of two logs were within 5%
#: (docs/serving.md), other models and hosts may be farther off (assumption).
LAYERS_WIDTH = 0.1
#: Context of the pass whose exposure stands for all.
TYPICAL_CONTEXT = 2048


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
    def balance_passes(self) -> int:
        """Passes that attention-DP ranks let prompts wait for each other, as asked for or as the system's rule has it."""
        asked, rule = self.scenario.serving.scheduler.balance_passes, self.scenario.system.dp_prefill
        if asked is not None:
            return asked
        is_own = rule is None and self.scenario.serving.scheduler.policy is PolicyKind.TRTLLM
        return BALANCE_PASSES if is_own or rule is DpPrefill.BALANCED else 0

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
            balance_passes=self.balance_passes, fill_passes=s.scheduler.fill_passes, fill_frac=s.scheduler.fill_frac,
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
