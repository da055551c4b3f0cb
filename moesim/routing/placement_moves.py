"""What it takes to go from one placement to another: which expert weights move, over which links, in what time.

Letters: L layers, E experts, R ranks, d ranks of a scale-up domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, ParallelError
from moesim.routing.placement import Placement, check_domain

__all__ = ["MoveCost", "Moves", "align_ranks", "moves_between", "redundant_bytes_per_rank"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MoveCost:
    """One re-placement in bytes and seconds. `staging_bytes` is what the fullest rank buffers while one layer is exchanged."""

    n_moved_slots: int
    moved_bytes: float
    up_bytes: float
    nic_bytes: float
    fullest_rank_bytes: float
    staging_bytes: float
    time_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Expert copies that arrive at and leave each rank, layer by layer: [L, R] each.

    An expert that the rank already holds does not move, whichever slot it had; a rank's second copy of an expert is copied
    locally. Copies come from a holder in the own scale-up domain if there is one (`up_*`), else through the NIC (`nic_*`);
    several holders share the sending.
    """

    up_in: Ints
    up_out: Floats
    nic_in: Ints
    nic_out: Floats

    @property
    def n_moved_slots(self) -> int:
        """Copies that travel, all layers together."""
        return int(self.up_in.sum() + self.nic_in.sum())

    def cost(self, expert_bytes: float, up_bytes_per_s: float, nic_bytes_per_s: float | None) -> MoveCost:
        """Bytes and time: the busiest port decides, both kinds of port work at once, both directions at once.

        max over ranks of max(up in, up out) / B_up and max(NIC in, NIC out) / B_nic.

        Args:
            expert_bytes: weights of one expert of one layer, scales included.
            up_bytes_per_s: achieved scale-up bandwidth per rank and direction.
            nic_bytes_per_s: achieved NIC bandwidth per rank and direction; None where there is none.

        Raises:
            InputError: copies need a NIC and there is none.

        Assumes: transfers at full rate, no latency (experts are megabytes), nothing else on the ports.
        """
        if nic_bytes_per_s is None and self.nic_in.any():
            raise InputError("experts move between domains, which needs a NIC", field="nic_bytes_per_s", value=None)
        up = np.maximum(self.up_in.sum(axis=0), self.up_out.sum(axis=0)) * expert_bytes
        nic = np.maximum(self.nic_in.sum(axis=0), self.nic_out.sum(axis=0)) * expert_bytes
        arriving = self.up_in + self.nic_in
        n_up, n_nic = int(self.up_in.sum()), int(self.nic_in.sum())
        return MoveCost(
            n_moved_slots=n_up + n_nic, moved_bytes=(n_up + n_nic) * expert_bytes, up_bytes=n_up * expert_bytes,
            nic_bytes=n_nic * expert_bytes, fullest_rank_bytes=float(arriving.sum(axis=0).max(initial=0)) * expert_bytes,
            staging_bytes=float(arriving.max(initial=0)) * expert_bytes,
            time_s=max(float(up.max()) / up_bytes_per_s, float(nic.max()) / nic_bytes_per_s if nic_bytes_per_s else 0.0),
        )  # fmt: skip


def moves_between(old: Placement, new: Placement, domain_size: int | None = None) -> Moves:
    """The copies that have to travel when `new` follows `old`.

    Args:
        old: where experts are; one row serves all layers.
        new: where they shall be.
        domain_size: d; all ranks by default.

    Raises:
        ParallelError: other ranks or experts, or domains that do not divide the ranks.
    """
    if (old.n_ranks, old.n_experts) != (new.n_ranks, new.n_experts):
        raise ParallelError("placements of different ranks or experts", field="routing.placement",
                            value=f"R {old.n_ranks} and {new.n_ranks}, E {old.n_experts} and {new.n_experts}")  # fmt: skip
    d = check_domain(domain_size, new.n_ranks)
    before, after = np.broadcast_arrays(old.held(), new.held())
    arriving = after & ~before
    by_domain = before.reshape(*before.shape[:2], -1, d)
    n_near = by_domain.sum(axis=3)
    is_near = np.repeat(n_near > 0, d, axis=2)
    up, nic = arriving & is_near, arriving & ~is_near
    up_per_domain = up.reshape(by_domain.shape).sum(axis=3)
    up_load = np.repeat(up_per_domain / np.maximum(n_near, 1), d, axis=2)
    nic_load = nic.sum(axis=2) / before.sum(axis=2)
    return Moves(
        up_in=up.sum(axis=1), up_out=np.einsum("ler,ler->lr", before, up_load),
        nic_in=nic.sum(axis=1), nic_out=np.einsum("ler,le->lr", before, nic_load),
    )  # fmt: skip


def align_ranks(new: Placement, old: Placement, domain_size: int | None = None) -> Placement:
    """`new` with its ranks renamed, layer by layer, so that as few experts as possible travel from `old`.

    Ranks are alike, so renaming them keeps every balance. With `domain_size` domains are renamed first, then the ranks inside
    each (two optimal assignments): what is together in a domain stays together, as hierarchical placements need.

    Args:
        new: the placement to rename.
        old: where experts are now.
        domain_size: d of domains to keep whole; by default any rank may take any name.
    """
    d, n_ranks, width = check_domain(domain_size, new.n_ranks), new.n_ranks, new.slots_per_rank
    n_layers = max(len(new.slots), len(old.slots))
    slots = np.broadcast_to(new.slots, (n_layers, new.n_slots)).reshape(n_layers, n_ranks, width)
    was = np.broadcast_to(old.slots, (n_layers, old.n_slots)).reshape(n_layers, n_ranks, -1)
    if d == n_ranks and width == was.shape[2] == 1:
        renamed = np.stack([_kept_in_place(a[:, 0], b[:, 0]) for a, b in zip(slots, was, strict=True)])
    else:
        after, before = (np.broadcast_to(p.held(), (n_layers, p.n_experts, n_ranks)) for p in (new, old))
        renamed = np.stack([_renamed(s, a, b, d) for s, a, b in zip(slots, after, before, strict=True)])
    return Placement(renamed.reshape(n_layers, -1), n_ranks, new.n_experts)


def _renamed(slots: Ints, after: NDArray[np.bool_], before: NDArray[np.bool_], d: int) -> Ints:
    """One layer's slots [R, width] with ranks in the best order; `after` and `before` are [E, R]."""
    from scipy.optimize import linear_sum_assignment

    n_domains = len(slots) // d
    to, of = (x.reshape(len(x), n_domains, d).any(axis=2).astype(np.float32) for x in (after, before))
    shared: NDArray[Any] = np.matmul(after.T.astype(np.float32), before.astype(np.float32))
    renamed = np.empty_like(slots)
    for a, b in zip(*linear_sum_assignment(np.matmul(to.T, of), maximize=True), strict=True):
        rows, columns = linear_sum_assignment(shared[a * d : (a + 1) * d, b * d : (b + 1) * d], maximize=True)
        renamed[b * d + columns] = slots[a * d + rows]
    return renamed


def _kept_in_place(new: Ints, old: Ints) -> Ints:
    """The experts of `new`, one per rank, put where `old` has the same one; the others fill the gaps."""
    keys = [_numbered(x) for x in (new, old)]
    _, stays, places = np.intersect1d(keys[0], keys[1], return_indices=True)
    out = np.full(len(new), -1, np.int64)
    out[places] = new[stays]
    out[out < 0] = np.delete(new, stays)
    return out


def _numbered(experts: Ints) -> Ints:
    """Distinct keys for equal experts: expert and how many came before."""
    order = np.argsort(experts, kind="stable")
    ordered = experts[order]
    key = np.empty(len(experts), np.int64)
    key[order] = ordered * len(experts) + np.arange(len(experts)) - np.searchsorted(ordered, ordered)
    return key


def redundant_bytes_per_rank(placement: Placement, n_layers: int, expert_bytes: float) -> float:
    """Weights in slots beyond one per expert, per rank: L (n_slots - E) / R x expert bytes.

    >>> from moesim.routing.placement import trivial
    >>> redundant_bytes_per_rank(trivial(256, 32, 288), 58, 44e6) / 1e9
    2.552
    """
    return n_layers * placement.n_redundant / placement.n_ranks * expert_bytes
