"""What a row's mean TTFT and TPOT are made of: parts of passes weighted by how often clients wait for them.

Durations enter linearly (see `closed_loop`), but for the launch floor of passes with prompts: those stay apart by size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.study.validate.closed_loop import Schedule
from moesim.study.validate.steps import StepTable

__all__ = ["RowFeatures", "row_features"]

Floats = NDArray[np.float64]
#: Bins of passes with prompts with equally many of them, and further ones above the last edge, by multiples of it: few, but long.
N_BINS = 8
LARGE = (1.5, 3.0, 6.0)


@dataclass(frozen=True, slots=True)
class RowFeatures:
    """Weights of one row.

    `decode` is [2, parts]: seconds of decode passes by part that make up TTFT and TPOT; `n_decode` the number of such passes.
    Passes with prompts are binned by size: `prompt` [bins, parts] seconds, `n_new` prompts begun, `weight` [2, bins].
    `n_kernels` are launched in such a pass.
    """

    decode: Floats
    n_decode: Floats
    prompt: Floats
    n_new: Floats
    weight: Floats
    n_kernels: float
    mean_input: float
    mean_output: float
    concurrency: int


def row_features(
    table: StepTable, schedule: Schedule, mean_input: float, mean_output: float, concurrency: int
) -> RowFeatures:
    """Combine a row's passes with the weights its schedule gives them."""
    has_prompt = schedule.q > 0
    weights = np.stack([schedule.ttft_weight, schedule.tpot_weight])
    alone, mixed = ~has_prompt, has_prompt
    parts = table.decode_parts(schedule.n[alone], schedule.c[alone])
    found = table.mixed_parts(
        schedule.n[mixed], schedule.c[mixed], schedule.q[mixed], schedule.pairs[mixed], schedule.pieces[mixed]
    )
    prompt, n_new, weight = _binned(schedule.q[mixed], found, schedule.n_new[mixed], weights[:, mixed])
    return RowFeatures(
        decode=weights[:, alone] @ parts, n_decode=weights[:, alone].sum(axis=1), prompt=prompt, n_new=n_new, weight=weight,
        n_kernels=table.n_kernels, mean_input=mean_input, mean_output=mean_output, concurrency=concurrency,
    )  # fmt: skip


def _binned(q: Floats, parts: Floats, n_new: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Passes of like size as one, once as TTFT weighs them and once as TPOT does.

    A burst of prompts weighs much in TTFT and next to nothing in TPOT: at one mean for both it would lengthen every step.
    """
    if not len(q):
        return parts, n_new, weight
    edges = np.quantile(q, np.linspace(0.0, 1.0, N_BINS + 1)[1:-1])
    edges = np.unique(np.concatenate((edges, edges[-1] * np.asarray(LARGE))))
    at = np.searchsorted(edges, q, side="right")
    rows, news, weights = [], [], []
    for b, measure in itertools.product(np.unique(at), range(2)):
        own = weight[measure] * (at == b)
        total = float(own.sum())
        if total <= 0.0:
            continue
        rows.append(own @ parts / total)
        news.append(float(own @ n_new / total))
        weights.append(total * np.eye(2)[measure])
    return np.asarray(rows), np.asarray(news), np.asarray(weights).T
