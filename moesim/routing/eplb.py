"""Expert-parallel load balancing: copies for the hottest experts, and a packing of all copies that evens the ranks out.

The idea is DeepSeek's (EPLB, published with DeepSeek-V3, arXiv 2412.19437 section 3.4): redundant slots go to the experts
with the most tokens per copy; then copies are packed, heaviest first, on the least loaded rank that has room. In the
hierarchical form expert groups are first packed on nodes, so that node-limited routing keeps its locality, and each node is
then balanced on its own. This implementation is our own and works on all layers at once.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ParallelError
from moesim.routing.placement import Placement, check_slots

__all__ = ["eplb_global", "eplb_hierarchical", "pack", "replicate"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def eplb_global(counts: NDArray[Any], n_ranks: int, n_slots: int) -> Placement:
    """A placement per layer that balances the expected rank loads, regardless of nodes.

    Args:
        counts: [L, E], past tokens per expert (or any expected load).
        n_ranks: R.
        n_slots: slots of all ranks together, at least E and divisible by R.

    Raises:
        ParallelError: too few slots, or slots that R does not divide.
    """
    load = np.asarray(counts, dtype=np.float64)
    check_slots(load.shape[1], n_ranks, n_slots)
    slots = _balanced_slots(load, n_ranks, n_slots)
    return Placement(_never_worse(slots, load, n_ranks), n_ranks, load.shape[1])


def eplb_hierarchical(counts: NDArray[Any], n_ranks: int, n_slots: int, n_nodes: int, n_group: int) -> Placement:
    """A placement per layer that keeps each expert group on one node and balances nodes, then the ranks of each.

    Args:
        counts: [L, E].
        n_ranks: R, divisible by the nodes.
        n_slots: slots of all ranks together.
        n_nodes: nodes that hold the ranks; they divide the groups.
        n_group: groups of consecutive experts.

    Raises:
        ParallelError: sizes that do not divide.
    """
    load = np.asarray(counts, dtype=np.float64)
    n_layers, n_experts = load.shape
    check_slots(n_experts, n_ranks, n_slots)
    if n_nodes < 1 or n_group % n_nodes or n_ranks % n_nodes or n_experts % n_group:
        raise ParallelError("hierarchical balancing needs nodes that divide the groups and the ranks", field="routing.placement",
                            value=f"{n_nodes} nodes, {n_group} groups, {n_ranks} ranks", hint="use eplb_global")  # fmt: skip
    group_size, per_node = n_experts // n_group, n_experts // n_nodes
    group_load = load.reshape(n_layers, n_group, group_size).sum(axis=2)
    groups = pack(group_load, np.broadcast_to(np.arange(n_group), group_load.shape), n_nodes)
    members = groups.reshape(n_layers, n_nodes, -1, 1) * group_size + np.arange(group_size)
    experts = members.reshape(n_layers * n_nodes, per_node)
    node_load = np.take_along_axis(np.repeat(load, n_nodes, axis=0), experts, axis=1)
    local = _balanced_slots(node_load, n_ranks // n_nodes, n_slots // n_nodes)
    slots = np.take_along_axis(experts, local, axis=1).reshape(n_layers, n_slots)
    return Placement(_never_worse(slots, load, n_ranks), n_ranks, n_experts)


def replicate(load: Floats, n_slots: int, n_ranks: int) -> Ints:
    """Copies per expert, [L, E]: every expert one, each further slot to the expert with the most tokens per copy.

    No expert gets more copies than there are ranks, as long as others can take the slots.
    """
    copies = np.ones(load.shape, np.int64)
    rows = np.arange(len(load))
    for _ in range(n_slots - load.shape[1]):
        hottest = np.where(copies < n_ranks, load / copies, -1.0).argmax(axis=1)
        copies[rows, hottest] += 1
    return copies


def _balanced_slots(load: Floats, n_ranks: int, n_slots: int) -> Ints:
    copies = replicate(load, n_slots, n_ranks)
    n_experts = load.shape[1]
    experts = np.stack([np.repeat(np.arange(n_experts), row) for row in copies])
    share = np.take_along_axis(load / copies, experts, axis=1)
    return pack(share, experts, n_ranks)


def pack(load: Floats, items: NDArray[np.int64], n_bins: int) -> Ints:
    """Items into bins of equal number, [L, n_items] listed bin after bin: heaviest first, to the lightest bin with room.

    A bin that already holds the same item is avoided while another has room: two copies on one rank would help nobody.
    """
    n_layers, n_items = load.shape
    room = n_items // n_bins
    order = np.argsort(-load, axis=1, kind="stable")
    if room == 1:  # every bin is as light as the next until it is full
        return np.take_along_axis(items, order, axis=1)
    packed = np.empty((n_layers, n_bins, room), np.int64)
    for layer in range(n_layers):
        _pack_one(items[layer, order[layer]].tolist(), load[layer, order[layer]].tolist(), packed[layer])
    return packed.reshape(n_layers, n_items)


def _pack_one(items: list[int], load: list[float], packed: Ints) -> None:
    """Items in this order into the rows of `packed`; of bins equally light the first is taken."""
    n_bins, room = packed.shape
    lightest = [(0.0, at) for at in range(n_bins)]  # a heap
    inside: list[list[int]] = [[] for _ in range(n_bins)]
    for item, weight in zip(items, load, strict=True):
        passed = []
        while lightest and item in inside[lightest[0][1]]:
            passed.append(heappop(lightest))
        weighed, best = heappop(lightest) if lightest else passed.pop(0)
        for bin_there in passed:
            heappush(lightest, bin_there)
        inside[best].append(item)
        if len(inside[best]) < room:
            heappush(lightest, (weighed + weight, best))
    packed[:] = inside


def _never_worse(slots: Ints, load: Floats, n_ranks: int) -> Ints:
    """Layers for which the packing lost to plain contiguous order get the contiguous one, spare slots as local copies."""
    n_experts, n_slots = load.shape[1], slots.shape[1]
    if n_experts % n_ranks:
        return slots
    per_rank, room = n_experts // n_ranks, n_slots // n_ranks
    plain = np.arange(n_ranks)[:, None] * per_rank + np.arange(room) % per_rank
    packed_max = Placement(slots, n_ranks, n_experts).rank_loads(load).max(axis=1)
    plain_max = load.reshape(len(load), n_ranks, per_rank).sum(axis=2).max(axis=1)
    return np.where((plain_max < packed_max)[:, None], plain.reshape(1, -1), slots)
