"""A simulated pass rank by rank: who waits where, how much ports are in use, and what would make it quicker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.lowering import Pass
from moesim.ops import OpKind
from moesim.sim import FlowResult
from moesim.study.even import even_draw
from moesim.study.instance import Instance
from moesim.study.ports import PortUse
from moesim.study.results import AlternativeRow, AwaitedRow, PathSample, RankDetail
from moesim.study.whatif import Alternative, what_if
from moesim.timeline import Awaited, Cause

__all__ = ["N_AWAITED", "N_ROWS", "N_TRACED", "alternatives", "rank_detail", "shown_ranks"]

N_ROWS = 512  # more ranks than this are averaged: no screen shows more rows, and the file stays small
N_TRACED = 64  # ranks in a trace: viewers stay quick, and the file stays below 20 MB
N_AWAITED = 16


def rank_detail(
    result: FlowResult, n_layers: int, ports: PortUse | None = None, trace_ranks: Sequence[int] = ()
) -> RankDetail:
    """Waits by rank and layer and the use of ports and engines, averaged over neighbours beyond `N_ROWS` ranks.

    Args:
        result: of a simulation.
        n_layers: of the model.
        ports: bytes over rated bandwidth.
        trace_ranks: with spans in the trace, if not all.
    """
    n_ranks = result.n_ranks
    per_row = -(-n_ranks // N_ROWS)
    layers = tuple(range(n_layers))
    waits = _by_row(result.wait_map_s(layers), per_row)
    time_s = max(result.time_s, 1e-30)

    def row(values: NDArray[np.float64] | None) -> tuple[float, ...]:
        return () if values is None else tuple(_rounded(x) for x in _by_row(values, per_row))

    used = ports or PortUse(None, None, None, None)
    idle = {cause.value: row(seconds) for cause, seconds in result.idle_s.items() if cause is not Cause.ENGINE_BUSY}
    return RankDetail(
        n_ranks=n_ranks, n_ranks_per_row=per_row, layers=layers,
        wait_s=tuple(tuple(_rounded(seconds) for seconds in row) for row in waits),
        out_port_frac=row(result.out_busy_s / time_s), in_port_frac=row(result.in_busy_s / time_s),
        engine_frac=row(result.engine_busy_s / time_s), idle_s=idle, queue_s=row(result.idle_s[Cause.ENGINE_BUSY]),
        up_out_frac=row(used.up_out), up_in_frac=row(used.up_in), nic_out_frac=row(used.nic_out),
        nic_in_frac=row(used.nic_in), awaited=tuple(_awaited(a) for a in result.awaited[:N_AWAITED]),
        trace_ranks=tuple(trace_ranks),
    )  # fmt: skip


def shown_ranks(result: FlowResult, paths: PathSample | None, most: int = N_TRACED) -> tuple[int, ...]:
    """Ranks whose spans go into a trace: all if they are few.

    Else homes of sampled tokens, the most waited for, those whose engines work most and least, those that wait most, then ranks
    of the tokens' experts, layer by layer.
    """
    n_ranks = result.n_ranks
    if n_ranks <= most:
        return tuple(range(n_ranks))
    waits = sum(seconds for cause, seconds in result.idle_s.items() if cause.is_wait)
    by_work, by_wait = np.argsort(-result.engine_busy_s, kind="stable"), np.argsort(-np.asarray(waits), kind="stable")
    wanted = [*(paths.home_ranks if paths is not None else ()), *(a.rank for a in result.awaited[:N_AWAITED])]
    wanted += [int(rank) for rank in (*by_work[:8], *by_work[-4:], *by_wait[:8])]
    if paths is not None:
        spread = paths.n_devices_per_expert
        wanted += [
            rank * spread for layer in zip(*paths.ranks, strict=True) for token in layer for rank in token
        ]  # fmt: skip
    return tuple(sorted(list(dict.fromkeys(wanted))[:most]))


def alternatives(instance: Instance, step: Pass, seed: int | np.random.SeedSequence) -> tuple[AlternativeRow, ...]:
    """The pass as it is, then with one thing changed at a time."""
    found = what_if(instance, step, seed)
    rows = [_row(alternative) for alternative in (found.base, *found.alternatives)]
    for i, row in enumerate(rows):
        if row.name == "perfect balance" and row.time_s > rows[0].time_s:
            rows[i] = row.model_copy(update={"note": f"{row.note}; {_why_slower(instance, step, seed)}"})
    return tuple(rows)


def _why_slower(instance: Instance, step: Pass, seed: int | np.random.SeedSequence) -> str:
    """What experts of a balanced pass have more of than those of the drawn one, mean over ranks."""
    read, rows = [], []
    for counts in (instance.draw(step, np.random.default_rng(seed)), even_draw(instance, step)):
        program = instance.program(step, counts)
        parts = program.micro_batches or (program,)
        experts = [(s, op) for p in parts for s, op in p.ops() if op.kind is OpKind.GROUPED_GEMM]
        read.append(sum(float(np.mean(op.work.read_bytes)) * s.n_repeat for s, op in experts))
        rows.append(sum(float(np.mean(op.work.flops)) * s.n_repeat for s, op in experts))
    if read[1] > 1.001 * read[0]:
        return f"slower: more experts are hit, so {read[1] / read[0] - 1.0:.1%} more of their bytes are read"
    if rows[1] > 1.001 * rows[0]:
        return f"slower: {rows[1] / rows[0] - 1.0:.1%} more rows, as every expert's are padded to whole tiles"
    return "slower: two micro-batches meet otherwise on engines and ports"


def _awaited(found: Awaited) -> AwaitedRow:
    reasons = sorted(found.reasons_s.items(), key=lambda reason: -reason[1])
    return AwaitedRow(
        rank=found.rank, wait_s=_rounded(found.wait_s), n_layers=found.n_layers,
        reasons_s={reason: _rounded(seconds) for reason, seconds in reasons},
    )  # fmt: skip


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
