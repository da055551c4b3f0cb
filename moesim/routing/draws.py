"""A whole pass: choices of all tokens, layer after layer, and counts of them, exact or (for very many) by a normal law."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.alias import build_alias
from moesim.routing.sampler import LayerLaw, TokenRepeats, draw_layer, fresh_words, link_layers

if TYPE_CHECKING:
    from moesim.routing.router import RouterModel

__all__ = ["LARGE", "LARGE_PER_RANK", "choices", "count_choices", "normal_counts"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Up to this many choices (tokens x layers x K) are drawn one by one, which takes about 10 ns each.
LARGE = 60_000_000
# The normal law is used only where every rank has at least this many tokens.
LARGE_PER_RANK = 2048
CHUNK_TOKENS = 32768


def choices(
    model: RouterModel, n_tokens: int, rng: np.random.Generator, n_layers: int
) -> Iterator[tuple[int, int, NDArray[np.int32]]]:
    """The choices of a pass, as (first token, layer, [K, tokens of this part]).

    Tokens are taken in parts of `CHUNK_TOKENS`, so that memory stays bounded; a repeat does not reach over their borders.
    """
    if model.is_balanced:
        for start in range(0, n_tokens, CHUNK_TOKENS):
            for layer in range(n_layers):
                yield start, layer, _round_robin(model, start, min(CHUNK_TOKENS, n_tokens - start), layer)
        return
    laws = _laws(model, n_layers, rng)
    for start in range(0, n_tokens, CHUNK_TOKENS):
        yield from _part(model, laws, start, min(CHUNK_TOKENS, n_tokens - start), rng)


def _part(
    model: RouterModel, laws: list[LayerLaw], start: int, n_tokens: int, rng: np.random.Generator
) -> Iterator[tuple[int, int, NDArray[np.int32]]]:
    domains = None
    if len(model.domain_shares) > 1:
        domains = rng.choice(len(model.domain_shares), n_tokens, p=model.domain_shares).astype(np.intp)
    above, repeats = None, None
    for layer, law in enumerate(laws):
        words = fresh_words((model.top_k, n_tokens), rng)
        if above is not None and model.layer_coupling[layer].any():
            words = link_layers(words, above, model.layer_coupling[layer], rng)
        if model.repeat_prob[layer] > 0 and n_tokens > 1:
            repeats = repeats or TokenRepeats(words.shape, rng)
            words = repeats.link(words, float(model.repeat_prob[layer]), float(model.repeat_joint_frac[layer]))
        above = words
        yield start, layer, draw_layer(law, words, rng, domains)


def _laws(model: RouterModel, n_layers: int, rng: np.random.Generator) -> list[LayerLaw]:
    """The layers' laws; the model keeps them where they do not change from pass to pass."""
    if model.pass_jitter > 0:
        return _built_laws(model, jittered(model, rng))[:n_layers]
    laws: list[LayerLaw] = model.kept("laws", lambda: _built_laws(model, model.weights))
    return laws[:n_layers]


def _built_laws(model: RouterModel, weights: Floats) -> list[LayerLaw]:
    per_layer = np.ascontiguousarray(weights.transpose(1, 0, 2))
    tables = build_alias(per_layer.reshape(-1, model.n_experts)).split(model.n_layers)
    return [
        LayerLaw(w, t, model.top_k, model.n_group, model.topk_group) for w, t in zip(per_layer, tables, strict=True)
    ]


def jittered(model: RouterModel, rng: np.random.Generator) -> Floats:
    """The weights of one pass: the model's, each times a log-normal factor where the model has `pass_jitter`."""
    if model.pass_jitter == 0:
        return model.weights
    moved = model.weights * np.exp(model.pass_jitter * rng.standard_normal(model.weights.shape))
    result: Floats = moved / moved.sum(axis=2, keepdims=True)
    return result


def _round_robin(model: RouterModel, start: int, n_tokens: int, layer: int) -> NDArray[np.int32]:
    first = (start + np.arange(n_tokens) + layer) * model.top_k
    return ((first[None, :] + np.arange(model.top_k)[:, None]) % model.n_experts).astype(np.int32)


def count_choices(
    model: RouterModel, per_rank: Ints, rng: np.random.Generator, dtype: type[Any] = np.int64
) -> NDArray[Any]:
    """Counts of a pass drawn token by token: [L, R, E]."""
    n_ranks, n_experts = len(per_rank), model.n_experts
    out = np.zeros((model.n_layers, n_ranks * n_experts), dtype)
    row = np.repeat(np.arange(n_ranks) * n_experts, per_rank)
    for start, layer, chosen in choices(model, int(per_rank.sum()), rng, model.n_layers):
        offset = row[start : start + chosen.shape[1]]
        first, last = int(offset[0]), int(offset[-1]) + n_experts
        out[layer, first:last] += np.bincount((chosen + (offset - first)).ravel(), minlength=last - first)
    return out.reshape(model.n_layers, n_ranks, n_experts)


def normal_counts(
    model: RouterModel, per_rank: Ints, rng: np.random.Generator, dtype: type[Any] = np.int64
) -> NDArray[Any]:
    """Counts of a pass of very many tokens, by a normal law with the means and variances of the exact one: [L, R, E].

    Independent normals of variance c_e, conditioned on a sum of zero, where c_e (1 - c_e / sum c) = p_e (1 - p_e)
    (Hajek's approximation of sampling without replacement); experts of few tokens are binomial; rounding keeps the sums.

    Assumes: layers independent of each other; temporal repeats with probability q widen variances by (1 + q) / (1 - q).
    Valid for: thousands of tokens per rank.
    Source: Hajek 1964 for the covariances; the rest is an assumption.
    """
    p = model.inclusion_probability()
    if model.pass_jitter > 0:
        mixed = np.einsum("d,dle->le", model.domain_shares, jittered(model, rng))
        shift = mixed / model.popularity
        p = _scaled_to(p * shift, model.top_k)
    widen = (1 + model.repeat_prob) / np.maximum(1 - model.repeat_prob, 1e-3)
    spread = _hajek(p) * widen[:, None]
    out = np.empty((model.n_layers, len(per_rank), model.n_experts), dtype)
    reach = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
    reach /= reach[:, -1:]
    for rank, n_tokens in enumerate(per_rank.tolist()):
        out[:, rank] = _rounded(p, reach, spread, n_tokens, model.top_k, rng)
    return out


def _scaled_to(p: Floats, top_k: int) -> Floats:
    for _ in range(4):
        p = np.minimum(p * (top_k / p.sum(axis=1, keepdims=True)), 1 - 1e-9)
    return p


def _hajek(p: Floats) -> Floats:
    """c_e such that independent variances c_e, conditioned on their sum, give p_e (1 - p_e)."""
    goal = p * (1 - p)
    c = goal.copy()
    for _ in range(30):
        total = c.sum(axis=1, keepdims=True)
        c = goal / np.maximum(1 - c / np.maximum(total, 1e-300), 0.5)
    return c


def _rounded(p: Floats, reach: Floats, spread: Floats, n_tokens: int, top_k: int, rng: np.random.Generator) -> Ints:
    mean = n_tokens * p
    drawn = mean + np.sqrt(n_tokens * spread) * rng.standard_normal(p.shape)
    few = mean < 50
    drawn[few] = rng.binomial(n_tokens, p[few])
    goal = n_tokens * top_k
    free = np.where(few, 0.0, spread)
    free = np.where(free.sum(axis=1, keepdims=True) > 0, free, spread)
    drawn -= (drawn.sum(axis=1, keepdims=True) - goal) * free / free.sum(axis=1, keepdims=True)
    counts = np.clip(np.floor(drawn + rng.random(p.shape)), 0, n_tokens).astype(np.int64)
    for row, missing in enumerate((goal - counts.sum(axis=1)).tolist()):
        _settle(counts[row], missing, reach[row], n_tokens, rng)
    return counts


def _settle(counts: Ints, missing: int, reach: Floats, n_tokens: int, rng: np.random.Generator) -> None:
    """Add or take single tokens at experts drawn by popularity (running sums `reach`) until the row has its sum."""
    while missing:
        step = 1 if missing > 0 else -1
        for e in reach.searchsorted(rng.random(abs(missing)), side="right").tolist():
            if 0 <= counts[e] + step <= n_tokens:
                counts[e] += step
                missing -= step
