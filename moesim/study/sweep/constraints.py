"""Constraints over arrays of cases: the field that gives way is solved, and cases that cannot meet the value are named.

Parameters and weight bytes are affine in E (experts), in F (expert width) and, for active ones, in K, so two evaluations solve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.sweep import ConstraintKind, ConstraintSpec, SolvedBy
from moesim.study.sweep.shapes import Experts, n_params_of, weight_bytes

__all__ = ["Target", "resolve", "solve_experts"]

Floats = NDArray[np.float64]
WIDTH_STEP = 64
_FIELD = {SolvedBy.EXPERT_WIDTH: "width", SolvedBy.N_EXPERTS: "n_routed", SolvedBy.TOP_K: "top_k"}
_WORDS = {"width": "expert width", "n_routed": "number of experts", "top_k": "top-k"}
_WHAT = {
    ConstraintKind.TOTAL_PARAMS: "total parameters", ConstraintKind.ACTIVE_PARAMS: "active parameters",
    ConstraintKind.MEMORY: "weight bytes",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A constraint with its value; None where it is the hardware's memory."""

    kind: ConstraintKind
    value: float | None
    by: SolvedBy
    multiple_of: int | None
    tolerance_frac: float


def resolve(spec: ConstraintSpec, model: ModelSpec) -> Target:
    """The constraint with the base model's own value where none is given."""
    value, none = spec.value, Experts()
    if value is None and spec.kind is ConstraintKind.TOTAL_PARAMS:
        value = float(n_params_of(model, none)[0])
    elif value is None and spec.kind is ConstraintKind.ACTIVE_PARAMS:
        value = float(n_params_of(model, none)[1])
    elif value is None and spec.kind is ConstraintKind.MEMORY and spec.solved_by is not SolvedBy.CONCURRENCY:
        value = float(weight_bytes(model, none))
    return Target(spec.kind, value, spec.solved_by, spec.multiple_of, spec.tolerance_frac)


def solve_experts(
    targets: Sequence[Target], model: ModelSpec, experts: Experts, n: int, ep_size: int
) -> tuple[Experts, list[str | None]]:
    """Experts that meet the constraints, and for each case that does not, why.

    Several constraints are met in turn, three times over, and checked at the end.
    """
    ours = [t for t in targets if t.by in _FIELD]
    reasons: list[str | None] = [None] * n
    if not ours:
        return experts, reasons
    if not model.is_moe:
        return experts, ["only a model with experts can meet the constraint"] * n
    for _ in range(3 if len(ours) > 1 else 1):
        for target in ours:
            experts = _solved(target, model, experts, n, ep_size)
    for target in ours:
        got = np.broadcast_to(_quantity(target, model, experts), (n,))
        value, name = float(target.value or 0.0), _FIELD[target.by]
        solution = np.broadcast_to(getattr(experts, name), (n,))
        for i in np.flatnonzero((np.abs(got / value - 1.0) > target.tolerance_frac) | (solution < 1)):
            reasons[i] = reasons[i] or (
                f"no {_WORDS[name]} in multiples of {_step(target, ep_size)} keeps {_WHAT[target.kind]} within "
                f"{target.tolerance_frac:.0%} of {value / 1e9:.4g}e9 (nearest {solution[i]:g}: {got[i] / 1e9:.4g}e9)"
            )
    return experts, reasons


def _solved(target: Target, model: ModelSpec, experts: Experts, n: int, ep_size: int) -> Experts:
    name = _FIELD[target.by]
    zero = _quantity(target, model, replace(experts, **{name: np.zeros(n)}))
    slope = _quantity(target, model, replace(experts, **{name: np.ones(n)})) - zero
    exact = (float(target.value or 0.0) - zero) / slope
    step = _step(target, ep_size)
    return replace(experts, **{name: np.maximum(np.round(exact / step) * step, float(step))})


def _step(target: Target, ep_size: int) -> int:
    if target.multiple_of is not None:
        return target.multiple_of
    return {SolvedBy.EXPERT_WIDTH: WIDTH_STEP, SolvedBy.N_EXPERTS: ep_size}.get(target.by, 1)


def _quantity(target: Target, model: ModelSpec, experts: Experts) -> Any:
    if target.kind is ConstraintKind.MEMORY:
        return weight_bytes(model, experts)
    return n_params_of(model, experts)[0 if target.kind is ConstraintKind.TOTAL_PARAMS else 1]


def split_experts(model: ModelSpec, experts: Experts, split: Floats | None) -> Experts:
    """Each expert cut into m finer ones: m E experts of width F / m, of which m K are chosen."""
    ffn = model.moe_ffn
    if split is None or not isinstance(ffn, MoeFfn):
        return experts
    e, k, f = experts.of(ffn)
    return Experts(e * split, k * split, f / split)
