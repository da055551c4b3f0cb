"""A simulated pass rank by rank: who waits where, how much ports are in use, and what would make it quicker."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.lowering import Pass
from moesim.sim import FlowResult
from moesim.study.instance import Instance
from moesim.study.results import AlternativeRow, RankDetail
from moesim.study.whatif import Alternative, what_if

__all__ = ["N_ROWS", "alternatives", "home_ranks", "rank_detail"]

N_ROWS = 512  # more ranks than this are averaged: no screen shows more rows, and the file stays small


def rank_detail(result: FlowResult, n_layers: int) -> RankDetail:
    """Waits by rank and layer and the use of ports and engines, averaged over neighbours beyond `N_ROWS` ranks.

    Args:
        result: a recorded simulation.
        n_layers: of the model.
    """
    n_ranks = result.n_ranks
    per_row = -(-n_ranks // N_ROWS)
    layers = tuple(range(n_layers))
    waits = _by_row(result.wait_map_s(layers), per_row)
    time_s = max(result.time_s, 1e-30)
    out, into, engine = (
        tuple(_rounded(seconds) for seconds in _by_row(busy, per_row) / time_s)
        for busy in (result.out_busy_s, result.in_busy_s, result.engine_busy_s)
    )
    return RankDetail(
        n_ranks=n_ranks, n_ranks_per_row=per_row, layers=layers,
        wait_s=tuple(tuple(_rounded(seconds) for seconds in row) for row in waits),
        out_port_frac=out, in_port_frac=into, engine_frac=engine,
    )  # fmt: skip


def alternatives(instance: Instance, step: Pass, seed: int | np.random.SeedSequence) -> tuple[AlternativeRow, ...]:
    """The pass as it is, then with one thing changed at a time."""
    found = what_if(instance, step, seed)
    return tuple(_row(alternative) for alternative in (found.base, *found.alternatives))


def home_ranks(instance: Instance, n_tokens: int) -> tuple[int, ...]:
    """Devices on which sampled tokens start: the first of attention groups spread evenly over the instance.

    Assumes: rank = group x (tp x cp) + place in the group, as in the lowering.
    """
    n_groups = instance.parallel.dp_size
    n_inside = instance.parallel.n_stage_ranks // n_groups
    return tuple(token * n_groups // n_tokens * n_inside for token in range(n_tokens))


def _row(found: Alternative) -> AlternativeRow:
    return AlternativeRow(
        name=found.name, note=found.note, time_s=found.time_s, speedup=found.speedup,
        exposed_comm_s=found.exposed_comm_s, hidden_comm_s=found.hidden_comm_s, slower_wait_s=found.slower_wait_s,
        wait_s=found.waits_s,
    )  # fmt: skip


def _by_row(values: NDArray[np.float64], per_row: int) -> NDArray[np.float64]:
    """Means of `per_row` neighbours along the first axis; the last row may hold fewer."""
    if per_row == 1:
        return values
    starts = np.arange(0, len(values), per_row)
    sums: NDArray[np.float64] = np.add.reduceat(values, starts, axis=0)
    counts = np.diff(np.append(starts, len(values))).reshape(-1, *(1,) * (values.ndim - 1))
    means: NDArray[np.float64] = sums / counts
    return means


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
