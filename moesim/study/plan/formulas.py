"""Closed forms of a deployment in steady state, for numbers and arrays alike.

Letters: k sequences per attention-DP rank and pipeline turn, R such ranks, P stages, b = k R P, d seconds of a decode round, O
output tokens, a seconds of one prefill (on every rank: others are padded to it), c its chunks, s seconds per prompt where passes
are full. Ranks go in step: where one prefills, all wait, and the rank with most prompts sets the length of the pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.cost.stack import StackParams
from moesim.specs.parallel import DpPrefill
from moesim.study.host import wait_s
from moesim.study.steady import PromptTimes, in_step
from moesim.study.stepping import Stepping

__all__ = ["PrefillTimes", "Served", "busy_limit", "colocated", "pool_ttft"]

Num = Any
#: Ranks in step, prompts beside decodes.
LIKE_VLLM = Stepping(DpPrefill.LOCKSTEP, 0, is_apart=False, is_spread=True)
#: Prompts of one pass and rank that are told apart; more are short, and their passes even.
MOST_PACKED = 24
STEPS = 6


@dataclass(frozen=True, slots=True)
class PrefillTimes:
    """a and s of an instance, its ranks, chunks per prompt and prompts per pass and rank; numbers or arrays of instances."""

    alone_s: Num
    share_s: Num
    dp_size: Num
    pp_size: Num
    n_chunks: int
    n_per_pass: int
    chunk_tokens: int

    @property
    def input_tokens(self) -> int:
        """Tokens of a prompt, up to its last chunk's."""
        return self.n_chunks * self.chunk_tokens

    @property
    def packed_s(self) -> Num:
        """What each further prompt on the rank that has most adds."""
        return np.maximum(self.full_s - self.alone_s, 0.0) / max(self.n_per_pass - 1, 1)

    @property
    def full_s(self) -> Num:
        """Seconds of a prompt's passes when all are full."""
        return np.maximum(self.share_s * (self.dp_size * self.pp_size) * self.n_per_pass, self.alone_s)

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


def colocated(
    decode_s: Num, attention_s: Num, per_rank: Num, prefill: PrefillTimes, output_tokens: int,
    stepping: Stepping = LIKE_VLLM, stack: StackParams | None = None,
) -> Served:  # fmt: skip
    """An instance that prefills and decodes, with all its sequences in flight.

    The mean pass is that of ranks in step (`moesim.study.steady`), of which there may be one; where ranks take prompts together,
    as long as one rank's. A prompt comes as a pass ends and waits for the next, which was scheduled before, for those before it
    on its rank and for other ranks where that is the rule, then takes c passes; its client waits as it does in `run`.
    Assumes: steady state, prompts spread evenly over ranks, prefill and decode share passes unless the engine runs them apart.
    """
    batch = per_rank * (prefill.dp_size * prefill.pp_size) * 1.0
    others, is_in_step = (batch - 1.0) / batch, stepping.is_in_step
    ranks = prefill.dp_size if is_in_step else 1
    prompts = PromptTimes(
        prefill.alone_s, prefill.full_s, prefill.n_chunks, prefill.n_per_pass, prefill.chunk_tokens, ranks
    )
    found = in_step(
        decode_s, attention_s, batch * ranks / prefill.dp_size, output_tokens, prompts, pp_size=prefill.pp_size,
        hold_passes=stepping.hold_passes if ranks > 1 else 0, is_apart=stepping.is_apart, is_spread=stepping.is_spread,
    )  # fmt: skip
    queue_s = (others + found.waits) * found.pass_s
    client_s = wait_s(stack, found.seen_s, float(prefill.input_tokens))
    ttft_s = client_s + queue_s + prefill.alone_s + others * prefill.n_chunks * attention_s
    return Served(found.seen_s, ttft_s, queue_s, batch / (found.cycle_s * output_tokens))


def pool_ttft(rate_per_s: Num, prefill: PrefillTimes) -> tuple[Num, Num]:
    """Wait and passes of a prompt at a prefill instance that gets `rate_per_s` prompts, at most 1 / s of them.

    A prompt waits for its rank's queue (M/D/1), and where ranks go in step at least for half the pass of the others.
    """
    a, ranks = prefill.alone_s, np.asarray(prefill.dp_size)
    passes_s, active = a, 0.0
    for _ in range(STEPS):  # to the length at which as many prompts come during a pass as it takes
        n = rate_per_s * passes_s
        active = np.maximum(-np.expm1(-n), 1e-12)
        further = np.maximum(prefill.most_on_a_rank(n / ranks) / active - 1.0, 0.0)
        passes_s = np.where(ranks > 1, np.clip(a + prefill.packed_s * further, a, prefill.full_s), a)
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
