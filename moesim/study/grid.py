"""The closed form over arrays of points at once: batch, context, expert count, top-k and load."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.analytic import step_time
from moesim.errors import InputError
from moesim.lowering import MoeLoad, Pass, expert_layout, lower, uniform_load
from moesim.ops import Phase
from moesim.specs.model import MoeFfn
from moesim.specs.routing import RouterFamily
from moesim.study.instance import Instance

__all__ = ["time_grid"]

Floats = NDArray[np.float64]


def time_grid(
    instance: Instance,
    phase: Phase,
    batch: ArrayLike,
    context: ArrayLike,
    *,
    n_experts: ArrayLike | None = None,
    top_k: ArrayLike | None = None,
    rank_imbalance_ratio: ArrayLike | None = None,
) -> Floats:
    """Pass times of N points, seconds; arguments broadcast against each other.

    Args:
        instance: model, split and hardware; its router must be uniform or balanced, since its popularity has a fixed length.
        phase: prefill of `context` new tokens, or decode of one token at `context`.
        batch: sequences in the pass (of one pipeline stage's turn).
        context: tokens, see `phase`.
        n_experts: routed experts in place of the model's (width unchanged).
        top_k: experts per token in place of the model's.
        rank_imbalance_ratio: load of the fullest rank over the mean, in place of what chance makes of it.

    Raises:
        InputError: another router family, or values below 1.

    Assumes: splits are not checked for every expert count; memory is not counted.
    """
    ffn = instance.model.moe_ffn
    defaults = (ffn.n_routed_experts, ffn.num_experts_per_tok) if ffn is not None else (1, 1)
    given: list[Any] = [batch, context, n_experts if n_experts is not None else defaults[0]]
    given += [
        top_k if top_k is not None else defaults[1],
        rank_imbalance_ratio if rank_imbalance_ratio is not None else 1.0,
    ]
    shape = np.broadcast_shapes(*(np.shape(x) for x in given))
    # one axis of points: more would be taken for layers and ranks
    b, c, e, k, r = (np.broadcast_to(np.asarray(x, dtype=float), shape).ravel() for x in given)
    if min(b.min(), c.min(), e.min(), k.min(), r.min()) < 1 or (k > e).any():
        raise InputError("points of a grid must be at least 1, and top_k at most n_experts", field="grid")
    family = instance.routed.spec.family if instance.routed is not None else RouterFamily.UNIFORM
    if family not in (RouterFamily.UNIFORM, RouterFamily.BALANCED):
        raise InputError("a grid needs a uniform or balanced router", field="routing.family", value=family.value)
    decode = phase is Phase.DECODE
    step = Pass(phase, b, 1.0, c - 1.0) if decode else Pass(phase, b, c, 0.0)
    layout = expert_layout(instance.parallel, phase, instance.hardware.scale_up_domain_size)
    source = step.n_tokens / (1.0 if layout.tokens_are_everywhere else float(layout.n_ranks))

    def load_for(_: MoeFfn, __: tuple[int, ...]) -> MoeLoad:
        return uniform_load(
            step.n_tokens, e, k, layout, source, balanced=family is RouterFamily.BALANCED,
            rank_imbalance_ratio=None if rank_imbalance_ratio is None else r,
        )  # fmt: skip

    program = lower(instance.model, instance.parallel, step, load_for, overlap=False)
    return np.broadcast_to(np.asarray(step_time(program, instance.cost), dtype=float), b.shape).reshape(shape)
