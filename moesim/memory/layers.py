"""Which layers a pipeline stage holds, and how often each kind is among them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from moesim.specs.model import LayerSpec, ModelSpec

__all__ = ["layers_among", "n_among", "stage_layers"]


def stage_layers(n_layers: int, pp_size: int) -> list[range]:
    """Layer indices of each pipeline stage; earlier stages take the remainder.

    >>> stage_layers(5, 2)
    [range(0, 3), range(3, 5)]
    """
    base, rest = divmod(n_layers, pp_size)
    starts = [i * base + min(i, rest) for i in range(pp_size + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def layers_among(model: ModelSpec, layers: Sequence[int]) -> list[tuple[LayerSpec, int]]:
    """Distinct layers among those of the given indices, with how often each is."""
    counted = [(layer, n_among(indices, layers)) for layer, indices in model.layer_groups]
    return [(layer, n) for layer, n in counted if n]


def n_among(indices: Sequence[int], layers: Sequence[int]) -> int:
    """How many of the ascending `indices` are in `layers`."""
    if isinstance(layers, range) and layers.step == 1:
        return bisect_left(indices, layers.stop) - bisect_left(indices, layers.start)
    inside = frozenset(layers)
    return sum(i in inside for i in indices)
