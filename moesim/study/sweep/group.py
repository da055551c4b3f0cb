"""All cases that share hardware, split and skeleton, answered together in closed form: shapes, memory and routers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CostModel
from moesim.errors import InputError
from moesim.lowering import Routed
from moesim.memory import Outcome
from moesim.specs.model import ModelSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.sweep import ConstraintKind, SolvedBy
from moesim.study.links import scaled_cost
from moesim.study.sweep.constraints import solve_experts, split_experts
from moesim.study.sweep.laws import LAWS
from moesim.study.sweep.parts import NUMBERS, GroupCases, Rules, model_key, routed_of
from moesim.study.sweep.pass_times import PassTimes
from moesim.study.sweep.passes import Passes, is_even
from moesim.study.sweep.pricing import priced
from moesim.study.sweep.row_times import Ask, RowTimes
from moesim.study.sweep.shapes import Experts, changed_model, check_splits, memory_of, n_params_of, structural_check

__all__ = ["CONSTRAINT", "answer", "answer_all"]

Floats = NDArray[np.float64]
Columns = dict[str, Any]
CONSTRAINT = "constraint not met"
BAD_SHAPE = "invalid shape"


def answer(cases: GroupCases, rules: Rules) -> Columns:
    """Result columns of all cases, in order; `outcome` and `reason` say why a case has no times."""
    return answer_all([cases], rules)[0]


def answer_all(groups: Sequence[GroupCases], rules: Rules) -> list[Columns]:
    """`answer` of each group, with the operators of all of them priced together.

    A group is a generator: it yields the programs it needs times of, and is sent the times.
    """
    programs: dict[Any, Any] = {}
    states = [_Group(cases, rules, programs) for cases in groups]
    running = [(state, state.columns()) for state in states]
    waiting = []
    for _, steps in running:
        asked = next(steps, None)
        if asked is not None:
            waiting.append((steps, asked))
    while waiting:
        times = iter(priced([lowered for _, asked in waiting for lowered, _ in asked]))
        ahead = []
        for steps, asked in waiting:
            found = [t if inverse is None else t.take(inverse) for (_, inverse), t in zip(asked, times, strict=False)]
            try:
                ahead.append((steps, steps.send(found)))
            except StopIteration:
                continue
        waiting = ahead
    return [state.out for state in states]


class _Group:
    """One group's shared values and the columns it fills."""

    def __init__(self, cases: GroupCases, rules: Rules, programs: dict[Any, Any]) -> None:
        self.cases, self.rules, self.programs, self.n = cases, rules, programs, cases.n
        self.parts = cases.parts
        self.numbers = dict(cases.numbers)
        self.out: Columns = {name: np.full(self.n, np.nan) for name in NUMBERS}
        self.out["outcome"] = np.full(self.n, "ok", dtype=object)
        self.out["reason"] = np.full(self.n, None, dtype=object)
        self.out["origin"] = np.full(self.n, None, dtype=object)
        self.out["interval_basis"] = np.full(self.n, None, dtype=object)

    def columns(self) -> Generator[list[Ask], list[PassTimes], None]:
        """Shape, memory, times; yields what must be priced."""
        parts, cases = self.parts, self.cases
        wrong = structural_check(parts.model, parts.parallel, parts.hardware)
        experts = self.experts()
        self.sizes(experts)
        self.refuse(Outcome.INVALID_SPLIT.value, [wrong] * self.n)
        if wrong is not None:
            return
        self.refuse(Outcome.INVALID_SPLIT.value, check_splits(parts.model, parts.parallel, experts, self.n))
        n_instances = parts.hardware.n_devices // parts.parallel.n_ranks
        self.out["n_instances"][:] = n_instances
        self.workload()
        self.memory(experts, n_instances)
        rows = np.flatnonzero(self.out["outcome"] == "ok")
        for part, routed in self.by_router(experts, rows):
            passes = Passes(
                parts.model if routed is None else self.plain_model(experts, part), parts.parallel, self.cost(),
                parts.hardware.scale_up_domain_size, bool(cases.spec.overlap), cases.spec.routing, routed, self.programs,
            )  # fmt: skip
            given = experts.take(part) if routed is None else replace(experts.take(part), n_routed=None, top_k=None)
            yield from RowTimes(cases, self.numbers, self.out, part, n_instances).answer(passes, given)

    def refuse(self, outcome: str, reasons: Sequence[str | None]) -> None:
        """Note what is wrong with cases that nothing was wrong with so far."""
        for i, reason in enumerate(reasons):
            if reason is not None and self.out["reason"][i] is None:
                self.out["outcome"][i], self.out["reason"][i] = outcome, reason

    def experts(self) -> Experts:
        """Given experts, split finer, and what the constraints make of them."""
        get = self.numbers.get
        given = Experts(get("n_routed_experts"), get("num_experts_per_tok"), get("moe_intermediate_size"))
        given = split_experts(self.parts.model, given, get("split"))
        if given.varies and not self.parts.model.is_moe:
            self.refuse(BAD_SHAPE, [f"{self.parts.model.name} has no experts"] * self.n)
            given = Experts()
        targets = () if self.cases.is_other else self.rules.targets
        found, reasons = solve_experts(targets, self.parts.model, given, self.n, self.parts.parallel.ep_size)
        self.refuse(CONSTRAINT, reasons)
        return found

    def sizes(self, experts: Experts) -> None:
        """Parameters, experts, training tokens and the loss that a law promises."""
        model, out = self.parts.model, self.out
        total, active = n_params_of(model, experts)
        out["n_params"][:], out["n_active_params"][:] = total, active
        ffn = model.moe_ffn
        if ffn is not None:
            for name, value in zip(("n_experts", "top_k", "expert_width"), experts.of(ffn), strict=True):
                out[name][:] = value
        flop: Any = self.numbers.get("compute_flop")
        for target in self.rules.targets:
            if target.kind is ConstraintKind.TRAINING_COMPUTE and flop is None:
                flop = target.value
        if flop is not None:
            out["train_tokens"][:] = flop / (6.0 * out["n_active_params"])
            per_choice = out["n_experts"] / out["top_k"] if ffn is not None else 1.0
            for column, law in (("loss", self.rules.law), ("other_loss", self.rules.other_law)):
                if law is not None:
                    out[column][:] = LAWS[law].loss(out["n_active_params"], per_choice, out["train_tokens"])

    def workload(self) -> None:
        """Cases whose workload contradicts itself or exceeds the model's context."""
        n, limit = self.numbers, self.parts.model.max_position_embeddings
        prefix = n["cached_prefix_tokens"] >= n["input_tokens"]
        self.refuse("invalid workload", [
            "cached_prefix_tokens must be less than input_tokens" if bad else None for bad in prefix
        ])  # fmt: skip
        if limit is not None:
            longest = n["input_tokens"] + n["output_tokens"]
            self.refuse(Outcome.CONTEXT_TOO_LONG.value, [
                f"{x:.0f} tokens; the model allows {limit}" if x > limit else None for x in longest
            ])  # fmt: skip

    def memory(self, experts: Experts, n_instances: int) -> None:
        """The fullest rank's bytes, and cases that do not fit; or the concurrency that just fits, where that is asked."""
        parts, out = self.parts, self.out
        context = self.numbers["input_tokens"] + self.numbers["output_tokens"]
        most = self.numbers["max_pass_tokens"]
        capacity = parts.hardware.device.memory_bytes

        def bytes_at(batch: Floats) -> Floats:
            return memory_of(parts.model, parts.parallel, parts.hardware, experts, batch, context, most)

        solved = next((t for t in self.rules.targets if t.by is SolvedBy.CONCURRENCY), None)
        if solved is not None:
            limit = min(capacity, solved.value or capacity)
            low, high = np.zeros(self.n), np.full(self.n, 2.0**20)
            while (high - low > 1.0).any():
                middle = np.floor((low + high) / 2.0)
                fits = bytes_at(middle) <= limit
                low, high = np.where(fits, middle, low), np.where(fits, high, middle)
            self.numbers["concurrency"] = np.maximum(low, 1.0) * n_instances
        concurrency = self.numbers["concurrency"]
        out["concurrency"][:] = concurrency
        out["memory_bytes"][:] = need = bytes_at(np.maximum(1.0, np.ceil(concurrency / n_instances)))
        if (need > capacity).any():
            self.refuse(Outcome.OUT_OF_MEMORY.value, [
                f"needs {x / 1e9:.1f} GB per rank, {capacity / 1e9:.1f} GB there, {(x - capacity) / 1e9:.1f} GB short"
                if x > capacity else None for x in need
            ])  # fmt: skip

    def by_router(self, experts: Experts, rows: NDArray[np.intp]) -> list[tuple[NDArray[np.intp], Routed | None]]:
        """Rows that share a router; all of them where experts are equally popular."""
        if len(rows) == 0:
            return []
        ffn, spec = self.parts.model.moe_ffn, self.cases.spec
        if ffn is None or is_even(spec.routing):
            return [(rows, None)]
        e, k = (np.broadcast_to(x, (self.n,))[rows] for x in experts.of(ffn)[:2])
        found: list[tuple[NDArray[np.intp], Routed | None]] = []
        for pair in sorted(set(zip(e.tolist(), k.tolist(), strict=True))):
            own = rows[(e == pair[0]) & (k == pair[1])]
            try:
                found.append((own, self.router(experts, own)))
            except InputError as error:
                for i in own:
                    self.out["outcome"][i], self.out["reason"][i] = "invalid routing", str(error)
        return found

    def plain(self, experts: Experts, rows: NDArray[np.intp]) -> dict[str, int]:
        """Experts of rows that share E and K."""
        pairs = (("n_routed_experts", experts.n_routed), ("num_experts_per_tok", experts.top_k))
        return {name: int(x[rows[0]]) for name, x in pairs if x is not None}

    def plain_model(self, experts: Experts, rows: NDArray[np.intp]) -> ModelSpec:
        """The model with those experts."""
        values = self.plain(experts, rows)
        return changed_model(self.parts.model, values) if values else self.parts.model

    def router(self, experts: Experts, rows: NDArray[np.intp]) -> Routed:
        """Routers and placement for rows that share E and K."""
        key = model_key(self.cases.variant, self.cases.system)
        values = tuple(sorted(self.plain(experts, rows).items()))
        routing = self.cases.spec.routing or RoutingSpec()
        domain = self.parts.hardware.scale_up_domain_size
        return routed_of(key, values, routing, self.parts.parallel, domain, self.rules.seed)

    def cost(self) -> CostModel:
        """Costs on the devices of one instance, links scaled."""
        used = self.parts.hardware.with_n_devices(self.parts.parallel.n_ranks)
        variant = self.cases.variant
        return scaled_cost(CostModel.of(used, self.parts.calibration), variant.up_scale, variant.nic_scale)
