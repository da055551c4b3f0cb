"""Placement by cross-layer co-activation: experts that follow each other on one node, what it saves and what it costs.

Letters: T tokens, L layers, E experts, K top-k, R ranks, d ranks of a scale-up domain, D = R / d domains.

The gain depends on where a token is between layers (`TokenHome`). Attention-DP engines keep a token's state and KV cache on one
rank, so every layer starts from there and what follows what across layers saves nothing by itself; only experts of one layer
that are chosen together do. Where context is on every rank, a token can stay where its experts were (Yao et al. 2024,
arXiv 2401.08383, call it context-coherent expert parallelism): then one exchange per layer is left and affinity shortens it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.eplb import pack
from moesim.routing.locality_swaps import evened, improved
from moesim.routing.placement import Placement, check_domain, check_slots, contiguous

__all__ = ["PathCopies", "TokenHome", "coactivation", "locality_placement", "path_copies"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
N_SWEEPS = 3
N_TOLERANCES = 3


class TokenHome(StrEnum):
    """Where a token is when a layer starts: always on its own rank's domain, or where most of its last experts were."""

    FIXED = "fixed"
    MOVING = "moving"


@dataclass(frozen=True, slots=True, eq=False)
class PathCopies:
    """Copies over domain borders, summed over tokens: [L] each, `dispatch` out to experts and `combine` back or onwards."""

    dispatch: Ints
    combine: Ints
    n_tokens: int

    @property
    def total(self) -> int:
        """Both ways, all layers."""
        return int(self.dispatch.sum() + self.combine.sum())

    @property
    def per_token_layer(self) -> float:
        """Both ways, per token and layer."""
        return self.total / max(self.n_tokens * len(self.dispatch), 1)


def coactivation(experts: NDArray[Any], n_experts: int, *, gap: int = 1) -> Floats:
    """How often expert f of layer l + gap is chosen by a token that chose e in layer l: [L - gap, E, E].

    With `gap` 0: how often two experts of one layer are chosen together, [L, E, E], zero on the diagonal.
    """
    chosen = np.asarray(experts)
    _, n_layers, _ = chosen.shape
    pairs = np.empty((n_layers - gap, n_experts, n_experts), np.float32)
    flat = chosen.astype(np.int64)
    for layer in range(n_layers - gap):
        key = flat[:, layer, :, None] * n_experts + flat[:, layer + gap, None, :]
        pairs[layer] = np.bincount(key.ravel(), minlength=n_experts**2).reshape(n_experts, n_experts)
    if gap == 0:
        pairs[:, np.arange(n_experts), np.arange(n_experts)] = 0.0
    return pairs


def path_copies(
    experts: NDArray[Any], placement: Placement, domain_size: int, home: TokenHome = TokenHome.MOVING,
    source_rank: NDArray[Any] | None = None,
) -> PathCopies:  # fmt: skip
    """Copies that cross domains on the tokens' paths; a token goes to a domain once per layer.

    FIXED: out to every domain of its experts but its own, and back from each. MOVING: out to every domain of its experts but the
    one it is in; results meet in the domain with most of its experts (ties: the one it is in, then the lowest), and it stays.

    Args:
        experts: [T, L, K].
        placement: one copy of each expert; of L layers, or one row for all.
        domain_size: d.
        home: where tokens are between layers.
        source_rank: [T], the first (MOVING) or only (FIXED) home; by default tokens are dealt to domains in turn.

    Raises:
        InputError: a placement with redundant experts.
    """
    if placement.n_redundant:
        raise InputError("paths need one copy of each expert", field="placement", value=placement.n_slots)
    d = check_domain(domain_size, placement.n_ranks)
    chosen, n_domains = np.asarray(experts), placement.n_ranks // d
    n_tokens, n_layers, _ = chosen.shape
    at = np.arange(n_tokens) % n_domains if source_rank is None else np.asarray(source_rank) // d
    domain_of = _domain_of(placement, d)
    dispatch, combine = np.zeros(n_layers, np.int64), np.zeros(n_layers, np.int64)
    token = np.arange(n_tokens)
    for layer in range(n_layers):
        where = domain_of[layer % len(domain_of)][chosen[:, layer]]
        hits = np.bincount((token[:, None] * n_domains + where).ravel(), minlength=n_tokens * n_domains)
        hits = hits.reshape(n_tokens, n_domains)
        touched = (hits > 0).sum(axis=1)
        dispatch[layer] = int((touched - (hits[token, at] > 0)).sum())
        if home is TokenHome.FIXED:
            combine[layer] = dispatch[layer]
            continue
        score = hits * 2
        score[token, at] += 1
        at = score.argmax(axis=1)
        combine[layer] = int((touched - (hits[token, at] > 0)).sum())
    return PathCopies(dispatch, combine, n_tokens)


def locality_placement(
    experts: NDArray[Any], n_experts: int, n_ranks: int, domain_size: int, *, home: TokenHome = TokenHome.MOVING,
    load_tolerance: float = 0.1, n_sweeps: int = N_SWEEPS,
) -> Placement:  # fmt: skip
    """Experts on domains so that tokens' paths cross few borders, an equal number on each; ranks inside balanced by load.

    Layer after layer, with its neighbours held fixed, experts are assigned to domains for the most co-activation kept inside
    (an optimal assignment of the linear part, then Kernighan-Lin swaps with pairs of the same layer counted), until nothing
    improves; swaps then bring each domain's load within nine times, three times and once `load_tolerance` of the mean where
    possible, as long as paths cross no more borders on the sample than with experts in order; those are kept if all cross more.

    Args:
        experts: sample of paths, [T, L, K].
        n_experts: E, a multiple of R.
        n_ranks: R.
        domain_size: d.
        home: which copies to save. FIXED leaves pairs across layers out.
        load_tolerance: how much more than the mean a domain may carry.
        n_sweeps: passes over the layers.

    Raises:
        ParallelError: sizes that do not divide.

    Source: own; affinity between layers as an assignment problem is Yao et al. 2024 (ExFlow).
    """
    check_slots(n_experts, n_ranks, n_experts)
    d = check_domain(domain_size, n_ranks)
    chosen = np.asarray(experts)
    n_layers, n_domains = chosen.shape[1], n_ranks // d
    load = _loads(chosen, n_experts)
    inside = coactivation(chosen, n_experts, gap=0)
    across = coactivation(chosen, n_experts) if home is TokenHome.MOVING and n_layers > 1 else None
    domain = np.broadcast_to(np.arange(n_experts) // (n_experts // n_domains), (n_layers, n_experts)).copy()
    for sweep in range(n_sweeps):
        before = domain.copy()
        for layer in range(n_layers) if sweep % 2 == 0 else range(n_layers - 1, -1, -1):
            # the first pass follows the layer before only: those after have not been placed yet
            pull = _pull(across, domain, layer, n_domains, looks_ahead=sweep > 0)
            domain[layer] = improved(domain[layer], pull, inside[layer], n_domains, swaps_only=sweep > 0)
        if (before == domain).all():
            break
    return _evened_out(domain, chosen, across, inside, load, n_ranks, d, home, load_tolerance)


def _evened_out(
    domain: Ints, chosen: NDArray[Any], across: Floats | None, inside: Floats, load: NDArray[np.float64], n_ranks: int, d: int,
    home: TokenHome, load_tolerance: float,
) -> Placement:  # fmt: skip
    """The evenest placement that crosses no more borders than experts in order: load is evened out in steps, until it does."""
    n_layers, n_experts, n_domains = *domain.shape, n_ranks // d
    best = contiguous(n_experts, n_ranks)
    limit = path_copies(chosen, best, d, home).total
    for tolerance in load_tolerance * 3.0 ** np.arange(N_TOLERANCES - 1, -1, -1):
        for layer in range(n_layers):
            pull = _pull(across, domain, layer, n_domains)
            domain[layer] = evened(domain[layer], pull, inside[layer], load[layer], n_domains, tolerance)
        placed = _packed(domain, load, n_ranks, n_domains)
        if path_copies(chosen, placed, d, home).total > limit:
            break
        best = placed
    return best


def _domain_of(placement: Placement, d: int) -> Ints:
    """Domain of each expert, [L or 1, E]."""
    domain = np.empty((len(placement.slots), placement.n_experts), np.int64)
    np.put_along_axis(domain, placement.slots, np.broadcast_to(placement.slot_rank // d, placement.slots.shape), axis=1)
    return domain


def _loads(experts: NDArray[Any], n_experts: int) -> NDArray[np.float64]:
    n_layers = experts.shape[1]
    flat = experts.astype(np.int64) + np.arange(n_layers)[None, :, None] * n_experts
    return np.bincount(flat.ravel(), minlength=n_layers * n_experts).reshape(n_layers, n_experts).astype(np.float64)


def _pull(
    across: Floats | None, domain: Ints, layer: int, n_domains: int, *, looks_ahead: bool = True
) -> NDArray[np.float64]:
    """Co-activation of each expert with each domain of the layer before (and after): [E, D]."""
    n_layers, n_experts = domain.shape
    pull = np.zeros((n_experts, n_domains))
    if across is None:
        return pull
    if layer > 0:
        pull += across[layer - 1].T @ np.eye(n_domains, dtype=np.float32)[domain[layer - 1]]
    if looks_ahead and layer + 1 < n_layers:
        pull += across[layer] @ np.eye(n_domains, dtype=np.float32)[domain[layer + 1]]
    return pull


def _packed(domain: Ints, load: NDArray[np.float64], n_ranks: int, n_domains: int) -> Placement:
    """Experts of each domain on its ranks, heaviest first to the lightest rank."""
    n_layers, n_experts = domain.shape
    members = np.argsort(domain, axis=1, kind="stable").reshape(n_layers * n_domains, -1)
    weight = np.take_along_axis(np.repeat(load, n_domains, axis=0), members, axis=1)
    slots = pack(weight, members, n_ranks // n_domains)
    return Placement(slots.reshape(n_layers, n_experts), n_ranks, n_experts)
