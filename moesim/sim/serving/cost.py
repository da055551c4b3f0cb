"""Seconds of a pass from lookups that were made once: what does not depend on contexts by tokens, attention by contexts, and
experts by the tokens and the routing drawn for this very pass.

Letters: T tokens of a pass, n decodes in it, c their mean context, q prefill tokens, p the context before them, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.cost.op_tables import AttentionTable, at_contexts
from moesim.cost.stack import StackParams, eager_s
from moesim.sim.serving.draws import ExpertDraws

__all__ = ["Chunk", "PassCost", "RankWork", "StepCost", "pad_sizes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """`n_tokens` of a prompt computed in one pass after `context` tokens that are cached already."""

    n_tokens: int
    context: int


@dataclass(frozen=True, slots=True)
class RankWork:
    """What one attention-DP rank does in a pass; `context_sum` and `context_max` are of its `n_decode` sequences.

    `tokens_per_decode` is above 1 with speculative decoding; `n_sampled` sequences need logits.
    """

    n_decode: int = 0
    context_sum: float = 0.0
    context_max: float = 0.0
    chunks: tuple[Chunk, ...] = ()
    n_sampled: int = 0

    @property
    def n_prefill_tokens(self) -> int:
        """New prompt tokens."""
        return sum(chunk.n_tokens for chunk in self.chunks)


class StepCost(Protocol):
    """Seconds of passes; the same question always gets the same answer, alone or in bulk."""

    def decode_s(self, works: Sequence[RankWork], n_steps: int, growth: float, first_pass: int) -> Floats:
        """Seconds of `n_steps` passes of decodes only, contexts growing by `growth` tokens from each to the next."""
        ...

    def pass_s(self, works: Sequence[RankWork], pass_index: int) -> float:
        """Seconds of one pass with prefill chunks."""
        ...


def pad_sizes(max_graph_tokens: int, n: int) -> NDArray[np.int64]:
    """Tokens that a pass of 0..n tokens really runs: the next captured CUDA-graph size, above `max_graph_tokens` as they are.

    Sizes 1, 2, 4, then every 8 below 256, then every 16. Source: vLLM's default ``cudagraph_capture_sizes``.

    >>> [int(pad_sizes(512, 300)[t]) for t in (1, 3, 9, 130, 257, 300)]
    [1, 4, 16, 136, 272, 304]
    """
    sizes = [s for s in [1, 2, 4, *range(8, 256, 8), *range(256, max_graph_tokens + 1, 16)] if s <= max_graph_tokens]
    whole = np.arange(n + 1)
    if not sizes:
        return whole
    captured = np.asarray(sizes)
    at = np.minimum(np.searchsorted(captured, whole), len(captured) - 1)
    return np.where((whole > 0) & (whole <= captured[-1]), captured[at], whole)


@dataclass(frozen=True, slots=True, eq=False)
class PassCost:
    """The lookups of one model on one split.

    `decode_rest_s` and `mixed_rest_s` are everything but attention kernels, experts and the head, by tokens of a rank, for passes
    without and with prefill; `head_s` by sampled sequences; `attention` of one layer, `n_attention_layers` of them. `padded` maps
    tokens to what a CUDA graph runs. Experts see the tokens of all attention-DP ranks, each padded to the widest. `draft_s` is
    added to passes with decodes, each of which runs `tokens_per_decode` tokens (speculative decoding). With a `stack`, passes
    with prompts run eagerly, `kernels` of them launched one by one, and each prompt begun costs the host time.
    """

    decode_rest_s: Floats
    mixed_rest_s: Floats
    head_s: Floats
    attention: AttentionTable
    n_attention_layers: int
    padded: NDArray[np.int64]
    draws: ExpertDraws | None = None
    mixed_draws: ExpertDraws | None = None
    decode_skew: float = 0.0
    draft_s: float = 0.0
    tokens_per_decode: int = 1
    stack: StackParams | None = None
    kernels: float = 0.0
    _rows: dict[int, tuple[float, Floats]] = field(default_factory=dict, init=False, repr=False)

    def decode_s(self, works: Sequence[RankWork], n_steps: int, growth: float, first_pass: int) -> Floats:
        """Slowest rank's dense layers and attention, then the experts of all ranks' tokens, then head and sampler."""
        slowest: Floats | None = None
        for work in works:
            own = self._decode_rank(work, n_steps, growth)
            slowest = own if slowest is None else np.maximum(slowest, own)
        if slowest is None:
            raise ValueError("a pass needs at least one rank")
        if self.draws is not None:
            tokens = self._padded_sum(works)
            slowest = slowest + self.draws.seconds(tokens, first_pass, n_steps)
        return slowest

    def pass_s(self, works: Sequence[RankWork], pass_index: int) -> float:
        """The same for one pass that carries prefill on some rank."""
        slowest = max(self._mixed_rank(work) for work in works)
        draws = self.mixed_draws or self.draws
        if draws is not None:
            slowest += float(draws.seconds(self._padded_sum(works), pass_index, 1)[0])
        if self.stack is None:
            return slowest
        n_begun = max(sum(chunk.context == 0 for chunk in work.chunks) for work in works)
        return float(eager_s(self.stack, slowest, self.kernels)) + self.stack.prompt_s * n_begun

    def _padded_sum(self, works: Sequence[RankWork]) -> float:
        counts = [work.n_decode * self.tokens_per_decode + work.n_prefill_tokens for work in works]
        widest = max(counts)
        if widest < len(self.padded):
            widest = int(self.padded[widest])
        return float(widest * len(works)) if len(works) > 1 else float(widest)

    def _at(self, curve: Floats, n: int) -> float:
        if n < len(curve):
            return float(curve[n])
        last = len(curve) - 1
        return float(curve[last] + (n - last) * (curve[last] - curve[last // 2]) / (last - last // 2))

    def _decode_rank(self, work: RankWork, n_steps: int, growth: float) -> Floats:
        n = work.n_decode
        if n == 0:
            return np.full(n_steps, self._at(self.decode_rest_s, 1))
        found = self._rows.get(n)
        if found is None:
            found = self._rows[n] = (self._decode_fixed_s(n * self.tokens_per_decode), self.attention.decode_row(n))
        fixed, row = found
        steps = np.arange(n_steps, dtype=np.float64) * growth
        longest = work.context_max + steps if self.decode_skew > 0.0 else steps
        return fixed + self._attention(
            row, np.asarray(work.context_sum / n + steps), np.asarray(longest), self.decode_skew
        )

    def _decode_fixed_s(self, tokens: int) -> float:
        padded = int(self.padded[tokens]) if tokens < len(self.padded) else tokens
        return self._at(self.decode_rest_s, padded) + self._at(self.head_s, tokens) + self.draft_s

    def _mixed_rank(self, work: RankWork) -> float:
        n, q = work.n_decode, work.n_prefill_tokens
        if q == 0:
            return float(self._decode_rank(work, 1, 0.0)[0])
        tokens = q + n * self.tokens_per_decode
        fixed = self._at(self.mixed_rest_s, int(self.padded[tokens]) if tokens < len(self.padded) else tokens)
        fixed += self._at(self.head_s, max(1, work.n_sampled)) + (self.draft_s if n else 0.0)
        q_like, p_like = one_chunk(work.chunks)
        row = self.attention.mixed_row(q_like, p_like, float(n))
        mean = work.context_sum / n if n else 0.0
        longest = np.asarray([work.context_max])
        return fixed + float(self._attention(row, np.asarray([mean]), longest, self.attention.skew)[0])

    def _attention(self, row: Floats, mean: Floats, longest: Floats, skew: float) -> Floats:
        axis = self.attention.c
        value = at_contexts(axis, row, mean)
        if skew > 0.0:
            value = value + skew * (at_contexts(axis, row, longest) - value)
        return np.asarray(value * float(self.n_attention_layers))


def one_chunk(chunks: Sequence[Chunk]) -> tuple[float, float]:
    """The single chunk (q, p) with as many query-key pairs as several together: sum of q p + q^2 / 2.

    Assumption: attention of short prompts side by side costs what one chunk of as many pairs costs.

    >>> one_chunk([Chunk(512, 0), Chunk(512, 512)])
    (1024.0, 0.0)
    """
    q = float(sum(chunk.n_tokens for chunk in chunks))
    pairs = sum(chunk.n_tokens * (chunk.context + 0.5 * chunk.n_tokens) for chunk in chunks)
    p = pairs / q - 0.5 * q
    if p >= 0.0:
        return q, p
    return float(np.sqrt(2.0 * pairs)), 0.0
