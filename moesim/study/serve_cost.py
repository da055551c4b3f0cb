"""Pass costs for the serving simulation: from measured operator tables, or from the closed form on grids.

Letters: T tokens of a rank, n decodes, c their context, q prefill tokens, p the context before them, L layers, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import barrier_groups
from moesim.cost.measured_links import SimpleLink
from moesim.cost.op_tables import AttentionTable, Curve, MoeTable, OperatorTables, add_curves
from moesim.cost.served import stack_of
from moesim.errors import InputError
from moesim.lowering import Pass, Routed
from moesim.ops import OpKind, Phase, Program
from moesim.routing import Placement, RouterModel
from moesim.sim.serving.cost import PassCost, pad_sizes
from moesim.sim.serving.draws import Drawn, ExpertDraws, token_axis
from moesim.specs.model import DenseFfn, ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.study.host import n_kernels
from moesim.study.instance import Instance

__all__ = ["CostLimits", "analytic_cost", "send_seconds", "table_cost"]

Floats = NDArray[np.float64]
ONCE = ("embedding", "final_layernorm")
FFN = ("gate_up_proj", "act_fn", "down_proj")
HEAD = ("lm_head", "logits_all_gather", "sampling")
ATTENTION_KERNELS = (OpKind.ATTENTION_PREFILL, OpKind.ATTENTION_DECODE)
EXPERT_KINDS = (OpKind.GROUPED_GEMM, OpKind.DISPATCH, OpKind.COMBINE)


@dataclass(frozen=True, slots=True)
class CostLimits:
    """How far the lookups must reach, and what of the engine they depend on."""

    max_tokens: int
    max_seqs: int
    graph_tokens: int
    max_context: int
    tokens_per_decode: int = 1
    draft_cost_frac: float = 0.0
    seed: int = 0


def table_cost(
    tables: OperatorTables, model: ModelSpec, parallel: ParallelSpec, link: SimpleLink, routed: Routed | None,
    limits: CostLimits,
) -> PassCost:  # fmt: skip
    """Lookups from measured layer times of one rank, with collectives between ranks from `link`.

    Raises:
        InputError: a layer that the model needs and the tables do not have.
    """
    n = max(limits.max_tokens, limits.max_seqs * limits.tokens_per_decode)
    rest = _dense_sum(tables, model, n)
    padded = pad_sizes(limits.graph_tokens, len(rest) - 1)
    tp, dp = parallel.tp_size, parallel.dp_size
    row_bytes = np.arange(len(rest)) * (model.hidden_size * 2.0)
    n_layers = len(model.layers)
    rest = rest + link.all_reduce_s(tp, row_bytes) * (n_layers + 1)
    if dp == 1:
        rest = rest + link.all_reduce_s(tp, row_bytes) * n_layers
    else:
        n_dense = n_layers - len(model.moe_layers)
        everyone = 2.0 * link.all_gather_s(tp * dp, row_bytes * dp)
        rest = rest + link.all_reduce_s(tp, row_bytes) * n_dense + everyone * len(model.moe_layers)
    rest[0] = 0.0
    head = _head(tables, limits.max_seqs * limits.tokens_per_decode)
    head = head + link.all_gather_s(tp, np.arange(len(head)) * (model.vocab_size * 2.0))
    draws = _table_draws(tables.moe, parallel, routed, limits.seed) if model.is_moe else None
    draft_s = limits.draft_cost_frac * float(rest[min(len(rest) - 1, 16)])
    return PassCost(
        decode_rest_s=rest, mixed_rest_s=rest, head_s=head, attention=tables.attention, n_attention_layers=n_layers,
        padded=padded, draws=draws, draft_s=draft_s, tokens_per_decode=limits.tokens_per_decode,
    )  # fmt: skip


def _dense_sum(tables: OperatorTables, model: ModelSpec, n: int) -> Floats:
    n_layers = len(model.layers)
    n_dense = sum(isinstance(layer.ffn, DenseFfn) for layer in model.layers)
    needed = ["embedding", "layernorm", "qkv_proj", "o_proj", "final_layernorm", *(FFN if n_dense else ())]
    missing = [name for name in needed if name not in tables.dense]
    if missing:
        raise InputError("lacks a layer that the model has", field="operator_tables", value=missing[0],
                         allowed=", ".join(sorted(tables.dense)))  # fmt: skip
    parts: list[tuple[Curve, float]] = []
    for name in tables.dense:
        times = 1 if name in ONCE else 2 * n_layers if name == "layernorm" else n_dense if name in FFN else n_layers
        parts.append((tables.dense_curve(name, n), float(times)))
    return add_curves(parts).seconds


def _head(tables: OperatorTables, n: int) -> Floats:
    return add_curves([(tables.sequence_curve(name, n), 1.0) for name in tables.per_sequence]).seconds


def _table_draws(
    table: MoeTable | None, parallel: ParallelSpec, routed: Routed | None, seed: int
) -> ExpertDraws:  # fmt: skip
    if table is None:
        raise InputError("has no moe.csv, which a model with experts needs", field="operator_tables")
    if routed is None or len(routed.routers) != 1:
        raise InputError("serves models with one kind of MoE layer", field="operator_tables")
    ((key, router),) = routed.routers.items()
    return ExpertDraws(_table_sampler(table, router, routed.placements[key], parallel), router.n_layers, seed)


def _table_sampler(
    table: MoeTable, router: RouterModel, placement: Placement, parallel: ParallelSpec
) -> Callable[[int, np.random.Generator], Drawn]:
    """Draws of routed tokens, timed by what each rank's experts got.

    A rank with hits A and m token-expert pairs is looked up at (m / K, A); slices of experts over `etp_size` ranks take
    1 / etp_size of the time (assumption: bound by weights or arithmetic, both of which divide).
    """

    def sample(tokens: int, rng: np.random.Generator) -> Drawn:
        loads = placement.slot_loads(router.sample_counts(tokens, rng))
        by_rank = np.asarray(loads, dtype=float).reshape(router.n_layers, parallel.ep_size, -1)
        pairs, hits = by_rank.sum(axis=2), (by_rank > 0).sum(axis=2)
        seconds = table(pairs / router.top_k, hits.astype(float)) / parallel.etp_size
        imbalance = pairs.max(axis=1) / np.maximum(pairs.mean(axis=1), 1e-9)
        return Drawn(seconds.max(axis=1), hits.sum(axis=1).astype(float), imbalance)

    return sample


def analytic_cost(instance: Instance, limits: CostLimits) -> PassCost:
    """Lookups from the closed form: passes on grids, taken apart into attention, experts and the rest.

    Whatever grows with the context counts as attention. Experts are drawn from the router, the slowest rank of each layer counts.
    """
    parts = _Parts(instance)
    n_tokens = max(limits.max_tokens, limits.max_seqs * limits.tokens_per_decode)
    whole = np.arange(n_tokens + 1)
    t_axis, n_axis = token_axis(1, n_tokens), _axis(1, limits.max_seqs * limits.tokens_per_decode)
    c_axis, q_axis = _axis(16, limits.max_context), _axis(1, n_tokens)
    decode_rest, head = parts.decode_rest(n_axis)
    attention = parts.attention(q_axis, np.concatenate(([0.0], c_axis)), n_axis, c_axis, decode_rest)
    rest = np.interp(whole, np.concatenate(([0.0], n_axis)), np.concatenate(([0.0], decode_rest)))
    mixed = np.interp(whole, np.concatenate(([0.0], t_axis)), np.concatenate(([0.0], parts.mixed_rest(t_axis))))
    decode_draws = mixed_draws = None
    if instance.model.is_moe:
        n_moe = len(instance.model.moe_layers)
        decode_draws = ExpertDraws(parts.sampler(Phase.DECODE), n_moe, limits.seed)
        if instance.parallel.n_stage_ranks > 1:  # one rank dispatches nothing: its experts cost the same in both phases
            mixed_draws = ExpertDraws(parts.sampler(Phase.PREFILL), n_moe, limits.seed)
    draft_s = limits.draft_cost_frac * float(rest[min(n_tokens, 16)])
    stack = stack_of(instance.cost.calibration)
    kernels = n_kernels(instance.program(Pass(Phase.PREFILL, float(instance.parallel.dp_size), 16.0, 0.0)))
    return PassCost(
        stack=stack, kernels=kernels, decode_rest_s=rest, mixed_rest_s=mixed,
        head_s=np.interp(whole, np.concatenate(([0.0], n_axis)), np.concatenate(([0.0], head))), attention=attention,
        n_attention_layers=1, padded=pad_sizes(limits.graph_tokens, n_tokens), draws=decode_draws, mixed_draws=mixed_draws,
        draft_s=draft_s, tokens_per_decode=limits.tokens_per_decode,
    )  # fmt: skip


def send_seconds(instance: Instance, n_tokens: int) -> Floats:
    """Seconds of a send to the next pipeline stage, by tokens of a rank from 0 to `n_tokens`."""
    t = _axis(1, n_tokens)
    dp = np.full(len(t), float(instance.parallel.dp_size))
    program = instance.program(Pass(Phase.PREFILL, _grid(dp), _grid(t), _grid(np.zeros(len(t)))))
    seconds = sum(_per_point(instance.cost.cost(op).time_s, len(t)) for op in program.stage_sends)
    return np.asarray(np.interp(np.arange(n_tokens + 1), t, np.asarray(seconds)))


class _Parts:
    """Times of passes of one instance by kind of operator."""

    def __init__(self, instance: Instance) -> None:
        self.instance, self.dp = instance, float(instance.parallel.dp_size)

    def decode_rest(self, n: Floats) -> tuple[Floats, Floats]:
        """Rest and head of decode passes of n sequences per rank."""
        rest, _, head = self.split(Pass(Phase.DECODE, _grid(n * self.dp), 1.0, 15.0), len(n))
        return rest, head

    def mixed_rest(self, t: Floats) -> Floats:
        """Rest of passes with prefill, by tokens per rank."""
        step = Pass(Phase.PREFILL, _grid(np.full(len(t), self.dp)), _grid(t), _grid(np.zeros(len(t))))
        return self.split(step, len(t))[0]

    def attention(self, q: Floats, p: Floats, n: Floats, c: Floats, decode_rest: Floats) -> AttentionTable:
        """All layers' attention for prefill on (q, p) and decode on (n, c), added up for mixed passes; each grid at once.

        `decode_rest` is the rest of decode passes by n, of which only what grows with the context counts.
        """
        chunks, before = np.repeat(q, len(p)), np.tile(p, len(q))
        grid = Pass(Phase.PREFILL, _grid(np.full(len(chunks), self.dp)), _grid(chunks), _grid(before))
        rest, kernel = (x.reshape(len(q), len(p)) for x in self.split(grid, len(chunks))[:2])
        prefill = kernel + rest - rest[:, :1]
        numbers, contexts = np.repeat(n, len(c)), np.tile(c, len(n))
        grid = Pass(Phase.DECODE, _grid(numbers * self.dp), 1.0, _grid(contexts))
        rest, kernel = (x.reshape(len(n), len(c)) for x in self.split(grid, len(numbers))[:2])
        grown = rest - decode_rest[:, None]
        grown[:, 0] = 0.0
        decode = kernel + grown
        padded_n = np.concatenate(([0.0], n))
        with_none = np.concatenate((np.zeros((1, len(c))), decode))
        mixed = prefill[:, :, None, None] + with_none[None, None, :, :]
        return AttentionTable(q, p, padded_n, c, mixed, padded_n, with_none)

    def split(self, step: Pass, n_points: int) -> tuple[Floats, Floats, Floats]:
        """Seconds of (rest, attention kernels, head) of passes under the expected load."""
        totals = np.zeros((3, n_points))
        program = self.instance.program(step)
        for segment in program.segments:
            for op in segment.ops:
                if op.kind in EXPERT_KINDS:
                    continue
                seconds = _per_point(self.instance.cost.cost(op).time_s, n_points) * segment.n_repeat
                totals[1 if op.kind in ATTENTION_KERNELS else 2 if op.name in HEAD else 0] += seconds
        return totals[0], totals[1], totals[2]

    def sampler(self, phase: Phase) -> Callable[[int, np.random.Generator], Drawn]:
        """Draws of one pass of T tokens of the whole instance."""
        instance = self.instance

        def sample(tokens: int, rng: np.random.Generator) -> Drawn:
            step = Pass(phase, float(tokens), 1.0, 0.0)
            counts = instance.draw(step, rng)
            program = instance.program(step, counts)
            seconds = _expert_seconds(program, instance)
            (drawn,) = list(counts.values())[:1] if counts else (np.zeros((1, 1, 1)),)
            hits = (drawn.sum(axis=1) > 0).sum(axis=1).astype(float)
            return Drawn(seconds, _fit(hits, len(seconds)), _imbalance(program, len(seconds)))

        return sample


def _expert_seconds(program: Program, instance: Instance) -> Floats:
    """Per MoE layer the slowest rank between barriers, summed over dispatch, experts and combine."""
    rows: list[tuple[int, float]] = []
    for segment in program.segments:
        experts = [op for op in segment.ops if op.kind in EXPERT_KINDS]
        if not experts:
            continue
        layer_s = np.zeros(segment.n_repeat)
        for group in barrier_groups(experts, program.n_ranks):
            total = sum(np.atleast_2d(np.asarray(instance.cost.cost(op).time_s, dtype=float)) for op in group)
            layer_s = layer_s + np.broadcast_to(np.asarray(total), (segment.n_repeat, np.shape(total)[-1])).max(axis=-1)
        rows += list(zip(segment.layers, layer_s.tolist(), strict=True))
    return np.asarray([seconds for _, seconds in sorted(rows)])


def _imbalance(program: Program, n_layers: int) -> Floats:
    for segment in program.segments:
        for op in segment.ops:
            if op.kind is OpKind.GROUPED_GEMM:
                pairs = np.atleast_2d(np.asarray(getattr(op.shape, "n_assignments", 1.0), dtype=float))
                return _fit(pairs.max(axis=-1) / np.maximum(pairs.mean(axis=-1), 1e-9), n_layers)
    return np.ones(n_layers)


def _fit(values: Floats, n: int) -> Floats:
    return values if len(values) == n else np.full(n, float(values.mean()))


def _grid(values: Floats) -> Floats:
    return np.asarray(values, dtype=float)[:, None, None]


def _per_point(seconds: object, n_points: int) -> Floats:
    """Mean over layers, slowest rank, of an operator's time at each point."""
    array = np.asarray(seconds, dtype=float)
    if array.ndim >= 3:
        array = array.max(axis=-1).mean(axis=-1)
    elif array.ndim == 2:
        array = np.asarray(array.max(axis=-1).mean(axis=-1))
    return np.broadcast_to(array, (n_points,))


def _axis(low: int, high: int) -> Floats:
    """Powers of two and halves between them from `low`, up to and including `high`."""
    values = {float(high)}
    x = float(low)
    while x < high:
        values |= {x, min(float(high), x * 1.5 if x * 1.5 == int(x * 1.5) else x)}
        x *= 2.0
    return np.asarray(sorted(v for v in values if v >= 1.0))
