"""The one sampling kernel: a layer's choices for many tokens, experts drawn one after another without replacement.

Each draw is one 32-bit word sent through an alias table; a word that lands on an expert the token already has, or on a group
that it may no longer use, is drawn again. That is Plackett-Luce sampling (the same law as Gumbel top-k on log weights), at a
few nanoseconds a draw instead of one Gumbel per token and expert. Copied words couple tokens and layers; as a copied word
is as uniform as a fresh one, each layer's law stays exactly what it is without coupling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.alias import AliasTables

__all__ = ["LayerLaw", "TokenRepeats", "draw_layer", "fresh_words", "link_layers"]

Words = NDArray[np.uint32]
Choices = NDArray[np.int32]
_ROUNDS = 8
_MANY = 5000


@dataclass(frozen=True, slots=True, eq=False)
class LayerLaw:
    """What draws one layer's choices: weights [n_domains, E], their alias tables, and the group of each expert."""

    weights: NDArray[np.float64]
    tables: AliasTables
    top_k: int
    n_group: int = 1
    topk_group: int = 1

    @property
    def is_limited(self) -> bool:
        """Whether a token may use only some of the groups."""
        return self.topk_group < self.n_group


def fresh_words(shape: tuple[int, int], rng: np.random.Generator) -> Words:
    """Independent uniform 32-bit words."""
    n = shape[0] * shape[1]
    raw = np.asarray(rng.bit_generator.random_raw((n + 1) // 2), dtype=np.uint64)
    return raw.view(np.uint32)[:n].reshape(shape)


def link_layers(words: Words, above: Words, copy_prob: NDArray[np.float64], rng: np.random.Generator) -> Words:
    """Words of which each is replaced by the word of the layer above with the probability of its place (rank of choice)."""
    limit = (copy_prob * 2.0**32).clip(0, 2.0**32 - 1).astype(np.uint32)
    return np.where(fresh_words((words.shape[0], words.shape[1]), rng) < limit[:, None], above, words)


class TokenRepeats:
    """Which tokens repeat the one before. A token that repeats does so along its whole path, as deep as layers allow.

    Each token (and each of its K places) has one number for all layers and repeats in the layers whose probability is
    above it; in a share of the tokens all places have the same number. Keeping the number over layers keeps a repeated
    path whole, and keeps repeats from piling up where layers are coupled.
    """

    def __init__(self, shape: tuple[int, int], rng: np.random.Generator) -> None:
        self.level = rng.random(shape, dtype=np.float32)
        self.joint_level = rng.random(shape[1], dtype=np.float32)

    def link(self, words: Words, repeat_prob: float, joint_frac: float) -> Words:
        """Words of which each is the previous token's where its place repeats: with probability `repeat_prob`."""
        level = np.where(self.joint_level < joint_frac, self.level[0], self.level)
        repeats = level < repeat_prob
        repeats[:, 0] = False
        source = np.where(repeats, 0, np.arange(words.shape[1]))
        np.maximum.accumulate(source, axis=1, out=source)
        return np.take_along_axis(words, source, axis=1)


def draw_layer(
    law: LayerLaw, words: Words, rng: np.random.Generator, domains: NDArray[np.intp] | None = None
) -> Choices:
    """The experts that the words choose: [K, n_tokens], each column without repetition, in order of choice."""
    k, n = words.shape
    chosen = law.tables.draw(words.ravel(), None if domains is None else np.tile(domains, k)).reshape(k, n)
    groups = _Groups(law, n) if law.is_limited else None
    if groups is not None:
        groups.add(chosen[0])
    for j in range(1, k):
        rows = np.flatnonzero(_refused(chosen[:j], chosen[j], groups, None))
        if rows.size:
            chosen[j, rows] = _redraw(law, chosen[:j], rows, groups, rng, domains)
        if groups is not None and j + 1 < k:
            groups.add(chosen[j])
    return chosen


def _redraw(
    law: LayerLaw,
    before: NDArray[np.int32],
    rows: NDArray[np.intp],
    groups: _Groups | None,
    rng: np.random.Generator,
    domains: NDArray[np.intp] | None,
) -> NDArray[np.int32]:
    """An expert for each of the tokens `rows` that is new to it: fresh words until one is not refused."""
    out = np.empty(rows.size, np.int32)
    left: NDArray[np.intp] | None = None  # all of them
    before = before[:, rows]
    for _ in range(_ROUNDS):
        # few tokens are left: several tries at once cost no more than one
        n_tries = 1 if rows.size > _MANY else 4
        words = fresh_words((1, n_tries * rows.size), rng)[0]
        again = law.tables.draw(words, None if domains is None else np.tile(domains[rows], n_tries))
        tries = again.reshape(n_tries, -1)
        refused = _refused(before, tries, groups, rows)
        taken, still = tries[0], refused[0]
        for other, other_refused in zip(tries[1:], refused[1:], strict=True):
            taken = np.where(still, other, taken)
            still = still & other_refused
        if left is None:
            out[:] = taken
        else:
            out[left] = taken
        kept = np.flatnonzero(still)
        if not kept.size:
            return out
        left, before, rows = kept if left is None else left[kept], before[:, kept], rows[kept]
    out[left] = _draw_exactly(law, before, groups, rows, rng, domains)
    return out


class _Groups:
    """The groups each token has touched so far, as a bit mask, and the groups still open to it."""

    def __init__(self, law: LayerLaw, n_tokens: int) -> None:
        n_experts = law.weights.shape[1]
        group = np.arange(n_experts) // (n_experts // law.n_group)
        self.bit = np.left_shift(1, group).astype(np.uint16)
        masks = np.arange(2**law.n_group)
        n_touched = sum((masks >> g) & 1 for g in range(law.n_group))
        self.open_of = np.where(n_touched >= law.topk_group, masks, masks[-1]).astype(np.uint16)
        self.mask = np.zeros(n_tokens, np.uint16)
        self.open = self.open_of[self.mask]

    def add(self, experts: NDArray[np.int32]) -> None:
        """Note the chosen experts' groups; a token at its limit is closed to all others."""
        self.mask |= self.bit.take(experts)
        self.open = self.open_of.take(self.mask)

    def refuses(self, experts: NDArray[np.int32], rows: NDArray[np.intp] | None) -> NDArray[np.bool_]:
        """Whether an expert's group is closed to its token."""
        still_open = self.open if rows is None else self.open.take(rows)
        closed: NDArray[np.bool_] = (self.bit.take(experts) & still_open) == 0
        return closed


def _refused(
    before: NDArray[Any], new: NDArray[np.int32], groups: _Groups | None, rows: NDArray[np.intp] | None
) -> NDArray[np.bool_]:
    bad: NDArray[np.bool_] = before[0] == new
    for other in before[1:]:
        bad |= other == new
    if groups is not None:
        bad |= groups.refuses(new, rows)
    return bad


def _draw_exactly(
    law: LayerLaw,
    before: NDArray[Any],
    groups: _Groups | None,
    rows: NDArray[np.intp],
    rng: np.random.Generator,
    domains: NDArray[np.intp] | None,
) -> NDArray[np.int32]:
    """One draw for tokens that rejection did not serve: from the weights with what is refused set to zero."""
    weights = law.weights[np.zeros(rows.size, np.intp) if domains is None else domains[rows]].copy()
    # experts of weight zero may fill up where all others are taken
    weights = np.maximum(weights, weights.max(axis=1, keepdims=True) * 1e-30)
    if groups is not None:
        weights[(groups.bit[None, :] & groups.open[rows][:, None]) == 0] = 0.0
    np.put_along_axis(weights, before.T.astype(np.intp), 0.0, axis=1)
    reach = np.cumsum(weights, axis=1)
    spot = rng.random(rows.size)[:, None] * reach[:, -1:]
    drawn = (reach <= spot).sum(axis=1)
    picked: NDArray[np.int32] = np.minimum(drawn, weights.shape[1] - 1).astype(np.int32)
    return picked
