"""Closed forms of a deployment in steady state, for numbers and arrays alike.

Letters: k sequences per attention-DP rank and pipeline turn, R such ranks, P stages, b = k R P, d seconds of a decode round, O
output tokens, u = k / O prompts per rank and round, a seconds of one prefill alone, c its chunks, f seconds of one prefill on
every rank at once, s seconds per prompt where passes are full, g what a prompt on one more rank adds. Ranks go in step: where one
prefills, all wait, and the rank with most prompts sets the length of the pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["PrefillTimes", "Served", "busy_limit", "colocated", "pool_ttft"]

Num = Any
#: The busiest that a rank's prompt queue is taken to be: beyond it waits grow without end and the closed loop limits them.
MOST_BUSY = 0.95
#: Prompts of one pass and rank that are told apart; more are short, and their passes even.
MOST_PACKED = 24
STEPS = 6


@dataclass(frozen=True, slots=True)
class PrefillTimes:
    """a, f, s of an instance, its ranks, chunks per prompt and prompts per pass and rank; numbers or arrays of instances."""

    alone_s: Num
    round_s: Num
    share_s: Num
    dp_size: Num
    pp_size: Num
    n_chunks: int
    n_per_pass: int
    chunk_tokens: int

    @property
    def per_rank_s(self) -> Num:
        """What each further prefilling rank adds to a prompt's passes."""
        return np.maximum(self.round_s - self.alone_s, 0.0) / np.maximum(self.dp_size - 1, 1)

    @property
    def packed_s(self) -> Num:
        """What each further prompt on the rank that has most adds, beside g: a full pass less what its prompts add anyway."""
        return np.maximum(self.share_s * self.dp_size * self.pp_size - self.per_rank_s * self.dp_size, 0.0)

    @property
    def full_s(self) -> Num:
        """Seconds of a prompt's passes when all are full."""
        return np.maximum(self.share_s * (self.dp_size * self.pp_size) * self.n_per_pass, self.round_s)

    def most_on_a_rank(self, mean: Num) -> Num:
        """Expected chunks of the fullest rank's pass, if chunks come to each rank as Poisson of `mean`, and as many as fit."""
        total, term, below = np.zeros(np.shape(mean)), np.exp(-mean), np.zeros(np.shape(mean))
        for m in range(min(self.n_per_pass, MOST_PACKED)):
            below = np.minimum(below + term, 1.0)
            total = total + (1.0 - below**self.dp_size)
            term = term * mean / (m + 1.0)
        return total


@dataclass(frozen=True, slots=True)
class Served:
    """Means of an instance in steady state."""

    tpot_s: Num
    ttft_s: Num
    queue_s: Num
    requests_per_s: Num


def colocated(decode_s: Num, attention_s: Num, per_rank: Num, prefill: PrefillTimes, output_tokens: int) -> Served:
    """An instance that prefills and decodes, with all its sequences in flight.

    A round takes d + e(u) seconds; a request that decodes sees the prompts of the b - 1 others. e(u) is the longer of the work,
    u R P s, and of the passes in step: a - g where any rank prefills, 1 - exp(-u c R) of them, R (P s - g) for each further
    prompt on the fullest rank, and g for every prompt; less what decoding saves in such a pass, where weights are read anyway:
    all but its attention and k more rows. A prompt waits for the pass that runs (renewal theory) and for those before it on
    its rank (M/D/1), then takes c passes.
    Assumes: steady state, prompts spread evenly over ranks, prefill and decode share passes (vLLM's default; an engine that runs
    them apart saves nothing). Source: Pollaczek-Khinchine; the rest is an assumption that the
    serving simulation checks.
    """
    batch = per_rank * (prefill.dp_size * prefill.pp_size) * 1.0
    others = (batch - 1.0) / batch
    rate = per_rank / output_tokens
    saved_s = decode_s - attention_s - prefill.alone_s / prefill.n_chunks * (per_rank / prefill.chunk_tokens)
    saved_s = np.maximum(saved_s, 0.0)
    prefill_s, active = _prefill_per_round(rate, prefill, saved_s)
    round_s = decode_s + prefill_s
    tpot_s = decode_s + _prefill_per_round(rate * others, prefill, saved_s)[0]
    with_prefill_s = decode_s + prefill_s / active
    residual_s = ((1.0 - active) * decode_s**2 + active * with_prefill_s**2) / (2.0 * round_s)
    busy = np.minimum(rate * others * prefill.n_chunks / prefill.n_per_pass, MOST_BUSY)
    queue_s = others * residual_s + busy**2 / (1.0 - busy) * with_prefill_s / 2.0
    ttft_s = queue_s + prefill.alone_s + others * prefill.n_chunks * decode_s
    return Served(tpot_s, ttft_s, queue_s, batch / (round_s * output_tokens))


def _prefill_per_round(rate: Num, prefill: PrefillTimes, saved_s: Num) -> tuple[Num, Num]:
    """e(u), and the share of rounds in which any rank prefills."""
    per_rank = rate * prefill.n_chunks
    active = np.maximum(-np.expm1(-per_rank * prefill.dp_size), 1e-12)
    g = prefill.per_rank_s
    further = np.maximum(prefill.most_on_a_rank(per_rank) - active, 0.0)
    in_step = (
        (prefill.alone_s - g) * active + prefill.packed_s * further
    ) / prefill.n_chunks + g * rate * prefill.dp_size
    work = rate * (prefill.dp_size * prefill.pp_size) * prefill.share_s
    longer = np.maximum(work, in_step)
    # a pass with both is no shorter than its decodes alone
    return longer - np.minimum(active * saved_s, longer), np.minimum(active, 1.0)


def pool_ttft(rate_per_s: Num, prefill: PrefillTimes) -> tuple[Num, Num]:
    """Wait and passes of a prompt at a prefill instance that gets `rate_per_s` prompts, at most 1 / s of them.

    A prompt waits for its rank's queue (M/D/1), and where ranks go in step at least for half the pass of the others.
    """
    a, g, ranks = prefill.alone_s, prefill.per_rank_s, np.asarray(prefill.dp_size)
    passes_s, active = a, 0.0
    for _ in range(STEPS):  # to the length at which as many prompts come during a pass as it takes
        n = rate_per_s * passes_s
        active = np.maximum(-np.expm1(-n), 1e-12)
        further = np.maximum(prefill.most_on_a_rank(n / ranks) / active - 1.0, 0.0)
        longer = a - g + prefill.packed_s * further + g * np.minimum(n / active, ranks * prefill.n_per_pass)
        passes_s = np.where(ranks > 1, np.clip(longer, a, np.maximum(prefill.full_s, a)), a)
    busy = np.minimum(rate_per_s * prefill.share_s, 0.999)
    return passes_s * 0.5 * np.maximum(busy / (1.0 - busy), np.where(ranks > 1, active, 0.0)), passes_s


def busy_limit(ttft_s: float | None, transfer_s: float, most: float, prefill: PrefillTimes) -> Num:
    """The busiest that each prefill instance may be to meet the TTFT goal, in steps of a fiftieth; 0 where it cannot."""
    limit = np.zeros(np.shape(prefill.alone_s))
    for busy in np.linspace(most / 50.0, most, 50):
        wait_s, passes_s = pool_ttft(busy / prefill.share_s, prefill)
        ok = wait_s + passes_s + transfer_s <= (np.inf if ttft_s is None else ttft_s)
        limit = np.where(ok, busy, limit)
    return limit
