"""Steady state of attention-DP ranks that step together: the mean pass where prompts come to the ranks one by one.

Letters: R ranks, k sequences in flight per rank and pipeline turn, O output tokens, d seconds of a pass of decodes, C prompts
that fit a rank's pass, c passes of a prompt, u prompts per rank and pass, r = u c / C, H passes that ranks with prompts wait for
the others, L passes from one start of prompts to the next, a = u L prompts of a rank that start then.

A pass with prompts takes as long as if every rank had as many as the fullest: engines pad to it, and all wait for it. Requests
end at random passes, so prompts come as Poisson. At a start a rank's queue is Poisson of mean q, of which C fit, so that
E[min(N, C)] = a gives q; 1 - exp(-R q) of starts have any prompt, and the fullest rank has F = sum over m < C of 1 - P(N <= m)^R,
or of P(N' > m R), N' of mean R q, where those that come together are spread over the ranks.
H = 0 starts what is there in every pass, L = 1: for C = 1, 1 - (1 - u c)^R of passes have prompts. H > 0 waits for prompts on all
ranks: L = c + idle + W, P(W <= t) = (1 - P(N <= C) exp(-u t))^R, at most H. A request takes O + w passes, u = k / (O + w), with
w = L (q / a - 1) + W (1 + 1 / (R a)) / 2, or for H = 0 that of a queue, c / C x r / (2 (1 - r)).
Assumes: ranks independent of each other; lengths that vary, so that requests do not march in step; waiting slows no decode.
Source: slotted queue with bulk service and M/D/1; mean field between ranks; the serving simulation checks it (docs/serving.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PromptTimes", "Steady", "in_step"]

Num = Any
Floats = NDArray[np.float64]
#: Points of a table over the square root of r, the busiest r in it, prompts of a pass that are told apart, steps of its solution.
N_POINTS, MOST_BUSY, MOST_PACKED, N_STEPS = 129, 0.995, 64, 30
N_HALVINGS = 16


@dataclass(frozen=True, slots=True)
class PromptTimes:
    """Seconds of one prompt on every rank and of as many as fill a pass; numbers, or arrays of cases on R ranks.

    `n_chunks` is c, `n_per_pass` C (1 where c is more), `chunk_tokens` the new tokens of a rank's largest chunk.
    """

    one_s: Num
    full_s: Num
    n_chunks: Num
    n_per_pass: Num
    chunk_tokens: Num
    dp_size: int

    @property
    def further_s(self) -> Num:
        """Seconds of each further prompt on the fullest rank."""
        further = np.asarray(self.n_per_pass) - 1.0
        return np.where(further > 0.0, (self.full_s - self.one_s) / np.maximum(further, 1.0), self.one_s)


@dataclass(frozen=True, slots=True)
class Steady:
    """Means: seconds of a pass, of one as a request sees it beside its own prompt, and of time per request in flight and token.

    `waits` are passes that a prompt waits for its rank's queue or for other ranks, `busy_frac` the share of passes with prompts.
    """

    pass_s: Num
    seen_s: Num
    cycle_s: Num
    waits: Num
    busy_frac: Num


def in_step(
    decode_s: Num, attention_s: Num, in_flight: Num, output_tokens: Num, prompts: PromptTimes, *, pp_size: int = 1,
    hold_passes: int = 0, is_apart: bool = False, is_spread: bool = True,
) -> Steady:  # fmt: skip
    """The steady state, see the module.

    Args:
        decode_s: d, host time included.
        attention_s: of the decodes' attention, which a pass with prompts takes as well; their weights it reads anyway.
        in_flight: requests of the instance.
        output_tokens: O.
        prompts: T.
        pp_size: pipeline turns that share the requests.
        hold_passes: H.
        is_apart: a rank's prompts run without its decodes (SGLang).
        is_spread: prompts that come together go to different ranks.
    """
    in_flight = np.asarray(in_flight, dtype=float)
    per_rank = in_flight / float(prompts.dp_size * pp_size)
    tables = _Tables.of(prompts, hold_passes, is_spread)
    busy, waits = tables.load(per_rank, output_tokens, in_flight)
    saved_s = decode_s
    if is_apart:  # a sequence decodes only in passes without a prompt of its rank
        busy, waits = tables.load(per_rank, output_tokens / (1.0 - tables.shares(busy)[2]), in_flight)
    else:
        row_s = prompts.one_s / prompts.n_chunks / np.maximum(prompts.chunk_tokens, 1.0)
        saved_s = np.maximum(decode_s - attention_s - row_s * per_rank, 0.0)
        saved_s = np.minimum(saved_s, prompts.one_s / prompts.n_chunks)  # no shorter than its decodes alone

    further_s, others = prompts.further_s, (in_flight - 1.0) / in_flight
    starts, fullest, own = tables.shares(np.stack([busy, busy * others]))  # all passes, and as a request sees them
    busy_frac = np.minimum(starts * prompts.n_chunks, 1.0)
    prompts_s = starts * (prompts.one_s - further_s) + fullest * further_s - busy_frac * saved_s
    pass_s, seen_s = decode_s + prompts_s * _stalled(busy_frac, pp_size)
    if is_apart:
        seen_s = seen_s / (1.0 - own[1])
    cycle_s = pass_s * per_rank / (busy * tables.most * output_tokens)  # u R P prompts per pass, O tokens each
    return Steady(pass_s, seen_s, cycle_s, waits * others, busy_frac[0])


def _stalled(busy_frac: Num, pp_size: int) -> Num:
    """How much longer a turn's prompts take with P stages: a long pass holds all P of them up on its way through the stages, and
    others close behind it cost a P-th of it each.

    Of a turn's P passes some are long in x = 1 - (1 - f)^P of turns, f P on average: (f + (1 - 1 / P) x (1 - f)) / f, which is P
    where long passes are rare, and 1 where all are long. Assumption in between; the simulated pipeline checks it.
    """
    if pp_size == 1:
        return 1.0
    f = np.clip(busy_frac, 1e-12, 1.0)
    any_frac = -np.expm1(pp_size * np.log1p(-np.minimum(f, 1.0 - 1e-12)))
    return 1.0 + (1.0 - 1.0 / pp_size) * any_frac * (1.0 - f) / f


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """Tables of all (C, c) among the cases, one below the other; `key` is each case's, `most` its C / c.

    Columns over r: starts per pass / r, prompts of the fullest rank per pass / r, a rank's share of passes with prompts, w.
    """

    columns: tuple[Floats, ...]
    key: NDArray[np.intp] | int
    most: Num
    hold_passes: int

    @classmethod
    def of(cls, prompts: PromptTimes, hold_passes: int, is_spread: bool) -> _Tables:
        """The tables that some cases need."""
        c = np.asarray(prompts.n_chunks, dtype=np.int64)
        fit = np.where(c > 1, 1, np.asarray(prompts.n_per_pass, dtype=np.int64))
        if hold_passes:  # a start of more is as good as several
            fit = np.minimum(fit, MOST_PACKED)
        codes, most = fit * 65536 + np.minimum(c, 65535), fit / c
        if codes.size == 1:
            code = int(codes.flat[0])
            return cls(
                _table(prompts.dp_size, code // 65536, code % 65536, hold_passes, is_spread), 0, most, hold_passes
            )
        distinct, key = np.unique(codes, return_inverse=True)
        found = [_table(prompts.dp_size, int(x) // 65536, int(x) % 65536, hold_passes, is_spread) for x in distinct]
        columns = tuple(np.concatenate([t[i] for t in found]) for i in range(4))
        return cls(columns, np.reshape(key, codes.shape) * N_POINTS, most, hold_passes)

    def at(self, busy: Num, names: Sequence[int]) -> list[Num]:
        """Columns at r, linear between points of its square root."""
        x = np.sqrt(np.clip(busy, 0.0, MOST_BUSY) / MOST_BUSY) * (N_POINTS - 1)
        i = np.minimum(x.astype(np.intp), N_POINTS - 2)
        w, place = x - i, i + self.key
        return [self.columns[n][place] * (1.0 - w) + self.columns[n][place + 1] * w for n in names]

    def shares(self, busy: Num) -> tuple[Num, Num, Num]:
        """Starts per pass, prompts of the fullest rank per pass, a rank's share of passes with prompts."""
        starts, fullest, own = self.at(busy, (0, 1, 2))
        return np.minimum(starts * busy, np.minimum(self.most, 1.0)), np.minimum(fullest * busy, self.most), own

    def load(self, per_rank: Num, output_tokens: Num, in_flight: Num) -> tuple[Num, Num]:
        """r and w that a closed loop settles at: u (O + w) = k."""
        if self.hold_passes == 0:
            a, k = np.maximum(output_tokens * self.most, 1.0), per_rank  # r a + r^2 / (2 (1 - r)) = k
            half = a + k
            busy = 2.0 * k / (half + np.sqrt(half * half - 4.0 * (a - 0.5) * k))
            busy = np.minimum(busy, MOST_BUSY)
            return busy, busy / (2.0 * (1.0 - busy) * self.most)
        # where nothing else decodes, nobody waits
        is_held, shape = np.minimum(in_flight - 1.0, 1.0), np.shape(per_rank * output_tokens * self.most)
        low, high = np.zeros(shape), np.full(shape, math.sqrt(MOST_BUSY))
        for _ in range(N_HALVINGS):
            root = 0.5 * (low + high)
            waits = is_held * self.at(root * root, (3,))[0]
            is_more = root * root * self.most * (output_tokens + waits) > per_rank
            low, high = np.where(is_more, low, root), np.where(is_more, root, high)
        return high * high, is_held * self.at(high * high, (3,))[0]


@lru_cache(maxsize=512)
def _table(n_ranks: int, n_fit: int, n_chunks: int, hold_passes: int, is_spread: bool) -> tuple[Floats, ...]:
    """Columns of `_Tables` for one (R, C, c, H)."""
    busy = MOST_BUSY * (np.arange(N_POINTS) / (N_POINTS - 1)) ** 2
    busy[0] = 1e-9
    if hold_passes == 0:  # ranks take chunks as they come
        q = _queue(busy * n_fit, n_fit)
        any_rank, own = -np.expm1(-n_ranks * q), np.minimum(-np.expm1(-q), MOST_BUSY)
        return (
            any_rank / n_chunks / busy,
            _fullest(q, n_fit, n_ranks, is_spread=is_spread) / n_chunks / busy,
            own,
            np.zeros(N_POINTS),
        )
    rate = busy * n_fit / n_chunks
    low, high = rate * n_chunks, np.full(N_POINTS, 4.0 * n_fit + 20.0)
    for _ in range(N_STEPS):  # q, by halving
        q = 0.5 * (low + high)
        is_more = _fitting(q, n_fit)[0] > rate * sum(_gap(rate, q, n_fit, n_ranks, n_chunks, hold_passes))
        low, high = np.where(is_more, low, q), np.where(is_more, q, high)
    idle, held = _gap(rate, q, n_fit, n_ranks, n_chunks, hold_passes)
    gap = idle + held
    a, held = rate * gap, held - n_chunks
    own = np.minimum(-np.expm1(-q) / gap * n_chunks, MOST_BUSY)
    fullest = np.maximum(_fullest(q, n_fit, n_ranks, is_spread=is_spread), 1.0)  # a start has a prompt
    waits = gap * np.maximum(q / a - 1.0, 0.0) + 0.5 * held * (1.0 + np.minimum(1.0 / (n_ranks * a), 1.0))
    return 1.0 / gap / busy, fullest / gap / busy, own, waits


def _queue(mean: Floats, n_fit: int) -> Floats:
    """q with E[min(N, C)] = mean, by Newton's method, which comes from below to a root of a concave function."""
    if n_fit == 1:
        return -np.log1p(-mean)
    if n_fit > MOST_PACKED:
        return mean
    q = mean
    for _ in range(12):
        got, _, slope = _fitting(q, n_fit)
        q = q + (mean - got) / np.maximum(slope, 1e-3)
    return q


def _fitting(q: Floats, n_fit: int) -> tuple[Floats, Floats, Floats]:
    """E[min(N, C)], P(N <= C) and P(N < C) of N Poisson of mean q."""
    if n_fit > MOST_PACKED:
        return np.minimum(q, n_fit * 1.0), np.ones(len(q)), np.ones(len(q))
    below = _below(q, n_fit)
    return n_fit - below[:-1].sum(axis=0), below[-1], below[-2]


def _below(q: Floats, most: int) -> Floats:
    """P(N <= m) for m = 0..most, one row each."""
    m = np.arange(most + 1.0)
    terms: Floats = np.exp(np.multiply.outer(m, np.log(q)) - q - np.cumsum(np.log(np.maximum(m, 1.0)))[:, None])
    found: Floats = np.minimum(np.cumsum(terms, axis=0), 1.0)
    return found


def _fullest(q: Floats, n_fit: int, n_ranks: int, *, is_spread: bool) -> Floats:
    """Mean of the most prompts that any rank starts."""
    n = min(n_fit, MOST_PACKED)
    over = 1.0 - (_below(n_ranks * q, n_ranks * (n - 1))[::n_ranks] if is_spread else _below(q, n - 1) ** n_ranks)
    found = np.asarray(over.sum(axis=0))
    if n_fit <= MOST_PACKED:
        return found
    many = q + ((n_ranks - 1) / (2 * n_ranks) if is_spread else np.sqrt(2.0 * math.log(n_ranks) * q))
    return np.where(q > 0.25 * MOST_PACKED, np.minimum(many, n_fit * 1.0), found)


def _gap(rate: Floats, q: Floats, n_fit: int, n_ranks: int, n_chunks: int, hold_passes: int) -> tuple[Floats, Floats]:
    """Passes without a prompt anywhere, and those from the first prompt to the end of its start."""
    none_left = _fitting(q, n_fit)[1]
    there = np.exp(-np.multiply.outer(np.arange(hold_passes * 1.0), rate))
    held = (1.0 - (1.0 - none_left * there) ** n_ranks).sum(axis=0)
    return none_left**n_ranks * np.exp(-n_ranks * rate) / -np.expm1(-n_ranks * rate), held + n_chunks
