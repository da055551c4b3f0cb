"""Perfect balance: counts under which every expert slot is equally loaded, copies included."""

from __future__ import annotations

import numpy as np

from moesim.errors import InputError
from moesim.lowering import Pass, expert_layout
from moesim.lowering.route import Counts, tokens_per_source
from moesim.specs.parallel import Overlap
from moesim.study.halves import HalvedCounts, split_pass
from moesim.study.instance import Instance

__all__ = ["even_counts", "even_draw"]


def even_draw(instance: Instance, step: Pass) -> Counts | None:
    """What `Instance.draw` gives, perfectly balanced: two micro-batches are even each; None for a dense model."""
    if instance.routed is None:
        return None
    halves = split_pass(step, instance.parallel.dp_size) if instance.overlap is Overlap.TWO_BATCH else None
    if halves is None:
        return even_counts(instance, step)
    return HalvedCounts((even_counts(instance, halves[0]), even_counts(instance, halves[1])))


def even_counts(instance: Instance, step: Pass) -> Counts:
    """Counts under which every slot of every layer gets the same number of tokens (give or take one per source rank)."""
    if instance.routed is None:
        raise InputError("needs a MoE model", field="model", value=instance.model.name)
    layout = expert_layout(instance.parallel, step.phase, instance.hardware.scale_up_domain_size)
    tokens = tokens_per_source(step, layout)
    found = {}
    for (n_experts, top_k), placement in instance.routed.placements.items():
        share = np.cumsum(placement.replicas, axis=1) / placement.n_slots
        n_layers = len(instance.routed.layers[n_experts, top_k])
        # running totals over sources keep every expert's total even, too
        upto = np.rint(
            np.cumsum(tokens)[None, :, None] * top_k * np.broadcast_to(share, (n_layers, n_experts))[:, None, :]
        )
        per_source = np.diff(upto, axis=1, prepend=0.0)
        found[n_experts, top_k] = np.diff(per_source, axis=2, prepend=0.0).astype(np.int64).clip(min=0)
    return found
