"""Closed forms of a deployment in steady state, for numbers and arrays alike.

Letters: k sequences per attention-DP rank and pipeline turn, R such ranks, P stages, b = k R P, d seconds of a decode round, O
output tokens, u = k / O prompts per rank and round, a seconds of one prefill alone, c its chunks, f seconds of one prefill on
every rank at once, s seconds per prompt where passes are full. Ranks go in step: where one prefills, all wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["PrefillTimes", "Served", "busy_limit", "colocated", "pool_ttft"]

Num = Any
#: The busiest that a rank's prompt queue is taken to be: beyond it waits grow without end and the closed loop limits them.
MOST_BUSY = 0.95


@dataclass(frozen=True, slots=True)
class PrefillTimes:
    """a, f, s of an instance, its ranks, chunks per prompt and prompts per pass and rank; numbers or arrays of instances."""

    alone_s: Num
    round_s: Num
    share_s: Num
    dp_size: Num
    n_chunks: int
    n_per_pass: int
    chunk_tokens: int

    @property
    def per_rank_s(self) -> Num:
        """What each further prefilling rank adds to a prompt's passes."""
        return np.maximum(self.round_s - self.alone_s, 0.0) / np.maximum(self.dp_size - 1, 1)

    def passes(self, n_active: Num) -> Num:
        """Seconds of a prompt's passes while `n_active` ranks prefill."""
        return self.alone_s + (np.clip(n_active, 1.0, self.dp_size) - 1.0) * self.per_rank_s


@dataclass(frozen=True, slots=True)
class Served:
    """Means of an instance in steady state."""

    tpot_s: Num
    ttft_s: Num
    queue_s: Num
    requests_per_s: Num


def colocated(
    decode_s: Num, attention_s: Num, per_rank: Num, pp_size: int, prefill: PrefillTimes, output_tokens: int
) -> Served:
    """An instance that prefills and decodes, with all its sequences in flight.

    A round takes d + e(u) seconds; a request that decodes sees the prompts of the b - 1 others. e(u) is the longer of the work,
    u R P s, and of the passes that some rank spends on prompts, 1 - exp(-u c R) of all, each of the length of its busiest rank;
    less what decoding saves in such a pass, where weights are read anyway: all but its attention and k more rows.
    A prompt waits for the pass that runs (renewal theory) and for those before it on its rank (M/D/1), then takes c passes.
    Assumes: steady state, prompts spread evenly over ranks, prefill and decode share passes (vLLM's default; an engine that runs
    them apart saves nothing). Source: Pollaczek-Khinchine; the rest is an assumption that the
    serving simulation checks.
    """
    batch = per_rank * (prefill.dp_size * pp_size) * 1.0
    others = (batch - 1.0) / batch
    rate = per_rank / output_tokens
    saved_s = decode_s - attention_s - prefill.alone_s / prefill.n_chunks * (per_rank / prefill.chunk_tokens)
    saved_s = np.maximum(saved_s, 0.0)
    prefill_s, active = _prefill_per_round(rate, pp_size, prefill, saved_s)
    round_s = decode_s + prefill_s
    tpot_s = decode_s + _prefill_per_round(rate * others, pp_size, prefill, saved_s)[0]
    with_prefill_s = decode_s + prefill_s / active
    residual_s = ((1.0 - active) * decode_s**2 + active * with_prefill_s**2) / (2.0 * round_s)
    busy = np.minimum(rate * others * prefill.n_chunks / prefill.n_per_pass, MOST_BUSY)
    queue_s = others * residual_s + busy**2 / (1.0 - busy) * with_prefill_s / 2.0
    ttft_s = queue_s + prefill.alone_s + others * prefill.n_chunks * decode_s
    return Served(tpot_s, ttft_s, queue_s, batch / (round_s * output_tokens))


def _prefill_per_round(rate: Num, pp_size: int, prefill: PrefillTimes, saved_s: Num) -> tuple[Num, Num]:
    """e(u), and the share of rounds in which any rank prefills."""
    n = rate * prefill.n_chunks * prefill.dp_size
    active = np.maximum(-np.expm1(-n), 1e-12)
    in_step = active * prefill.passes(n / active) / prefill.n_chunks
    work = rate * (prefill.dp_size * pp_size) * prefill.share_s
    longer = np.maximum(work, in_step)
    return longer - np.minimum(active * saved_s, 0.5 * longer), np.minimum(active, 1.0)


def pool_ttft(rate_per_s: Num, prefill: PrefillTimes) -> tuple[Num, Num]:
    """Wait and passes of a prompt at a prefill instance that gets `rate_per_s` prompts, at most 1 / s of them.

    A prompt waits for its rank's queue (M/D/1), and where ranks go in step at least for half the pass of the others.
    """
    passes_s = prefill.passes(rate_per_s * prefill.round_s)
    busy = np.minimum(rate_per_s * prefill.share_s, 0.999)
    in_step = -np.expm1(-rate_per_s * passes_s) * (np.asarray(prefill.dp_size) > 1)
    return passes_s * 0.5 * np.maximum(busy / (1.0 - busy), in_step), passes_s


def busy_limit(ttft_s: float | None, transfer_s: float, most: float, prefill: PrefillTimes) -> Num:
    """The busiest that each prefill instance may be to meet the TTFT goal, in steps of a fiftieth; 0 where it cannot."""
    limit = np.zeros(np.shape(prefill.alone_s))
    for busy in np.linspace(most / 50.0, most, 50):
        wait_s, passes_s = pool_ttft(busy / prefill.share_s, prefill)
        ok = wait_s + passes_s + transfer_s <= (np.inf if ttft_s is None else ttft_s)
        limit = np.where(ok, busy, limit)
    return limit
