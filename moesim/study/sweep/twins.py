"""Dense twins beside the cases of a sweep: of every case's own experts, each on the split that serves it fastest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.specs.scenario import Basis
from moesim.study.sweep.group import answer_all
from moesim.study.sweep.parts import NUMBERS, GroupCases, Rules
from moesim.study.sweep.paths import Variant
from moesim.study.sweep.shapes import changed_model
from moesim.study.systems import dense_splits
from moesim.study.twins import dense_twin

__all__ = ["twin_columns"]

Columns = dict[str, Any]
#: Result columns with a case's experts, and the fields that they are.
_SHAPE = (
    ("n_experts", "n_routed_experts"),
    ("top_k", "num_experts_per_tok"),
    ("expert_width", "moe_intermediate_size"),
)
_NUMBERS = ("concurrency", "input_tokens", "output_tokens", "cached_prefix_tokens", "max_pass_tokens")


def twin_columns(cases: GroupCases, own: Columns, basis: Basis, rules: Rules) -> Columns:
    """Result columns of the twins of an MoE's cases.

    Args:
        cases: of the MoE.
        own: its result columns, where constraints have settled its experts.
        basis: what twin and MoE have in common.
        rules: of the sweep.
    """
    out: Columns = {name: np.full(cases.n, np.nan) for name in NUMBERS}
    out |= {name: np.full(cases.n, None, dtype=object) for name in ("origin", "interval_basis", "reason")}
    out["outcome"] = np.full(cases.n, "no twin", dtype=object)
    shapes = np.stack([own[column] for column, _ in _SHAPE], axis=1)
    known = np.flatnonzero(np.isfinite(shapes).all(axis=1) & (shapes >= 1).all(axis=1))
    for shape in np.unique(shapes[known], axis=0):
        rows = known[(shapes[known] == shape).all(axis=1)]
        try:
            found = _of_one(cases, own, rows, shape, basis, rules)
        except (InputError, ValueError) as error:
            out["reason"][rows] = str(error).split("\n")[0]
            continue
        for name in found:
            out[name][rows] = found[name]
    return out


def _of_one(cases: GroupCases, own: Columns, rows: Any, shape: Any, basis: Basis, rules: Rules) -> Columns:
    """Twins of cases that share their experts: the split with the highest rate of those that run."""
    parts = cases.parts
    values = {field: int(value) for (_, field), value in zip(_SHAPE, shape, strict=True)}
    ffn = parts.model.moe_ffn
    changed = {field: value for field, value in values.items() if ffn is not None and getattr(ffn, field) != value}
    model = changed_model(parts.model, changed) if changed else parts.model
    twin = dense_twin(model, basis, cases.variant.scenario.comparison.quality_rule)
    numbers = {name: cases.numbers[name][rows] for name in _NUMBERS}
    numbers["concurrency"] = own["concurrency"][rows]
    splits = dense_splits(parts.parallel, twin)
    dense = _dense_variant(cases)
    tried = answer_all(
        [GroupCases(dense, cases.system, numbers, twin, split, is_other=True) for split in splits], rules
    )
    rates = np.stack([np.where(t["outcome"] == "ok", t["output_tokens_per_s"], -1.0) for t in tried])
    best = rates.argmax(axis=0)
    return {name: np.stack([t[name] for t in tried])[best, np.arange(len(rows))] for name in tried[0]}


def _dense_variant(cases: GroupCases) -> Variant:
    """The variant without routing, which a dense model has none of."""
    scenario, spec = cases.variant.scenario, cases.spec
    systems = list(scenario.systems)
    systems[cases.system] = spec.model_copy(update={"routing": None})
    return replace(cases.variant, scenario=scenario.model_copy(update={"systems": tuple(systems)}))
