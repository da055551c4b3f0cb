"""Balancing again and again: EPLB every n steps on the counts of the last w steps, and what that leaves and moves.

Letters: S steps, L layers, E experts, R ranks. Pure: counts in, imbalance and moves out; see `moesim.routing.window_drift` for
counts that drift, or count a recorded trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.eplb import eplb_global, eplb_hierarchical
from moesim.routing.placement import Placement, check_slots, trivial
from moesim.routing.placement_moves import Moves, align_ranks, moves_between
from moesim.routing.stats import max_over_mean

__all__ = ["Replacement", "WindowPolicy", "WindowResult", "simulate_window"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """When and how experts are placed anew.

    Attributes:
        n_ranks: R.
        n_slots: slots of all ranks together.
        window_steps: how many past steps' counts are looked at; None is all of them.
        period_steps: steps between re-placements; None is never (the first placement stays).
        lag_steps: steps from the decision to the new placement in use (weights are copied meanwhile).
        n_nodes: more than 1 balances hierarchically, groups on nodes.
        n_group: groups of experts, for hierarchical balancing.
        domain_size: d, ranks of a scale-up domain, which decides what a move costs; all ranks by default.
        min_gain_frac: layers whose imbalance over the window would fall by less than this share keep their placement.
        align: rename ranks so that few experts travel (what DeepSeek's published EPLB does not do).
    """

    n_ranks: int
    n_slots: int
    window_steps: int | None = 1000
    period_steps: int | None = 3000
    lag_steps: int = 0
    n_nodes: int = 1
    n_group: int = 1
    domain_size: int | None = None
    min_gain_frac: float = 0.0
    align: bool = True

    def __post_init__(self) -> None:
        for name in ("window_steps", "period_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError("must be at least 1, or None", field=name, value=value)
        if self.lag_steps < 0 or not 0 <= self.min_gain_frac < 1:
            raise InputError("lag must not be negative and the gain must be from 0 to 1", field="lag_steps",
                             value=f"{self.lag_steps}, {self.min_gain_frac:g}")  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Replacement:
    """A placement and the first step that runs on it; `moves` is None for the one a run starts with."""

    step: int
    placement: Placement
    moves: Moves | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WindowResult:
    """A run: rank imbalance (max over mean) of each step and layer, [S, L], and the placements in order."""

    policy: WindowPolicy
    imbalance_ratio: Floats
    replacements: tuple[Replacement, ...]

    @property
    def moves(self) -> tuple[Moves, ...]:
        """All moves, in order."""
        return tuple(r.moves for r in self.replacements if r.moves is not None)

    def mean_imbalance_ratio(self, from_step: int = 0) -> float:
        """Mean over steps and layers."""
        return float(self.imbalance_ratio[from_step:].mean())

    def moved_slots_per_step(self) -> float:
        """Copies that travel, over all steps of the run."""
        return sum(m.n_moved_slots for m in self.moves) / len(self.imbalance_ratio)


def simulate_window(counts: NDArray[Any], policy: WindowPolicy, start: Placement | None = None) -> WindowResult:
    """Run a placement policy over the counts of many steps.

    A step runs on the placement that was decided from steps before it only, `lag_steps` after the decision.

    Args:
        counts: [S, L, E], tokens per expert of each step.
        policy: when and how to place anew.
        start: the placement of the first steps; by default experts in order (`trivial`).

    Raises:
        InputError: counts of another shape.
        ParallelError: slots that do not fit.
    """
    steps = np.asarray(counts)
    if steps.ndim != 3 or not len(steps):
        raise InputError("counts must be [steps, layers, experts]", field="counts", value=steps.shape)
    n_steps, _, n_experts = steps.shape
    check_slots(n_experts, policy.n_ranks, policy.n_slots)
    current = start if start is not None else trivial(n_experts, policy.n_ranks, policy.n_slots)
    sums = np.concatenate([np.zeros((1, *steps.shape[1:])), np.cumsum(steps, axis=0, dtype=np.float64)])
    done = [Replacement(0, current)]
    for at in _decisions(policy, n_steps):
        since = 0 if policy.window_steps is None else max(0, at - policy.window_steps)
        placed = replace_experts(sums[at] - sums[since], current, policy)
        done.append(Replacement(at + policy.lag_steps, placed, moves_between(current, placed, policy.domain_size)))
        current = placed
    return WindowResult(policy, _imbalance(steps, done), tuple(done))


def replace_experts(history: NDArray[Any], current: Placement, policy: WindowPolicy) -> Placement:
    """The placement that follows `current` after a window whose counts sum to `history`, [L, E]."""
    if policy.n_nodes > 1:
        new = eplb_hierarchical(history, policy.n_ranks, policy.n_slots, policy.n_nodes, policy.n_group)
    else:
        new = eplb_global(history, policy.n_ranks, policy.n_slots)
    if policy.align:
        new = align_ranks(new, current, policy.n_ranks // policy.n_nodes)
    if policy.min_gain_frac == 0:
        return new
    before, after = (max_over_mean(p.rank_loads(history)) for p in (current, new))
    keep = after > before * (1 - policy.min_gain_frac)
    old = np.broadcast_to(current.slots, new.slots.shape)
    return Placement(np.where(keep[:, None], old, new.slots), policy.n_ranks, new.n_experts)


def _decisions(policy: WindowPolicy, n_steps: int) -> range:
    """Steps before which a new placement is decided; it must come into use within the run."""
    if policy.period_steps is None:
        return range(0)
    return range(policy.period_steps, n_steps - policy.lag_steps, policy.period_steps)


def _imbalance(steps: NDArray[Any], done: list[Replacement]) -> Floats:
    out = np.empty(steps.shape[:2])
    ends = [r.step for r in done[1:]] + [len(steps)]
    for used, end in zip(done, ends, strict=True):
        if end <= used.step:
            continue
        share = used.placement.share_on_rank()
        loads = np.matmul(steps[used.step : end].transpose(1, 0, 2).astype(np.float64), share)
        out[used.step : end] = max_over_mean(loads).T
    return out
