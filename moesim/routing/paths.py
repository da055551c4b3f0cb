"""A token's path: layer by layer, the experts it visits and the ranks and nodes they live on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.placement import Placement

__all__ = ["Stop", "path_ranks", "ranks_touched", "token_paths"]


@dataclass(frozen=True, slots=True)
class Stop:
    """One layer of a token's path."""

    layer: int
    experts: tuple[int, ...]
    ranks: tuple[int, ...]


def path_ranks(experts: NDArray[Any], placement: Placement) -> NDArray[np.int32]:
    """The rank that serves each choice, [n_tokens, L, K]; tokens take turns over an expert's copies.

    Args:
        experts: [n_tokens, L, K].
        placement: of L layers, or one row for all.
    """
    chosen = np.asarray(experts, dtype=np.int64)
    n_tokens, n_layers, _ = chosen.shape
    rows = len(placement.slots)
    copies, order = placement.replicas, np.argsort(placement.slots, axis=1, kind="stable")
    first = np.cumsum(copies, axis=1) - copies
    layer = np.broadcast_to((np.arange(n_layers) % rows)[None, :, None], chosen.shape)
    turn = np.arange(n_tokens)[:, None, None] % copies[layer, chosen]
    slot = order[layer, first[layer, chosen] + turn]
    return placement.slot_rank[slot].astype(np.int32)


def token_paths(experts: NDArray[Any], placement: Placement) -> tuple[tuple[Stop, ...], ...]:
    """The paths of a few tokens, ready to show: for each token its stops."""
    chosen, ranks = np.asarray(experts), path_ranks(experts, placement)
    return tuple(
        tuple(
            Stop(layer, tuple(map(int, chosen[token, layer])), tuple(map(int, ranks[token, layer])))
            for layer in range(chosen.shape[1])
        )
        for token in range(chosen.shape[0])
    )


def ranks_touched(experts: NDArray[Any], placement: Placement, ranks_per_node: int = 1) -> NDArray[np.int64]:
    """Distinct ranks (or nodes of `ranks_per_node` ranks) that each token goes to in each layer: [n_tokens, L]."""
    place = np.sort(path_ranks(experts, placement) // ranks_per_node, axis=2)
    touched: NDArray[np.int64] = 1 + (np.diff(place, axis=2) != 0).sum(axis=2)
    return touched
