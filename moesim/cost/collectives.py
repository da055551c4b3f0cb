"""Communication in closed form: latency plus the busiest port, within a scale-up domain and across domains.

Letters: n ranks, B bytes of one rank's full buffer, a latency of one message, w achieved bytes per second and direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.cost.result import OpCost
from moesim.ops import CollectiveShape, ExchangeShape, Num, Op, OpKind, maximum, minimum
from moesim.specs.base import Origin
from moesim.specs.hardware import Hardware, Topology

__all__ = ["Network", "PortTimes", "collective_cost", "exchange_cost", "port_times"]


@dataclass(frozen=True, slots=True)
class Network:
    """Achieved link rates of a cluster: what closed forms and simulated ports share."""

    up_bytes_per_s: float
    up_latency_s: float
    up_message_s: float
    nic_bytes_per_s: float
    nic_latency_s: float
    nic_message_s: float
    domain_size: int
    is_switched: bool
    origin: Origin = Origin.ASSUMPTION

    @classmethod
    def of(cls, hardware: Hardware, up_frac: float, nic_frac: float) -> Network:
        """Peak rates of `hardware` times achieved fractions; absent links carry nothing and are never used by a valid split."""
        up, out = hardware.scale_up, hardware.scale_out
        nic = hardware.nic_bytes_per_s if hardware.nic_bytes_per_s else (out.bytes_per_s if out else 0.0)
        return cls(
            up_bytes_per_s=(up.bytes_per_s if up else nic) * up_frac,
            up_latency_s=up.latency_s if up else (out.latency_s if out else 0.0),
            up_message_s=up.message_overhead_s if up else 0.0,
            nic_bytes_per_s=nic * nic_frac,
            nic_latency_s=out.latency_s if out else 0.0,
            nic_message_s=out.message_overhead_s if out else 0.0,
            domain_size=hardware.scale_up_domain_size,
            is_switched=up is None or up.topology in (Topology.SWITCH, Topology.MESH),
        )


def collective_cost(op: Op, network: Network) -> OpCost:
    """All-reduce, all-gather, reduce-scatter or send of one rank.

    Within a domain: direct exchange over switched ports, a (n-1)/n B/w for gather and scatter, the better of one-shot
    a + (n-1) B/w and two-shot 2a + 2 (n-1)/n B/w for all-reduce; a ring of n-1 steps without a switch. Across domains:
    scatter inside, reduce between peers over NICs, gather inside. Source: standard alpha-beta forms (Thakur et al., 2005).
    """
    shape = op.shape
    if not isinstance(shape, CollectiveShape):
        raise TypeError(f"{op.name} is not a collective")
    n, size = shape.n_ranks, shape.message_bytes
    if op.kind is OpKind.SEND:
        inside = shape.stride < network.domain_size
        rate, latency = _link(network, inside)
        return _result(size / rate, latency, network)
    n_in = min(n, max(1, network.domain_size // shape.stride))
    n_out = -(-n // n_in)
    link_s: Num = 0.0
    latency_s: Num = 0.0
    rounds = 2.0 if op.kind is OpKind.ALL_REDUCE else 1.0
    if n_out > 1:
        link_s = size * (rounds * (n_out - 1) / n_out / n_in) / network.nic_bytes_per_s
        latency_s = rounds * network.nic_latency_s
    if n_in > 1:
        up_s, up_latency_s = _inside(op.kind, n_in, size, network, alone=n_out == 1)
        link_s, latency_s = link_s + up_s, latency_s + up_latency_s
    return _result(link_s, latency_s, network)


def _inside(kind: OpKind, n: int, size: Num, network: Network, *, alone: bool) -> tuple[Num, Num]:
    rate, latency = network.up_bytes_per_s, network.up_latency_s
    part = size * ((n - 1) / n) / rate
    if not network.is_switched:
        steps = float(n - 1)
        rounds = 2.0 if kind is OpKind.ALL_REDUCE else 1.0
        return part * rounds, latency * steps * rounds
    if kind is not OpKind.ALL_REDUCE:
        return part, latency
    two_shot, one_shot = part * 2.0 + 2.0 * latency, size * (float(n - 1) / rate) + latency
    best = minimum(two_shot, one_shot) if alone else two_shot
    two_is_best = best == two_shot
    used_latency = latency * (1.0 + two_is_best)
    return best - used_latency, used_latency


@dataclass(frozen=True, slots=True)
class PortTimes:
    """How long one rank's ports are busy in an exchange, out and in, and what does not depend on size."""

    out_s: Num
    in_s: Num
    latency_s: Num

    @property
    def total_s(self) -> Num:
        """The busier direction, and latency."""
        return maximum(self.out_s, self.in_s) + self.latency_s


def port_times(op: Op, network: Network) -> PortTimes:
    """Port times of a dispatch or combine of one rank: scale-up ports and NICs work side by side, the busier one counts."""
    shape = op.shape
    if not isinstance(shape, ExchangeShape):
        raise TypeError(f"{op.name} is not an exchange")
    out_s, in_s = shape.up_out_bytes / network.up_bytes_per_s, shape.up_in_bytes / network.up_bytes_per_s
    latency_s: Num = network.up_latency_s
    n_near = min(shape.n_ranks, network.domain_size) - 1
    post_s = n_near * network.up_message_s
    if shape.n_ranks > network.domain_size:
        out_s = maximum(out_s, shape.nic_out_bytes / network.nic_bytes_per_s)
        in_s = maximum(in_s, shape.nic_in_bytes / network.nic_bytes_per_s)
        latency_s = network.nic_latency_s
        post_s += (shape.n_ranks - 1 - n_near) * network.nic_message_s
    return PortTimes(out_s, in_s, latency_s + post_s)


def exchange_cost(op: Op, network: Network) -> OpCost:
    """Dispatch or combine of one rank: the busier of its ports, out or in, plus latency and message posts."""
    times = port_times(op, network)
    return _result(maximum(times.out_s, times.in_s), times.latency_s, network)


def _link(network: Network, inside: bool) -> tuple[float, float]:
    if inside:
        return network.up_bytes_per_s, network.up_latency_s
    return network.nic_bytes_per_s, network.nic_latency_s


def _result(link_s: Num, latency_s: Num, network: Network) -> OpCost:
    return OpCost(link_s + latency_s, link_s=link_s, latency_s=latency_s, origin=network.origin)
