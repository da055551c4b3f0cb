"""Times of many passes at once: one lowering with arrays for cases that share split and hardware.

Rows are passes; E experts, K top-k, F expert width, S sequences, q new tokens and p cached ones may differ from row to row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CostModel
from moesim.lowering import MoeLoad, Pass, Routed, expert_layout, lower, uniform_load
from moesim.lowering.route import fullest_source, node_limited
from moesim.ops import Phase, Program
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.sweep.shapes import Experts, array_model
from moesim.study.sweep.sums import Lowered, rows_of

__all__ = ["Passes", "is_even"]

Floats = NDArray[np.float64]
FEW_ROWS = 3


def is_even(routing: RoutingSpec | None) -> bool:
    """Whether all experts are equally popular, so that loads need no router."""
    if routing is None:
        return True
    if routing.family is RouterFamily.BALANCED:
        return True
    return routing.family is RouterFamily.UNIFORM and routing.capacity_factor is None


@dataclass(frozen=True, slots=True)
class Passes:
    """A model on its split, ready to time rows; `routed` is needed unless routing is even."""

    model: ModelSpec
    parallel: ParallelSpec
    cost: CostModel
    domain_size: int
    overlap: bool
    routing: RoutingSpec | None
    routed: Routed | None = None
    memory: dict[Any, Any] = field(default_factory=dict)

    def ask(
        self, phase: Phase, experts: Experts, sequences: Floats, new: Floats, cached: Floats
    ) -> tuple[list[Lowered], NDArray[np.intp] | None]:
        """Programs that time rows, and for each row which of their rows it is (None: in order); equal rows share one.

        Few rows are lowered one by one with plain numbers, which calibrations price together with those of other groups.
        """
        varying = [x for x in (sequences, new, cached, experts.n_routed, experts.top_k, experts.width) if x is not None]
        inverse = None
        if len(sequences) > 1:
            first, found = _distinct(varying)
            if len(first) < len(sequences):
                inverse, experts = found, experts.take(first)
                sequences, new, cached = sequences[first], new[first], cached[first]
        n = len(sequences)
        pieces = [slice(i, i + 1) for i in range(n)] if n <= FEW_ROWS else [slice(0, n)]
        lowered = []
        for piece in pieces:
            parts = (phase, experts.take(piece), sequences[piece], new[piece], cached[piece])
            program, imbalance = (
                self._remembered(*parts) if n <= FEW_ROWS and self.routed is None else self._program(*parts)
            )
            lowered.append(Lowered(program, self.cost, len(sequences[piece]), imbalance, self.parallel.pp_size))
        return lowered, inverse

    def _remembered(
        self, phase: Phase, experts: Experts, sequences: Floats, new: Floats, cached: Floats
    ) -> tuple[Program, Any]:
        """One row's program, from the memory where a group of equal stages has asked for it: stages may differ in number."""
        p = self.parallel
        row = tuple(float(x[0]) for x in (sequences, new, cached))
        own = tuple(None if x is None else float(x[0]) for x in (experts.n_routed, experts.top_k, experts.width))
        split = (p.tp_size, p.dp_size, p.cp_size, p.ep_size, p.redundant_experts)
        key = (id(self.model), split, phase, self.overlap, _is_balanced(self.routing), self.domain_size, row, own)
        found = self.memory.get(key)
        if found is None:
            found = self.memory[key] = self._program(phase, experts, sequences, new, cached)
        return found

    def _program(
        self, phase: Phase, experts: Experts, sequences: Floats, new: Floats, cached: Floats
    ) -> tuple[Program, Any]:
        """One row is lowered with plain numbers, which is ten times quicker and remembered by calibrations."""
        single = len(sequences) == 1
        even = self.routed is None

        def shaped(x: Floats | None) -> Any:
            return None if x is None else float(x[0]) if single else x if even else x[:, None, None]

        step = Pass(phase, shaped(sequences), _common(shaped(new)), shaped(cached))
        inner = Experts(*(shaped(x) for x in (experts.n_routed, experts.top_k, experts.width)))
        layout = expert_layout(self.parallel, phase, self.domain_size)
        seen: list[tuple[int, Any]] = []

        def load_for(ffn: MoeFfn, indices: tuple[int, ...]) -> MoeLoad:
            load = load_of(ffn, indices)
            mean = step.n_tokens * load.top_k / self.parallel.ep_size
            seen.append((len(indices), rows_of(load.n_assignments / mean)))
            return load

        def load_of(ffn: MoeFfn, indices: tuple[int, ...]) -> MoeLoad:
            if self.routed is not None:
                return self.routed.expected(ffn, indices, step, layout)
            limited = node_limited(layout, ffn)
            n_experts, balanced = _float(ffn.n_routed_experts), _is_balanced(self.routing)
            n_slots = n_experts + float(self.parallel.redundant_experts)
            source = fullest_source(step, limited)
            load = uniform_load(
                step.n_tokens, n_slots, _float(ffn.num_experts_per_tok), limited, source, balanced=balanced
            )
            return replace(load, n_experts=n_experts) if self.parallel.redundant_experts else load

        # a send to a next stage is counted as often as there are stages, so that one program serves every depth
        staged = self.parallel if self.parallel.pp_size > 1 else self.parallel.model_copy(update={"pp_size": 2})
        shared = self.memory.setdefault(id(self.model), {})
        program = lower(array_model(self.model, inner), staged, step, load_for, overlap=self.overlap, shared=shared)
        return program, sum(n * ratio for n, ratio in seen) / sum(n for n, _ in seen) if seen else 1.0


def _is_balanced(routing: RoutingSpec | None) -> bool:
    return routing is not None and routing.family is RouterFamily.BALANCED


def _float(x: Any) -> Any:
    return float(x) if isinstance(x, int) else x


def _common(x: Any) -> Any:
    """A number where all are equal: decode passes have one new token, which lowering keeps plain."""
    return float(x.flat[0]) if isinstance(x, np.ndarray) and (x == x.flat[0]).all() else x


def _distinct(columns: Sequence[Floats]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first of each set of equal rows, and for each row its set."""
    if len(columns[0]) <= FEW_ROWS:
        place: dict[tuple[float, ...], int] = {}
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        codes = [place.setdefault(row, len(place)) for row in rows]
        return np.asarray([codes.index(i) for i in range(len(place))], dtype=np.intp), np.asarray(codes, dtype=np.intp)
    code, n_codes = np.zeros(len(columns[0]), dtype=np.intp), 1
    for column in columns:
        if column.min() == column.max():
            continue
        own, inverse = np.unique(column, return_inverse=True)
        code = inverse if n_codes == 1 else np.unique(code * len(own) + inverse, return_inverse=True)[1]
        n_codes = int(code.max()) + 1
    first = np.full(int(code.max()) + 1, len(code), dtype=np.intp)
    np.minimum.at(first, code, np.arange(len(code)))
    return first, code
