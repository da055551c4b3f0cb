"""Achieved link rates of a cluster: what closed forms and simulated ports share."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.cost.fabric import ExchangeRates
from moesim.cost.library import LIBRARY_LINKS, LibraryTimes
from moesim.specs.base import Origin
from moesim.specs.fabric import FabricSpec, Mode
from moesim.specs.hardware import Hardware, LinkSpec, Topology

__all__ = ["Network"]


@dataclass(frozen=True, slots=True)
class Network:
    """Links at achieved rates, per device and direction; exchanges on a measured `fabric` have its own.

    `cross_rail_ratio` is how much longer NICs take over traffic that goes to all ranks alike, not just to those of their own rail
    (low-latency exchanges). `up_reference` and `nic_reference` are the rates at the fabric's own peaks: what is faster or slower
    than them scales the fabric's ports by as much.
    """

    up_bytes_per_s: float
    up_latency_s: float
    up_message_s: float
    nic_bytes_per_s: float
    nic_latency_s: float
    nic_message_s: float
    domain_size: int
    is_switched: bool
    origin: Origin = Origin.ASSUMPTION
    topology: Topology = Topology.SWITCH
    n_neighbours: int | None = None
    reduces_in_switch: bool = False
    shared_bytes_per_s: float | None = None
    n_below_root: int = 1
    fabric: FabricSpec | None = None
    up_reference_bytes_per_s: float = 1.0
    nic_reference_bytes_per_s: float = 1.0
    up_frac: float = 1.0
    library: LibraryTimes | None = None
    cross_rail_ratio: float = 1.0

    @classmethod
    def of(cls, hardware: Hardware, up_frac: float, nic_frac: float, library: LibraryTimes | None = None) -> Network:
        """Peak rates of `hardware` times achieved fractions; absent links carry nothing and are never used by a valid split.

        `library` is used inside domains whose links it is known for.
        """
        up, out, fabric = hardware.scale_up, hardware.scale_out, hardware.fabric
        nic = hardware.nic_bytes_per_s if hardware.nic_bytes_per_s else (out.bytes_per_s if out else 0.0)
        n_rails, over = hardware.n_rails or 1, hardware.spine_oversubscription
        return cls(
            up_bytes_per_s=(up.bytes_per_s if up else nic) * up_frac,
            up_latency_s=up.latency_s if up else (out.latency_s if out else 0.0),
            up_message_s=up.message_overhead_s if up else 0.0,
            nic_bytes_per_s=nic * nic_frac / (over if n_rails == 1 else 1.0),
            nic_latency_s=out.latency_s if out else 0.0,
            nic_message_s=out.message_overhead_s if out else 0.0,
            domain_size=hardware.scale_up_domain_size,
            is_switched=up is None or up.topology in (Topology.SWITCH, Topology.MESH),
            topology=up.topology if up else Topology.SWITCH,
            n_neighbours=up.n_neighbours if up else None,
            reduces_in_switch=up is not None and up.in_switch == "reduce",
            shared_bytes_per_s=_through_root(up) if up else None,
            n_below_root=(up.n_below_root or 1) if up else 1,
            fabric=fabric,
            up_reference_bytes_per_s=fabric.up_peak_bytes_per_s * up_frac if fabric else 1.0,
            nic_reference_bytes_per_s=fabric.nic_peak_bytes_per_s * nic_frac if fabric else 1.0,
            up_frac=up_frac,
            library=library if up is not None and up.kind in LIBRARY_LINKS else None,
            # of traffic to all rails alike, 1 - 1 / n_rails crosses the spine
            cross_rail_ratio=max(1.0, (1.0 - 1.0 / n_rails) * over),
        )

    def exchange_rates(self, is_low_latency: bool, is_combine: bool) -> ExchangeRates | None:
        """The fabric's parameters on this hardware's links, or None where the fabric was never measured."""
        if self.fabric is None:
            return None
        mode: Mode = "low_latency" if is_low_latency else "normal"
        return ExchangeRates(
            self.fabric.exchange(mode, is_combine),
            self.fabric.nic_bytes_per_s,
            self.fabric.sharpness,
            float(self.fabric.n_sms),
            self.up_bytes_per_s / self.up_reference_bytes_per_s,
            self.nic_bytes_per_s / self.nic_reference_bytes_per_s,
        )

    def pair_bytes_per_s(self, n_ranks: int) -> float:
        """What one rank reaches when it talks to `n_ranks` - 1 others of its domain: a mesh has a link for each of them."""
        if self.topology is Topology.MESH and self.n_neighbours:
            return self.up_bytes_per_s * min(1.0, (n_ranks - 1) / self.n_neighbours)
        return self.up_bytes_per_s

    def scatter_bytes_per_s(self, n_ranks: int) -> float:
        """What a rank's ports carry of traffic that goes evenly to `n_ranks` - 1 others of its domain.

        Mesh: only links to peers that take part. Torus of k x k ...: a byte crosses k/4 links per dimension on its mean way, so
        that many bytes cross each port. Host tree: the root's rate shared by all. Assumes shortest ways, evenly loaded.
        """
        rate = self.pair_bytes_per_s(n_ranks)
        if self.topology is Topology.TORUS and n_ranks > 2:
            n_dims = max(1, (self.n_neighbours or 2) // 2)
            side = n_ranks ** (1.0 / n_dims)
            rate /= max(1.0, n_dims * side / 4.0)
        root = self.root_bytes_per_s(n_ranks)
        return rate if root is None else min(rate, root)

    def root_bytes_per_s(self, n_ranks: int) -> float | None:
        """A rank's share of what a host tree's root carries; None where nothing has to cross it."""
        if self.shared_bytes_per_s is None or n_ranks <= self.n_below_root:
            return None
        return self.shared_bytes_per_s / n_ranks


def _through_root(link: LinkSpec) -> float | None:
    """What the root of a host tree carries; a bounce through host memory crosses it twice."""
    if link.shared_bytes_per_s is None:
        return None
    return link.shared_bytes_per_s / (2.0 if link.peer_access == "through_host" else 1.0)
