"""Expert layers of simulated passes at their expected load: a plan asks about queues and batches, and draws cost seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.analytic import barrier_groups
from moesim.lowering import Pass
from moesim.ops import OpKind, Phase
from moesim.sim.serving.draws import Drawn, ExpertDraws
from moesim.study.instance import Instance
from moesim.study.plan.ground import Ground
from moesim.study.serve_build import Deployment, Pool

__all__ = ["without_draws"]

EXPERT_KINDS = (OpKind.GROUPED_GEMM, OpKind.DISPATCH, OpKind.COMBINE)


def without_draws(deployment: Deployment, ground: Ground) -> Deployment:
    """The same deployment with the fullest rank's expected load in place of drawn ones."""
    if not ground.model.is_moe:
        return deployment
    decode = None if deployment.decode is None else _expected(deployment.decode, ground)
    return replace(deployment, main=_expected(deployment.main, ground), decode=decode)


def _expected(pool: Pool, ground: Ground) -> Pool:
    instance = ground.instance(pool.parallel)
    seed = ground.spec.seed
    n_layers = len(ground.model.moe_layers)
    draws = [ExpertDraws(_Sampler(instance, phase), n_layers, seed) for phase in (Phase.DECODE, Phase.PREFILL)]
    return replace(pool, cost=replace(pool.cost, draws=draws[0], mixed_draws=draws[1]))


class _Sampler:
    """Every draw of T tokens is the expected one; its seconds are found once."""

    __slots__ = ("instance", "known", "phase")

    def __init__(self, instance: Instance, phase: Phase) -> None:
        self.instance, self.phase = instance, phase
        self.known: dict[int, Drawn] = {}

    def __call__(self, tokens: int, rng: np.random.Generator) -> Drawn:
        if tokens not in self.known:
            self.known[tokens] = self._expected(tokens)
        return self.known[tokens]

    def _expected(self, tokens: int) -> Drawn:
        program = self.instance.program(Pass(self.phase, float(tokens), 1.0, 0.0))
        rows: list[tuple[int, float]] = []
        for segment in program.segments:
            experts = [op for op in segment.ops if op.kind in EXPERT_KINDS]
            if not experts:
                continue
            layers = np.zeros(segment.n_repeat)
            for group in barrier_groups(experts, program.n_ranks):
                seconds = sum(
                    np.atleast_2d(np.asarray(self.instance.cost.cost(op).time_s, dtype=float)) for op in group
                )
                layers = layers + np.asarray(seconds).max(axis=-1)
            rows += list(zip(segment.layers, layers.tolist(), strict=True))
        each = np.asarray([seconds for _, seconds in sorted(rows)])
        return Drawn(each, np.ones(len(each)), np.ones(len(each)))
