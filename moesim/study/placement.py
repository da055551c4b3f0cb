"""Studies of placement: balancing on a moving window, copies per token, locality, node-limited routing. Rows for tables.

Letters: S steps, L layers, E experts, K top-k, R ranks, d ranks of a scale-up domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import estimate
from moesim.errors import InputError
from moesim.lowering import Pass, expert_layout
from moesim.lowering.route import tokens_per_source
from moesim.routing import Placement, RouterModel, contiguous, eplb_global, max_over_mean
from moesim.routing.locality import TokenHome, locality_placement, path_copies
from moesim.routing.placement_moves import redundant_bytes_per_rank
from moesim.routing.placement_replicas import ReplicaRule, choose_slots, dispatch_copies, home_ranks, slot_counts
from moesim.routing.stats import expert_imbalance_ratio, rank_imbalance_ratio
from moesim.routing.window import WindowPolicy, WindowResult, simulate_window
from moesim.study.instance import Instance
from moesim.study.skew import expert_bytes, only_moe_block, placed_instance

__all__ = [
    "LocalityPoint", "NodeLimitPoint", "ReplicaPoint", "WindowPoint", "locality_study", "node_limit_study", "replica_study",
    "rows_of", "window_study",
]  # fmt: skip

COUPLING_NOTE = "coupling of adjacent layers is extrapolated from layers 7 or 8 apart (assumption)"


@dataclass(frozen=True, slots=True)
class WindowPoint:
    """One window and period. Times are of the instance's pass; moves are spread over the period.

    `step_s` is the closed-form time under the counts of the timed steps, `move_s` the time of one re-placement on otherwise idle
    links, `total_s` = `step_s` + `move_s` / period (copying not overlapped: an upper bound).
    """

    window_steps: int | None
    period_steps: int | None
    n_replacements: int
    rank_imbalance_ratio: float
    moved_slots_per_replacement: float
    moved_bytes_per_replacement: float
    nic_bytes_frac: float
    staging_bytes: float
    redundant_bytes_per_rank: float
    move_s: float
    step_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class ReplicaPoint:
    """One rule for choosing copies; copies are per token and layer."""

    rule: str
    rank_imbalance_ratio: float
    own_rank: float
    in_domain: float
    cross_domain: float
    cross_assignments: float


@dataclass(frozen=True, slots=True)
class LocalityPoint:
    """One placement, judged on tokens it was not built from (`_seen`: on those it was). Copies cross domains, both ways,
    per token and layer; `note` says what the paths rest on."""

    placement: str
    home: str
    crossings: float
    crossings_seen: float
    rank_imbalance_ratio: float
    domain_imbalance_ratio: float
    note: str


@dataclass(frozen=True, slots=True)
class NodeLimitPoint:
    """One limit on the groups of a token. `nodes_touched` and copies are per token and layer, `max_nodes_touched` over all."""

    topk_group: int
    n_group: int
    nodes_touched: float
    max_nodes_touched: int
    cross_domain: float
    expert_imbalance_ratio: float
    rank_imbalance_ratio: float
    rank_imbalance_ratio_eplb: float
    cross_domain_eplb: float


def rows_of(points: Sequence[Any]) -> list[dict[str, Any]]:
    """One flat record per point."""
    return [asdict(point) for point in points]


def window_study(
    instance: Instance, counts: NDArray[Any], step: Pass, policies: Sequence[WindowPolicy], *,
    from_step: int = 0, n_timed: int = 4,
) -> tuple[WindowPoint, ...]:  # fmt: skip
    """What re-placement by each policy does to a pass whose load drifts.

    Args:
        instance: the split; one kind of MoE layer. Policies must have its ranks and slots.
        counts: [S, L, E] of the whole instance, see `moesim.routing.window_drift`.
        step: the pass that is timed; its tokens should be those of `counts`.
        policies: windows and periods.
        from_step: steps before are left out of means (the first window fills).
        n_timed: steps timed, spread evenly.

    Raises:
        InputError: a model with several kinds of MoE layers, or a first step beyond the last.
    """
    if not 0 <= from_step < len(counts):
        raise InputError(
            "must be one of the steps", field="from_step", value=from_step, allowed=f"0..{len(counts) - 1}"
        )
    return tuple(_window_point(instance, np.asarray(counts), step, policy, from_step, n_timed) for policy in policies)


def _window_point(
    instance: Instance, counts: NDArray[Any], step: Pass, policy: WindowPolicy, from_step: int, n_timed: int
) -> WindowPoint:
    result = simulate_window(counts, policy)
    ffn, network = only_moe_block(instance.model), instance.cost.network
    size = expert_bytes(instance.model, ffn)
    up, nic = network.up_bytes_per_s, network.nic_bytes_per_s
    costs = [moves.cost(size, up, nic or None) for moves in result.moves]
    timed = np.unique(np.linspace(from_step, len(counts) - 1, n_timed).astype(int))
    step_s = float(np.mean([_timed(instance, step, counts[at], _placement_at(result, int(at))) for at in timed]))
    move_s = float(np.mean([c.time_s for c in costs])) if costs else 0.0
    moved = sum(c.moved_bytes for c in costs)
    return WindowPoint(
        window_steps=policy.window_steps, period_steps=policy.period_steps, n_replacements=len(costs),
        rank_imbalance_ratio=result.mean_imbalance_ratio(from_step),
        moved_slots_per_replacement=float(np.mean([c.n_moved_slots for c in costs])) if costs else 0.0,
        moved_bytes_per_replacement=moved / max(len(costs), 1),
        nic_bytes_frac=sum(c.nic_bytes for c in costs) / moved if moved else 0.0,
        staging_bytes=max((c.staging_bytes for c in costs), default=0.0),
        redundant_bytes_per_rank=redundant_bytes_per_rank(result.replacements[-1].placement, counts.shape[1], size),
        move_s=move_s, step_s=step_s, total_s=step_s + (move_s / policy.period_steps if policy.period_steps else 0.0),
    )  # fmt: skip


def _placement_at(result: WindowResult, step: int) -> Placement:
    return [r.placement for r in result.replacements if r.step <= step][-1]


def _timed(instance: Instance, step: Pass, counts: NDArray[Any], placement: Placement) -> float:
    """Closed-form time of the pass under the counts of one step, dealt evenly to the sources."""
    ffn = only_moe_block(instance.model)
    layout = expert_layout(instance.parallel, step.phase, instance.hardware.scale_up_domain_size)
    n_sources = len(tokens_per_source(step, layout))
    upto = counts[:, None, :] * np.arange(1, n_sources + 1)[None, :, None] // n_sources
    dealt = np.diff(upto, axis=1, prepend=0)
    placed = placed_instance(instance, placement)
    return estimate(placed.program(step, {(ffn.n_routed_experts, ffn.num_experts_per_tok): dealt}), placed.cost).time_s


def replica_study(
    experts: NDArray[Any], placement: Placement, domain_size: int, rules: Sequence[ReplicaRule] = tuple(ReplicaRule)
) -> tuple[ReplicaPoint, ...]:
    """Traffic and balance of one pass by how copies are chosen.

    Args:
        experts: [T, L, K]; tokens are dealt to ranks in equal runs.
        placement: with redundant slots.
        domain_size: d.
        rules: which rules.
    """
    n_tokens, n_layers, _ = experts.shape
    source, per = home_ranks(n_tokens, placement.n_ranks), n_tokens * n_layers
    points = []
    for rule in rules:
        slots = choose_slots(experts, placement, rule, source, domain_size)
        loads = slot_counts(slots, placement).reshape(n_layers, placement.n_ranks, -1).sum(axis=2)
        copies = dispatch_copies(slots // placement.slots_per_rank, source, placement.n_ranks, domain_size)
        points.append(
            ReplicaPoint(
                rule=rule.value, rank_imbalance_ratio=float(max_over_mean(loads).mean()),
                own_rank=float(copies.own_rank.sum()) / per, in_domain=float(copies.in_domain.sum()) / per,
                cross_domain=float(copies.cross_domain.sum()) / per,
                cross_assignments=float(copies.cross_assignments.sum()) / per,
            )
        )  # fmt: skip
    return tuple(points)


def locality_study(
    seen: NDArray[Any], unseen: NDArray[Any], n_experts: int, n_ranks: int, domain_size: int, *,
    load_tolerances: Sequence[float] = (0.1, 1e9), note: str = COUPLING_NOTE,
) -> tuple[LocalityPoint, ...]:  # fmt: skip
    """Borders crossed and balance of experts in order, balanced, and by co-activation, for both kinds of homes.

    Args:
        seen: paths that placements are built from, [T, L, K]: sampled, or a recorded trace.
        unseen: paths they are judged on.
        n_experts: E.
        n_ranks: R.
        domain_size: d.
        load_tolerances: of `locality_placement`.
        note: what the paths rest on; pass another for a recorded trace.
    """
    load, later = _counted(seen, n_experts), _counted(unseen, n_experts)
    points = []
    for home in TokenHome:
        placements = {"contiguous": contiguous(n_experts, n_ranks), "eplb": eplb_global(load, n_ranks, n_experts)}
        for tolerance in load_tolerances:
            name = "locality" if tolerance > 100 else f"locality, load tolerance {tolerance:.0%}"
            placements[name] = locality_placement(
                seen, n_experts, n_ranks, domain_size, home=home, load_tolerance=tolerance
            )
        for name, placement in placements.items():
            of_domain = placement.rank_loads(later).reshape(len(later), -1, min(domain_size, n_ranks)).sum(axis=2)
            points.append(
                LocalityPoint(
                    placement=name, home=home.value,
                    crossings=path_copies(unseen, placement, domain_size, home).per_token_layer,
                    crossings_seen=path_copies(seen, placement, domain_size, home).per_token_layer,
                    rank_imbalance_ratio=float(rank_imbalance_ratio(later, placement).mean()),
                    domain_imbalance_ratio=float(max_over_mean(of_domain).mean()), note=note,
                )
            )  # fmt: skip
    return tuple(points)


def node_limit_study(
    router: RouterModel, n_ranks: int, domain_size: int, n_tokens: int, rng: np.random.Generator, *,
    limits: Sequence[int] | None = None, n_redundant: int = 0,
) -> tuple[NodeLimitPoint, ...]:  # fmt: skip
    """Traffic saved by letting a token use only some groups, against what it does to the load.

    Experts lie in order, so a group lies on one node where nodes divide groups; balanced (EPLB, global) they do not.

    Args:
        router: gives weights, K and `n_group`; its own limit is replaced.
        n_ranks: R, a divisor of E.
        domain_size: d.
        n_tokens: T of a pass.
        rng: draws.
        limits: groups a token may use; all that hold K experts by default.
        n_redundant: slots beyond E of the balanced placement.

    Assumes: popularity stays the same when the limit changes (a router trained with another limit would differ).

    Raises:
        InputError: a router without groups.
    """
    if router.n_group < 2:
        raise InputError("needs a router with groups", field="n_group", value=router.n_group)
    size, plain = router.n_experts // router.n_group, contiguous(router.n_experts, n_ranks)
    wanted = limits or [m for m in range(1, router.n_group + 1) if m * size >= router.top_k]
    source = home_ranks(n_tokens, n_ranks)
    points = []
    for limit in wanted:
        limited = replace(router, topk_group=limit)
        experts = limited.sample_tokens(n_tokens, rng)
        load = _counted(experts, router.n_experts)
        placed = eplb_global(
            _counted(limited.sample_tokens(n_tokens, rng), router.n_experts), n_ranks, router.n_experts + n_redundant
        )
        cross, (mean, most) = [], (0.0, 0)
        for placement in (placed, plain):
            ranks = (
                choose_slots(experts, placement, ReplicaRule.ROUND_ROBIN, source, domain_size)
                // placement.slots_per_rank
            )
            copies = dispatch_copies(ranks, source, n_ranks, domain_size)
            cross.append(float(copies.cross_domain.sum()) / (n_tokens * router.n_layers))
            nodes = np.sort(ranks // min(domain_size, n_ranks), axis=2)
            touched = 1 + (np.diff(nodes, axis=2) != 0).sum(axis=2)
            mean, most = float(touched.mean()), int(touched.max())
        points.append(
            NodeLimitPoint(
                topk_group=limit, n_group=router.n_group, nodes_touched=mean, max_nodes_touched=most, cross_domain=cross[1],
                expert_imbalance_ratio=float(expert_imbalance_ratio(load).mean()),
                rank_imbalance_ratio=float(rank_imbalance_ratio(load, plain).mean()),
                rank_imbalance_ratio_eplb=float(rank_imbalance_ratio(load, placed).mean()), cross_domain_eplb=cross[0],
            )
        )  # fmt: skip
    return tuple(points)


def _counted(experts: NDArray[Any], n_experts: int) -> NDArray[np.int64]:
    n_layers = experts.shape[1]
    flat = experts.astype(np.int64) + np.arange(n_layers)[None, :, None] * n_experts
    return np.bincount(flat.ravel(), minlength=n_layers * n_experts).reshape(n_layers, n_experts)
