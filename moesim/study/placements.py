"""One question about placement, several tables: the price of imbalance, re-placement, copies, co-activation, node limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from moesim.cost import CostModel
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.routing import Placement, RouterModel
from moesim.routing.window import WindowPolicy
from moesim.routing.window_drift import DriftKind, domain_schedule, drifting_counts, related_domains
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.specs.scenario import Engine
from moesim.study.calibrated import calibration_for
from moesim.study.instance import Instance, build_instance
from moesim.study.placement import (
    COUPLING_NOTE,
    locality_study,
    node_limit_study,
    replica_study,
    rows_of,
    window_study,
)
from moesim.study.single import hardware_for
from moesim.study.skew import only_moe_block, price_of_skew

__all__ = ["PlacementQuestion", "PlacementTable", "Study", "placement_tables"]


#: Told what is done, and which share of all.
Tell = Callable[[str, float], None]


class Study(StrEnum):
    """What can be asked of a placement."""

    PRICE = "price"
    WINDOW = "window"
    COPIES = "copies"
    LOCALITY = "locality"
    LIMITS = "limits"


@dataclass(frozen=True, slots=True)
class PlacementQuestion:
    """A model's experts over `ep_size` ranks, attention data-parallel over them.

    `routers` and `redundant` are compared by `price`; the other studies take the first router and the most slots. A pass has
    `batch_per_rank` sequences per rank, at `context` (decode) or of `context` tokens (prefill). `periods_steps` are windows, and
    steps between two re-placements, of `n_steps` steps of a load that drifts between `n_domains` domains.
    """

    model: ModelSpec
    hardware: str
    ep_size: int
    routers: tuple[RoutingSpec, ...]
    redundant: tuple[int, ...] = (0,)
    phase: Phase = Phase.DECODE
    batch_per_rank: int = 128
    context: int = 4096
    engine: Engine = Engine.ANALYTIC
    overlap: bool = False
    calibration: str | None = None
    drift: DriftKind = DriftKind.CYCLE
    n_domains: int = 4
    n_steps: int = 400
    periods_steps: tuple[int, ...] = (10, 50, 200)
    n_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model.moe_ffn is None:
            raise InputError("needs a model with experts", field="model", value=self.model.name)
        if not self.routers or not self.redundant or not self.periods_steps:
            raise InputError("needs at least one router, number of redundant slots and period", field="routing")


@dataclass(frozen=True, slots=True)
class PlacementTable:
    """One study's rows, flat and in SI units, and what they rest on."""

    study: Study
    title: str
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ground:
    """What all studies but the price share: the split with most slots, its first router, and the pass."""

    question: PlacementQuestion
    instance: Instance
    router: RouterModel
    placement: Placement
    n_group: int

    @property
    def domain_size(self) -> int:
        return self.instance.hardware.scale_up_domain_size

    @property
    def step(self) -> Pass:
        q = self.question
        n = q.batch_per_rank * q.ep_size
        return (
            self.instance.decode_pass(n, q.context)
            if q.phase is Phase.DECODE
            else Pass(q.phase, float(n), float(q.context), 0.0)
        )

    def rng(self, n: int) -> np.random.Generator:
        return np.random.default_rng([self.question.seed, n])


def placement_tables(
    question: PlacementQuestion, studies: Sequence[Study] | None = None, tell: Tell = lambda what, done: None
) -> tuple[PlacementTable, ...]:  # fmt: skip
    """Answer some studies; by default all that apply (copies need redundant slots, limits groups of experts).

    Args:
        question: what is asked.
        studies: which; all that apply by default.
        tell: told what is done and which share of all.

    Raises:
        InputError: a study that does not apply, or a model or split that does not fit.
    """
    wanted = tuple(dict.fromkeys(studies)) if studies is not None else _applying(question)
    ground = _ground(question) if set(wanted) - {Study.PRICE} else None
    tables = []
    for i, study in enumerate(wanted):
        tell(study.value, i / len(wanted))
        tables.append(_price(question) if ground is None or study is Study.PRICE else _STUDIES[study](ground))
    tell("done", 1.0)
    return tuple(tables)


def _applying(q: PlacementQuestion) -> tuple[Study, ...]:
    ffn = only_moe_block(q.model)
    without = {Study.COPIES} if max(q.redundant) == 0 else set()
    return tuple(s for s in Study if s not in without and (s is not Study.LIMITS or ffn.n_group > 1))


def _ground(q: PlacementQuestion) -> _Ground:
    ffn, extra = only_moe_block(q.model), max(q.redundant)
    extra = -(-(ffn.n_routed_experts + extra) // q.ep_size) * q.ep_size - ffn.n_routed_experts
    split = ParallelSpec(dp_size=q.ep_size, ep_size=q.ep_size, redundant_experts=extra)
    routing = q.routers[0].model_copy(update={"placement": PlacementSpec(kind=PlacementKind.EPLB)})
    hardware = hardware_for(q.hardware, q.ep_size)
    cost = CostModel.of(hardware, calibration_for(q.calibration, hardware.device.name))
    instance = build_instance(q.model, split, hardware, routing, cost=cost, rng=np.random.default_rng(q.seed))
    routed = instance.routed
    if routed is None:
        raise InputError("needs a model with experts", field="model", value=q.model.name)
    router, placement = next(iter(routed.routers.values())), next(iter(routed.placements.values()))
    return _Ground(q, instance, router, placement, ffn.n_group)


def _price(q: PlacementQuestion) -> PlacementTable:
    found = price_of_skew(
        q.model, q.hardware, skews=q.routers, ep_sizes=(q.ep_size,), redundant=q.redundant,
        placements=(PlacementKind.CONTIGUOUS, PlacementKind.EPLB), phase=q.phase, batch_per_rank=q.batch_per_rank,
        context=q.context, engine=q.engine, overlap=q.overlap, calibration=q.calibration, seed=q.seed,
        family=RouterFamily.LOGNORMAL,
    )  # fmt: skip
    notes = [f"costs from {found.calibration}", *found.assumptions[:2]]
    if {point.n_redundant for point in found.points} - set(q.redundant):
        notes.append(f"slots rounded up to a multiple of {q.ep_size} ranks")
    return PlacementTable(
        Study.PRICE,
        "What imbalance costs, against the same pass perfectly balanced",
        tuple(found.to_rows()),
        tuple(notes),
    )


def _window(g: _Ground) -> PlacementTable:
    q, rng = g.question, g.rng(1)
    router = g.router if len(g.router.weights) > 1 else related_domains(g.router, q.n_domains, 0.1, rng)
    n_domains = len(router.weights)
    shares = domain_schedule(q.drift, q.n_steps, n_domains, max(1.0, 2.0 * q.n_steps), rng)
    counts = drifting_counts(router, shares, round(float(g.step.n_tokens)), rng)
    nodes = max(1, q.ep_size // g.domain_size)
    groups = g.n_group if nodes > 1 and g.n_group % nodes == 0 else 1
    never = WindowPolicy(
        q.ep_size, g.placement.n_slots, None, None, n_nodes=nodes if groups > 1 else 1, n_group=groups,
        domain_size=min(g.domain_size, q.ep_size),
    )  # fmt: skip
    policies = [never, *(replace(never, window_steps=n, period_steps=n) for n in q.periods_steps)]
    shortest = min(q.periods_steps)
    policies.append(replace(never, window_steps=shortest, period_steps=shortest, min_gain_frac=0.1))
    start = min(max(q.periods_steps), q.n_steps // 2)
    rows = rows_of(window_study(g.instance, counts, g.step, policies, from_step=start))
    for row, policy in zip(rows, policies, strict=True):
        row["min_gain_frac"] = policy.min_gain_frac
    notes = [f"{q.n_steps} steps, load {q.drift.value} over {n_domains} domains, figures from step {start} on",
             "a move is not overlapped: an upper bound"]  # fmt: skip
    if len(g.router.weights) == 1:
        notes.append("domains whose hot experts agree with correlation 0.1: assumption")
    return PlacementTable(
        Study.WINDOW, "Placing experts again every n steps, by what the last n steps showed", tuple(rows), tuple(notes)
    )


def _copies(g: _Ground) -> PlacementTable:
    if g.placement.n_slots == g.router.n_experts:
        raise InputError("needs redundant slots", field="redundant", value=0, hint="--redundant 32")
    chosen = g.router.sample_tokens(g.question.n_tokens, g.rng(2))
    rows = rows_of(replica_study(chosen, g.placement, g.domain_size))
    notes = (
        f"{g.question.n_tokens} tokens dealt to all ranks; copies per token and layer",
        "least_loaded knows the pass beforehand: a bound",
    )
    return PlacementTable(Study.COPIES, "Which copy of an expert serves a token", tuple(rows), notes)


def _locality(g: _Ground) -> PlacementTable:
    n = g.question.n_tokens // 2
    seen, unseen = (g.router.sample_tokens(n, g.rng(i)) for i in (3, 4))
    is_trace = g.question.routers[0].family is RouterFamily.TRACE
    note = "paths recorded" if is_trace else COUPLING_NOTE
    rows = rows_of(locality_study(seen, unseen, g.router.n_experts, g.question.ep_size, g.domain_size, note=note))
    notes = (note, f"placed by {n} tokens, judged on {n} others; crossings of a domain per token and layer, both ways",
             "home fixed: attention-DP; moving: a token stays where its experts were")  # fmt: skip
    return PlacementTable(Study.LOCALITY, "Experts that are chosen together on one domain", tuple(rows), notes)


def _limits(g: _Ground) -> PlacementTable:
    rows = rows_of(
        node_limit_study(
            g.router,
            g.question.ep_size,
            g.domain_size,
            g.question.n_tokens,
            g.rng(5),
            n_redundant=g.placement.n_slots - g.router.n_experts,
        )
    )
    notes = ("popularity stays as it is when the limit changes: assumption", "balanced: EPLB without regard to groups")
    return PlacementTable(Study.LIMITS, "Groups of experts that a token may use", tuple(rows), notes)


_STUDIES: dict[Study, Callable[[_Ground], PlacementTable]] = {
    Study.WINDOW: _window, Study.COPIES: _copies, Study.LOCALITY: _locality, Study.LIMITS: _limits,
}  # fmt: skip
