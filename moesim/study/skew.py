"""The price of imbalance: what skewed experts cost against perfect balance in milliseconds, tokens per second and dollars.

Letters: E experts, K top-k, R expert ranks, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from moesim.analytic import estimate
from moesim.cost import CostModel, usd_per_million_tokens
from moesim.errors import InputError
from moesim.lowering import Pass, Routed, route_model
from moesim.lowering.route import Counts, place_experts
from moesim.memory import Outcome
from moesim.ops import Phase
from moesim.routing import Placement, RouterModel, max_over_mean
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.specs.scenario import Engine
from moesim.study.calibrated import calibration_for
from moesim.study.even import even_counts
from moesim.study.instance import Instance
from moesim.study.single import hardware_for

__all__ = [
    "SkewPoint",
    "SkewStudy",
    "expert_bytes",
    "only_moe_block",
    "placed_instance",
    "price_of_skew",
]

Skew = float | str | RoutingSpec


@dataclass(frozen=True, slots=True)
class SkewPoint:
    """One load on one placement against the same pass with every slot equally loaded. Rates are of the whole instance.

    `rank_imbalance_ratio` is the fullest rank over the mean, mean over layers, under the expected load (drawn loads with engine
    flow); `redundant_bytes_per_rank` is what extra slots cost in memory, `fits` whether the fullest rank still has room.
    """

    skew: float | str
    ep_size: int
    placement: str
    n_redundant: int
    tokens_per_rank: float
    rank_imbalance_ratio: float
    time_s: float
    balanced_time_s: float
    tokens_per_s: float
    balanced_tokens_per_s: float
    usd_per_million_tokens: float | None
    balanced_usd_per_million_tokens: float | None
    redundant_bytes_per_rank: float
    fits: bool

    @property
    def lost_s(self) -> float:
        """Time per pass lost to imbalance."""
        return self.time_s - self.balanced_time_s

    @property
    def lost_tokens_per_s(self) -> float:
        """Rate lost to imbalance."""
        return self.balanced_tokens_per_s - self.tokens_per_s

    @property
    def lost_frac(self) -> float:
        """Share of the balanced rate that is lost."""
        return self.lost_tokens_per_s / self.balanced_tokens_per_s

    @property
    def lost_usd_per_million_tokens(self) -> float | None:
        """Dollars lost to imbalance."""
        if self.usd_per_million_tokens is None or self.balanced_usd_per_million_tokens is None:
            return None
        return self.usd_per_million_tokens - self.balanced_usd_per_million_tokens


@dataclass(frozen=True, slots=True)
class SkewStudy:
    """A sweep and what it rests on."""

    points: tuple[SkewPoint, ...]
    model: str
    hardware: str
    phase: str
    engine: str
    calibration: str
    assumptions: tuple[str, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat record per point."""
        names = ("lost_s", "lost_tokens_per_s", "lost_frac", "lost_usd_per_million_tokens")
        return [{**asdict(p), **{name: getattr(p, name) for name in names}} for p in self.points]


def price_of_skew(
    model: ModelSpec, hardware: str | Hardware, *, skews: Sequence[Skew], ep_sizes: Sequence[int],
    redundant: Sequence[int] = (0,),
    placements: Sequence[PlacementKind] = (PlacementKind.CONTIGUOUS, PlacementKind.EPLB_GLOBAL),
    phase: Phase = Phase.DECODE, batch_per_rank: int = 128, context: int = 4096, cached: int = 0,
    family: RouterFamily = RouterFamily.LOGNORMAL, engine: Engine = Engine.ANALYTIC, n_draws: int = 1, overlap: bool = False,
    calibration: str | None = None, seed: int = 0,
) -> SkewStudy:  # fmt: skip
    """Sweep skew, EP size, redundant slots and placement; attention is data-parallel over the EP ranks.

    Args:
        model: a MoE.
        hardware: cluster by name (each EP size takes its first devices), or itself.
        skews: parameter of `family`, the name of a router preset, or a router's spec.
        ep_sizes: R.
        redundant: slots beyond E; rounded up so that R divides all slots.
        placements: `contiguous` is experts in order (from the start again in redundant slots); `eplb` and `eplb_global` know the
            router's true probabilities, the best a long window can give (`eplb` keeps groups on nodes where nodes divide them).
        phase: a decode step at `context`, or a prefill of `context` tokens per sequence over `cached` ones.
        batch_per_rank: sequences on each rank.
        context: tokens.
        cached: tokens already in the cache (prefill).
        family: of numeric skews.
        engine: closed form of the expected load, or the mean of `n_draws` simulated passes.
        n_draws: with engine flow.
        overlap: two micro-batches interleaved.
        calibration: name or file; the device's own by default.
        seed: who is hot, and the draws.

    Raises:
        InputError: a dense model, or an empty sweep.
        ParallelError: a split that does not fit.
    """
    if model.moe_ffn is None or not (skews and ep_sizes and redundant and placements):
        raise InputError("needs a MoE model and at least one value per axis", field="skews", value=model.name)
    points, known = [], None
    for skew in skews:
        spec = _spec(skew, family)
        label = spec.label if isinstance(skew, RoutingSpec) else skew
        base: Routed | None = None
        for n_ranks in ep_sizes:
            hw = hardware_for(hardware, n_ranks) if isinstance(hardware, str) else hardware.with_n_devices(n_ranks)
            known = calibration_for(calibration, hw.device.name)
            cost = CostModel.of(hw, known)
            base = base or route_model(model, spec, ParallelSpec(), rng=np.random.default_rng(seed))
            for kind in placements:
                for extra in sorted({_fitting(model.moe_ffn.n_routed_experts, r, n_ranks) for r in redundant}):
                    parallel = ParallelSpec(dp_size=n_ranks, ep_size=n_ranks, redundant_experts=extra)
                    mode = Overlap.TWO_BATCH if overlap else Overlap.NONE
                    instance = Instance(model, parallel, hw, cost, base, mode)
                    placed = placed_instance(instance, kind)
                    step = _step(placed, phase, batch_per_rank * n_ranks, context, cached)
                    rng = np.random.default_rng(seed + 1)
                    points.append(_point(placed, kind, label, step, context + cached, engine, n_draws, rng))
    return SkewStudy(
        tuple(points), model.name, hardware if isinstance(hardware, str) else hardware.name, phase.value, engine.value,
        known.name if known else "default efficiencies (assumption)",
        ("balancing knows the router's true probabilities",
         "perfect balance: every slot gets the same tokens, same slots, same engine",
         f"numeric skews: {family.value} popularity (assumption)"),
    )  # fmt: skip


def placed_instance(instance: Instance, how: PlacementKind | Placement) -> Instance:
    """The instance with its experts on `instance.parallel`'s ranks and slots, redundant ones included.

    Raises:
        InputError: a kind of placement that needs more than the router, or one placement for several kinds of MoE layers.
    """
    if instance.routed is None:
        raise InputError("needs a MoE model", field="model", value=instance.model.name)
    routed, parallel = instance.routed, instance.parallel
    placements = {
        key: how if isinstance(how, Placement) else _placed(instance, how, key, router)
        for key, router in routed.routers.items()
    }
    if isinstance(how, Placement) and (len(placements) > 1 or how.n_ranks != parallel.ep_size):
        raise InputError("one placement for all MoE layers, on ep_size ranks", field="placement", value=how.n_ranks)
    return replace(instance, routed=replace(routed, placements=placements))


def _placed(instance: Instance, how: PlacementKind, key: tuple[int, int], router: RouterModel) -> Placement:
    if how is PlacementKind.GIVEN:
        raise InputError(
            "not swept here", field="placement", value=how.value, allowed="contiguous, eplb, locality, ..."
        )
    kind = PlacementKind.TRIVIAL if how is PlacementKind.CONTIGUOUS and instance.parallel.redundant_experts else how
    n_group = max(
        layer.ffn.n_group for layer, _ in instance.model.layer_kinds
        if isinstance(layer.ffn, MoeFfn) and (layer.ffn.n_routed_experts, layer.ffn.num_experts_per_tok) == key
    )  # fmt: skip
    domain = instance.hardware.scale_up_domain_size
    return place_experts(PlacementSpec(kind=kind), router, instance.parallel, domain, n_group, None)


def expert_bytes(model: ModelSpec, ffn: MoeFfn) -> float:
    """Weights of one routed expert of one layer as stored, scales included."""
    return ffn.expert_params(model.hidden_size) * model.storage.routed_experts.bytes_per_element


def only_moe_block(model: ModelSpec) -> MoeFfn:
    """The MoE block of a model whose MoE layers all route over the same experts.

    Raises:
        InputError: a dense model, or one with several kinds of MoE layers.
    """
    kinds = {layer.ffn for layer, _ in model.layer_kinds if isinstance(layer.ffn, MoeFfn)}
    if len(kinds) != 1:
        raise InputError("needs a model with one kind of MoE layer", field="model", value=model.name)
    return kinds.pop()


def _point(
    instance: Instance, kind: PlacementKind, skew: float | str, step: Pass, longest: int, engine: Engine, n_draws: int,
    rng: np.random.Generator,
) -> SkewPoint:  # fmt: skip
    times, ratios = [], []
    for _ in range(n_draws if engine is Engine.FLOW else 1):
        counts = instance.draw(step, rng) if engine is Engine.FLOW else None
        times.append(_time(instance, step, counts, engine))
        ratios.append(_imbalance(instance, counts))
    time_s, even_s = float(np.mean(times)), _time(instance, step, even_counts(instance, step), engine)
    n_tokens, hw, n_ranks = float(step.n_tokens), instance.hardware, instance.parallel.n_ranks
    weight = sum(
        expert_bytes(instance.model, layer.ffn) * n
        for layer, n in instance.model.layer_kinds
        if isinstance(layer.ffn, MoeFfn)
    )
    memory = instance.memory(float(step.batch), longest, n_tokens / n_ranks, explain=False)
    return SkewPoint(
        skew=skew, ep_size=n_ranks, placement=kind.value, n_redundant=instance.parallel.redundant_experts,
        tokens_per_rank=n_tokens / n_ranks, rank_imbalance_ratio=float(np.mean(ratios)), time_s=time_s, balanced_time_s=even_s,
        tokens_per_s=n_tokens / time_s, balanced_tokens_per_s=n_tokens / even_s,
        usd_per_million_tokens=usd_per_million_tokens(hw, n_ranks, n_tokens / time_s),
        balanced_usd_per_million_tokens=usd_per_million_tokens(hw, n_ranks, n_tokens / even_s),
        redundant_bytes_per_rank=weight * instance.parallel.redundant_experts / n_ranks,
        fits=memory.outcome is Outcome.OK,
    )  # fmt: skip


def _time(instance: Instance, step: Pass, counts: Counts | None, engine: Engine) -> float:
    program = instance.program(step, counts)
    if engine is Engine.ANALYTIC:
        return estimate(program, instance.cost).time_s
    from moesim.sim import simulate

    return simulate(program, instance.cost, record=False).time_s


def _imbalance(instance: Instance, counts: Counts | None) -> float:
    """Fullest rank over mean, mean over layers: of drawn counts, or expected."""
    if instance.routed is None:
        return 1.0
    ratios = []
    for key, placement in instance.routed.placements.items():
        load = instance.routed.routers[key].inclusion_probability() if counts is None else counts[key].sum(axis=1)
        ratios.append(max_over_mean(placement.rank_loads(load)))
    return float(np.concatenate(ratios).mean())


def _step(instance: Instance, phase: Phase, batch: int, context: int, cached: int) -> Pass:
    if phase is Phase.DECODE:
        return instance.decode_pass(batch, context)
    return Pass(phase, float(batch), float(context), float(cached))


def _spec(skew: Skew, family: RouterFamily) -> RoutingSpec:
    if isinstance(skew, RoutingSpec):
        return skew
    if isinstance(skew, str):
        return RoutingSpec(family=RouterFamily.PRESET, preset=skew)
    if skew == 0:
        return RoutingSpec(family=RouterFamily.UNIFORM)
    return RoutingSpec(family=family, skew=float(skew))


def _fitting(n_experts: int, n_redundant: int, n_ranks: int) -> int:
    return -(-(n_experts + n_redundant) // n_ranks) * n_ranks - n_experts
