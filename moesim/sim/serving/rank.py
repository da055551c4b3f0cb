"""One attention-DP rank of an engine: its queue, its running sequences and its KV blocks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from moesim.sim.serving.cohort import Cohort
from moesim.sim.serving.kv import BlockPool
from moesim.sim.serving.requests import Sequence

__all__ = ["Limits", "Plan", "Rank", "Speculation"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a scheduler may put into one pass and keep running."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    chunked_prefill: bool = True


@dataclass(frozen=True, slots=True)
class Speculation:
    """Draft tokens per step and the chance that each is accepted given that those before it were.

    Expected tokens per step: (1 - a^(k+1)) / (1 - a). Source: Leviathan et al., arXiv 2211.17192, equation 1.
    """

    n_draft_tokens: int
    acceptance_frac: float

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a step yields."""
        a, k = self.acceptance_frac, self.n_draft_tokens
        return float(k + 1) if a >= 1.0 else (1.0 - a ** (k + 1)) / (1.0 - a)

    def steps_for(self, n_tokens: int, rng: np.random.Generator) -> int:
        """Steps until `n_tokens` are out, drawn step by step."""
        if n_tokens <= 0:
            return 0
        a = self.acceptance_frac
        draws = rng.random((n_tokens, self.n_draft_tokens)) < a
        gained = 1 + np.cumprod(draws, axis=1).sum(axis=1)
        return int(np.searchsorted(np.cumsum(gained), n_tokens)) + 1


@dataclass(slots=True)
class Plan:
    """What one rank does in the next pass."""

    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    done: list[Sequence] = field(default_factory=list)
    n_decode: int = 0
    context_sum: float = 0.0
    context_max: float = 0.0

    @property
    def has_work(self) -> bool:
        """Whether anything is scheduled."""
        return self.n_decode > 0 or bool(self.chunks)


class Rank:
    """State that policies look at and change through a few verbs: `decode`, `grow`, `admit`, `preempt`."""

    __slots__ = (
        "_n_admitted", "cohort", "leaving", "limits", "n_cached_tokens", "n_preempted", "pool", "prefilling", "rng",
        "speculation", "tokens_per_decode", "waiting",
    )  # fmt: skip

    def __init__(
        self, pool: BlockPool, limits: Limits, speculation: Speculation | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        self.pool, self.limits, self.speculation = pool, limits, speculation
        self.rng = rng if rng is not None else np.random.default_rng(0)
        growth = speculation.tokens_per_step if speculation is not None else 1.0
        self.tokens_per_decode = 1 + (speculation.n_draft_tokens if speculation is not None else 0)
        self.cohort = Cohort(pool.block_size, growth)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.leaving = 0
        self.n_preempted = 0
        self.n_cached_tokens = 0
        self._n_admitted = 0

    @property
    def n_running(self) -> int:
        """Sequences that hold a slot: prefilling, decoding, and done but still in a pass under way."""
        return len(self.prefilling) + len(self.cohort) + self.leaving

    @property
    def n_unfinished(self) -> int:
        """Everything that was submitted here and is not done."""
        return self.n_running + len(self.waiting)

    def can_decode(self) -> bool:
        """Whether free blocks suffice for one more step of all decodes."""
        return self.cohort.new_blocks(1) <= self.pool.n_free

    def decode(self, plan: Plan) -> None:
        """Give every decoding sequence one step; the last running sequence is preempted until blocks suffice."""
        while len(self.cohort) and not self.can_decode():
            self.preempt()
        if not len(self.cohort):
            return
        self.pool.take(self.cohort.new_blocks(1))
        plan.n_decode = len(self.cohort)
        plan.context_sum, plan.context_max = self.cohort.context_sum, self.cohort.context_max
        plan.done = self.cohort.advance(1)
        self.leaving += len(plan.done)

    def reserve(self, seq: Sequence, tokens: int) -> bool:
        """Blocks for a sequence to hold `tokens`; False if there are not enough."""
        need = self.pool.blocks_for(tokens) - seq.held
        if need > self.pool.n_free:
            return False
        if need > 0:
            self.pool.take(need)
            seq.held += need
        return True

    def reuse_prefix(self, seq: Sequence) -> int:
        """Cached leading tokens of a waiting sequence, without taking them yet."""
        request = seq.request
        return self.pool.hits(request.prefix_hashes, request.hash_tokens, request.input_tokens)

    def need(self, seq: Sequence, n_tokens: int, n_hits: int, room_for: int = 0) -> int:
        """Free blocks that starting a waiting sequence takes, cached ones that nobody uses included."""
        cached = n_hits * seq.request.hash_tokens
        new = self.pool.blocks_for(max(cached + n_tokens, room_for)) - self.pool.blocks_for(cached)
        return new + self.pool.n_idle_among(seq.request.prefix_hashes[:n_hits])

    def admit(self, seq: Sequence, n_tokens: int, n_hits: int, now: float, *, room_for: int = 0) -> bool:
        """Move the head of the queue into the batch with its first `n_tokens` uncached tokens; False if blocks are short.

        `room_for` reserves blocks for that many tokens at once (policies that never evict).
        """
        request, pool = seq.request, self.pool
        if self.need(seq, n_tokens, n_hits, room_for) > pool.n_free:
            return False
        hit = request.prefix_hashes[:n_hits]
        cached = n_hits * request.hash_tokens
        need = pool.blocks_for(max(cached + n_tokens, room_for)) - pool.blocks_for(cached)
        pool.share(hit)
        pool.take(need)
        seq.shared, seq.held = hit, pool.blocks_for(cached) + need
        seq.computed, seq.cached = cached, cached
        pool.n_hit_tokens += cached
        pool.n_seen_tokens += request.input_tokens
        self.n_cached_tokens += cached
        if seq.scheduled_s < 0.0:
            seq.scheduled_s = now
        self._n_admitted += 1
        seq.order = self._n_admitted
        self.prefilling.append(seq)
        return True

    def admit_decoding(self, seq: Sequence, now: float) -> bool:
        """Take over a sequence that was prefilled elsewhere; False if its blocks do not fit."""
        if not self.reserve(seq, seq.final_context if self.cohort.is_reserved else seq.target):
            return False
        if seq.scheduled_s < 0.0:
            seq.scheduled_s = now
        self._n_admitted += 1
        seq.order, seq.computed, seq.prefilled_elsewhere = self._n_admitted, seq.target, False
        self.join(seq)
        return True

    def join(self, seq: Sequence) -> None:
        """A sequence whose prompt is fully scheduled starts to decode with the next pass."""
        left = seq.request.output_tokens - seq.generated
        seq.steps_left = left if self.speculation is None else self.speculation.steps_for(left, self.rng)
        seq.blocks = seq.held
        self.cohort.join(seq, seq.target)

    def publish(self, seq: Sequence) -> None:
        """Name the computed prompt blocks of a sequence for others to find."""
        request, n_hits = seq.request, len(seq.shared)
        full = request.input_tokens // request.hash_tokens
        rest = request.prefix_hashes[n_hits:full]
        if rest:
            n_new = self.pool.publish(rest, request.hash_tokens)
            seq.shared = request.prefix_hashes[: n_hits + n_new]

    def preempt(self) -> None:
        """Send the sequence admitted last back to the head of the queue; it will be recomputed."""
        decoding = next(reversed(self.cohort.members.values())) if self.cohort.members else None
        filling = self.prefilling[-1] if self.prefilling else None
        if filling is not None and (decoding is None or filling.order > decoding.order):
            self.prefilling.pop()
            self.free(filling)
            seq = filling
        elif decoding is not None:
            context = self.cohort.context_of(decoding)
            self.free(decoding)
            self.cohort.leave(decoding)
            decoding.generated += max(0, context - decoding.join_context)
            decoding.generated = min(decoding.generated, decoding.request.output_tokens - 1)
            decoding.target = decoding.request.input_tokens + decoding.generated
            seq = decoding
        else:
            return
        seq.computed = 0
        seq.n_preempted += 1
        self.n_preempted += 1
        self.waiting.appendleft(seq)

    def free(self, seq: Sequence) -> None:
        """Give back what a sequence holds."""
        held = max(seq.held, self.cohort.blocks_of(seq)) if seq.order in self.cohort.members else seq.held
        shared_blocks = sum(self.pool.blocks_for(seq.request.hash_tokens) for _ in seq.shared)
        self.pool.release(seq.shared)
        self.pool.give(held - shared_blocks)
        seq.shared, seq.held = (), 0
