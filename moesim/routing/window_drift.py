"""Loads that drift: a mixture of domains that changes over time, each with experts of its own that are hot.

Letters: S steps, L layers, E experts, K top-k, T tokens of a step.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.draws import jittered
from moesim.routing.router import RouterModel

__all__ = ["DriftKind", "domain_schedule", "drifting_counts", "related_domains"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class DriftKind(StrEnum):
    """How the mixture of domains changes: not at all, in a smooth cycle, from one domain to the next at once, or at random."""

    STATIONARY = "stationary"
    CYCLE = "cycle"
    SWITCH = "switch"
    WALK = "walk"


def domain_schedule(
    kind: DriftKind, n_steps: int, n_domains: int, cycle_steps: float, rng: np.random.Generator | None = None
) -> Floats:
    """Shares of domains per step, [S, n_domains]; rows sum to 1. All of it is assumption: no production mixture is published.

    Args:
        kind: see `DriftKind`. A cycle gives each domain its turn once in `cycle_steps` (shares (1 + cos) / n); a switch holds
            each domain for `cycle_steps / n_domains`; a walk is a softmax of Ornstein-Uhlenbeck paths of unit variance times 2
            that forget in `cycle_steps / n_domains`.
        n_steps: S.
        n_domains: how many.
        cycle_steps: the time scale.
        rng: for a walk.

    Raises:
        InputError: a walk without `rng`, or sizes below 1.
    """
    if n_steps < 1 or n_domains < 1 or cycle_steps <= 0:
        raise InputError("needs steps, domains and a positive time scale", field="cycle_steps", value=cycle_steps)
    at = np.arange(n_steps)[:, None] / cycle_steps
    if kind is DriftKind.CYCLE and n_domains > 1:
        shares = 1 + np.cos(2 * np.pi * (at - np.arange(n_domains) / n_domains))
    elif kind is DriftKind.SWITCH:
        shares = (np.floor(at * n_domains).astype(np.int64) % n_domains == np.arange(n_domains)).astype(np.float64)
    elif kind is DriftKind.WALK:
        if rng is None:
            raise InputError("a walk needs randomness", field="rng", value=None)
        shares = np.exp(2.0 * _walk(n_steps, n_domains, cycle_steps / n_domains, rng))
    else:
        shares = np.ones((n_steps, n_domains))
    result: Floats = shares / shares.sum(axis=1, keepdims=True)
    return result


def _walk(n_steps: int, n_paths: int, memory_steps: float, rng: np.random.Generator) -> Floats:
    keep = float(np.exp(-1 / memory_steps))
    noise = rng.standard_normal((n_steps, n_paths)) * np.sqrt(1 - keep**2)
    path = np.empty((n_steps, n_paths))
    now = rng.standard_normal(n_paths)
    for step in range(n_steps):
        now = keep * now + noise[step]
        path[step] = now
    return path


def related_domains(router: RouterModel, n_domains: int, correlation: float, rng: np.random.Generator) -> RouterModel:
    """The router with its first domain's load curves in several domains, whose hot experts agree in part.

    In every layer each domain ranks experts by sqrt(c) z + sqrt(1 - c) z_domain (z normal) and takes the same sorted weights.

    Args:
        router: gives sizes and sorted weights per layer.
        n_domains: domains wanted.
        correlation: c, of the experts' heat between domains, 0 to 1. OLMoE's six measured domains have -0.7 to 0.8, 0.09 in the
            mean (preset `olmoe-1b-7b`); for other models an assumption.
        rng: who is hot where.

    Raises:
        InputError: a correlation outside 0..1.
    """
    if not 0 <= correlation <= 1 or n_domains < 1:
        raise InputError("must be from 0 to 1", field="correlation", value=correlation)
    shape = (router.n_layers, router.n_experts)
    hottest_first = -np.sort(-router.weights[0], axis=1)
    common, own = rng.standard_normal(shape), rng.standard_normal((n_domains, *shape))
    order = np.argsort(-(np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own), axis=2)
    weights = np.empty((n_domains, *shape))
    np.put_along_axis(weights, order, np.broadcast_to(hottest_first, weights.shape), axis=2)
    return replace(
        router, weights=weights, domain_shares=np.full(n_domains, 1 / n_domains),
        domain_names=tuple(f"domain {i + 1}" for i in range(n_domains)),
        source=f"{router.source}; {n_domains} domains of correlation {correlation:g} (assumption)",
    )  # fmt: skip


def drifting_counts(
    router: RouterModel, shares: Floats, n_tokens: int, rng: np.random.Generator, *, exact: bool = False
) -> Ints:
    """Tokens per expert in every step, [S, L, E].

    Args:
        router: several domains; its `pass_jitter` differs from step to step.
        shares: [S, n_domains], see `domain_schedule`.
        n_tokens: T of each step.
        rng: randomness.
        exact: draw every token (0.15 s a step for DeepSeek-V3 at T 4096); by default counts are independent binomials of the
            same means and variances, so that a row sums to T K only in the mean.

    Raises:
        InputError: shares of another number of domains.
    """
    if shares.ndim != 2 or shares.shape[1] != len(router.weights):
        raise InputError("needs one share per step and domain", field="shares", value=shares.shape,
                         allowed=f"[steps, {len(router.weights)}]")  # fmt: skip
    if exact:
        steps = [replace(router, domain_shares=row.copy()).sample_counts(n_tokens, rng) for row in shares]
        return np.stack(steps)
    inclusion = router.domain_inclusion()
    out = np.empty((len(shares), router.n_layers, router.n_experts), np.int64)
    for step, row in enumerate(shares):
        p = np.einsum("d,dle->le", row, _shifted(inclusion, router, rng))
        out[step] = rng.binomial(n_tokens, np.clip(p, 0.0, 1.0))
    return out


def _shifted(inclusion: Floats, router: RouterModel, rng: np.random.Generator) -> Floats:
    """Inclusion probabilities of one pass: times the pass's jitter of the weights, rows summing to K."""
    if router.pass_jitter == 0:
        return inclusion
    p = inclusion * (jittered(router, rng) / router.weights)
    for _ in range(3):
        p = np.minimum(p * (router.top_k / p.sum(axis=2, keepdims=True)), 1.0)
    return p
