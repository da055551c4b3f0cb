"""Every deployment that fits, as arrays: co-located instances, and pools of prefill and decode instances in matched numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.cost.stack import StackParams
from moesim.specs.parallel import ParallelSpec
from moesim.study.host import wait_s
from moesim.study.plan.curves import Curve
from moesim.study.plan.formulas import PrefillTimes, busy_limit, colocated, pool_ttft
from moesim.study.plan.spec import PlanSpec
from moesim.study.plan.splits import Split
from moesim.study.stepping import Stepping

__all__ = ["Options", "concatenate", "disaggregated", "front", "in_place"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NONE = -1


@dataclass(frozen=True, slots=True)
class Options:
    """One deployment per element.

    `split` indexes the fitting splits; `prefill_split` too, or is -1 where an instance does both. A unit is `n_main` instances
    (and `n_prefill` before them) on `n_devices`; `per_rank` is the most sequences per rank and pipeline turn.
    """

    split: Ints
    per_rank: Ints
    n_main: Ints
    prefill_split: Ints
    n_prefill: Ints
    n_devices: Ints
    tpot_s: Floats
    ttft_s: Floats
    requests_per_s: Floats

    def __len__(self) -> int:
        return len(self.split)

    @classmethod
    def none(cls) -> Options:
        """No deployment at all."""
        return concatenate([])

    def pick(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Options:
        """Some of them."""
        return Options(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    @property
    def per_device(self) -> Floats:
        """Requests per second and device."""
        return self.requests_per_s / self.n_devices

    def meets(self, spec: PlanSpec) -> NDArray[np.bool_]:
        """Which meet both goals."""
        return (self.tpot_s <= (spec.tpot_s or np.inf)) & (self.ttft_s <= (spec.ttft_s or np.inf))


def in_place(
    splits: Sequence[Split],
    curves: Mapping[ParallelSpec, Curve],
    spec: PlanSpec,
    stepping: Stepping,
    stack: StackParams | None = None,
) -> Options:
    """Instances that prefill and decode, at every batch from one sequence per rank to what memory holds."""
    parts = []
    for i, split in enumerate(splits):
        curve, pp = curves[split.stage], split.parallel.pp_size
        k = np.arange(1, split.max_per_rank + 1)
        decode_s = np.interp(k, curve.per_rank, curve.decode(pp))
        attention_s = np.interp(k, curve.per_rank, curve.attention_s)
        served = colocated(
            decode_s, attention_s, k.astype(float), curve.prefill(pp), spec.output_tokens, stepping, stack
        )
        one, n = np.ones(len(k), dtype=np.int64), split.parallel.n_ranks
        parts.append(
            Options(one * i, k, one, one * NONE, one * 0, one * n, served.tpot_s, served.ttft_s, served.requests_per_s)
        )
    return concatenate(parts)


def disaggregated(
    splits: Sequence[Split], curves: Mapping[ParallelSpec, Curve], spec: PlanSpec, n_devices: int, transfer_s: float,
    stack: StackParams | None = None,
) -> Options:  # fmt: skip
    """Pools whose rates match: for each decode pool the fewest prefill instances that keep up and meet the TTFT goal.

    Assumes: decode instances run at their full batch; a prompt's cache travels before its first token counts.
    """
    decode, prefill = _decoders(splits, curves, spec), _prefillers(splits, curves)
    limit = busy_limit(spec.ttft_s, transfer_s, 1.0 - spec.headroom_frac, prefill.times)
    if (limit > 0).any():
        prefill, limit = prefill.pick(limit > 0), limit[limit > 0]
    else:
        limit = np.full(len(limit), 0.5)
    parts = []
    for n_main in range(1, n_devices):
        rate = decode.requests_per_s[:, None] * n_main
        n_prefill = np.ceil(rate * (prefill.times.share_s / limit)[None, :] - 1e-9).astype(np.int64)
        total = decode.n_ranks[:, None] * n_main + n_prefill * prefill.n_ranks[None, :]
        d, p = np.nonzero(total <= n_devices)
        if not len(d):
            break
        rates, n_pre = rate[d, 0], n_prefill[d, p]
        queue_s, passes_s = pool_ttft(rates / n_pre, prefill.pick(p).times)
        client_s = wait_s(stack, decode.tpot_s[d], float(spec.input_tokens))
        parts.append(Options(decode.split[d], decode.per_rank[d], np.full(len(d), n_main), prefill.split[p], n_pre,
                             total[d, p], decode.tpot_s[d], queue_s + passes_s + transfer_s + client_s, rates))  # fmt: skip
    return concatenate(parts)


def concatenate(parts: Sequence[Options]) -> Options:
    """All in a row."""
    columns: dict[str, Any] = {}
    for name in Options.__dataclass_fields__:
        kind = np.float64 if name in ("tpot_s", "ttft_s", "requests_per_s") else np.int64
        columns[name] = np.concatenate([np.zeros(0, dtype=kind), *(getattr(part, name) for part in parts)])
    return Options(**columns)


def front(x: Floats, y: Floats) -> NDArray[np.intp]:
    """Indices of the points that no other beats in both, by rising x."""
    order = np.lexsort((-y, -x))
    best = np.maximum.accumulate(np.concatenate(([-np.inf], y[order][:-1])))
    return order[y[order] > best][::-1]


@dataclass(frozen=True, slots=True)
class _Decoders:
    split: Ints
    per_rank: Ints
    n_ranks: Ints
    tpot_s: Floats
    requests_per_s: Floats


@dataclass(frozen=True, slots=True)
class _Prefillers:
    split: Ints
    n_ranks: Ints
    times: PrefillTimes

    def pick(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> _Prefillers:
        t = self.times
        times = PrefillTimes(
            t.alone_s[which],
            t.share_s[which],
            t.dp_size[which],
            t.pp_size[which],
            t.n_chunks,
            t.n_per_pass,
            t.chunk_tokens,
        )
        return _Prefillers(self.split[which], self.n_ranks[which], times)


def _decoders(splits: Sequence[Split], curves: Mapping[ParallelSpec, Curve], spec: PlanSpec) -> _Decoders:
    """Decode instances at the batches of the grid and the largest within the goal; of equal ranks only those unbeaten."""
    rows = []
    for i, split in enumerate(splits):
        curve, pp = curves[split.stage], split.parallel.pp_size
        seconds = curve.decode(pp)
        k = [int(x) for x in curve.per_rank if x < split.max_per_rank] + [split.max_per_rank]
        if spec.tpot_s is not None:
            every = np.arange(1, split.max_per_rank + 1)
            k += [int(every[ok][-1]) for ok in (np.interp(every, curve.per_rank, seconds) <= spec.tpot_s,) if ok.any()]
        for per_rank in sorted(set(k)):
            d = float(np.interp(per_rank, curve.per_rank, seconds))
            batch = per_rank * split.parallel.dp_size * pp
            rows.append((i, per_rank, split.parallel.n_ranks, d, batch / (d * spec.output_tokens)))
    table = np.asarray(rows, dtype=float).T
    keep = _unbeaten(table[2], 1.0 / table[3], table[4])
    split_i, per_rank_k, n_ranks = (table[j][keep].astype(np.int64) for j in range(3))
    return _Decoders(split_i, per_rank_k, n_ranks, table[3][keep], table[4][keep])


def _prefillers(splits: Sequence[Split], curves: Mapping[ParallelSpec, Curve]) -> _Prefillers:
    """Prefill instances; of equal ranks only those that none beats in latency and rate."""
    n_ranks = np.asarray([s.parallel.n_ranks for s in splits], dtype=np.int64)
    each = [curves[s.stage].prefill(s.parallel.pp_size) for s in splits]
    alone, share, dp, pp = (
        np.asarray([getattr(t, name) for t in each], dtype=float)
        for name in ("alone_s", "share_s", "dp_size", "pp_size")
    )
    times = PrefillTimes(alone, share, dp, pp, each[0].n_chunks, each[0].n_per_pass, each[0].chunk_tokens)
    everyone = _Prefillers(np.arange(len(splits)), n_ranks, times)
    return everyone.pick(_unbeaten(n_ranks, 1.0 / alone, 1.0 / share))


def _unbeaten(groups: NDArray[np.generic], x: Floats, y: Floats) -> NDArray[np.intp]:
    found = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    return np.concatenate([at[front(x[at], y[at])] for at in found])
