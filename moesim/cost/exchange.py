"""Expert dispatch and combine in closed form: the busier direction of the busiest port of a rank, and latency."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moesim.cost import fabric
from moesim.cost.network import Network
from moesim.cost.result import OpCost
from moesim.ops import EXCHANGES, ExchangeShape, Num, Op, OpKind, maximum
from moesim.specs.base import Origin
from moesim.specs.fabric import Mode
from moesim.specs.hardware import DeviceSpec

__all__ = ["PortTimes", "exchange_cost", "lent_ratio", "lent_units", "port_times"]


@dataclass(frozen=True, slots=True)
class PortTimes:
    """How long one rank's ports are busy in an exchange, out and in, and what does not depend on size."""

    out_s: Num
    in_s: Num
    latency_s: Num

    @property
    def total_s(self) -> Num:
        """The busier direction, and latency."""
        busier: Num = maximum(self.out_s, self.in_s)
        return busier + self.latency_s


def port_times(op: Op, network: Network) -> PortTimes:
    """Port times of a dispatch or combine of one rank: scale-up ports and NICs work side by side, the busier one counts.

    Two-hop exchanges stay on the sender's rail; direct ones go to all rails, through what the spine carries.

    On a measured fabric by `cost.fabric`; elsewhere u / w or v / w_nic and alpha-beta latencies (assumption).
    """
    shape = op.shape
    if not isinstance(shape, ExchangeShape):
        raise TypeError(f"{op.name} is not an exchange")
    spine = network.cross_rail_ratio if shape.is_low_latency else 1.0
    nic_out, nic_in = shape.nic_out_bytes * spine, shape.nic_in_bytes * spine
    rates = network.exchange_rates(shape.is_low_latency, op.kind is OpKind.COMBINE)
    # a shape without its message size was not made for a fabric
    if rates is not None and not _is_zero(shape.message_bytes):
        n_domains = max(1, -(-shape.n_ranks // network.domain_size))
        common = (shape.message_bytes, shape.n_experts, shape.token_bytes, n_domains)
        return PortTimes(
            fabric.busy_s(rates, shape.up_out_bytes, nic_out, *common),
            fabric.busy_s(rates, shape.up_in_bytes, nic_in, *common),
            fabric.latency_s(rates, n_domains, shape.n_experts),
        )
    n_near = min(shape.n_ranks, network.domain_size)
    up_rate = network.scatter_bytes_per_s(n_near)
    out_s, in_s = shape.up_out_bytes / up_rate, shape.up_in_bytes / up_rate
    latency_s: Num = network.up_latency_s
    post_s = (n_near - 1) * network.up_message_s
    if shape.n_ranks > network.domain_size:
        out_s = maximum(out_s, nic_out / network.nic_bytes_per_s)
        in_s = maximum(in_s, nic_in / network.nic_bytes_per_s)
        latency_s = network.nic_latency_s
        post_s += (shape.n_ranks - n_near) * network.nic_message_s
    return PortTimes(out_s, in_s, latency_s + post_s)


def exchange_cost(op: Op, network: Network) -> OpCost:
    """Dispatch or combine of one rank: the busier of its ports, out or in, plus latency and message posts."""
    times = port_times(op, network)
    link_s = maximum(times.out_s, times.in_s)
    shape = op.shape
    if network.fabric is None or not isinstance(shape, ExchangeShape) or _is_zero(shape.message_bytes):
        return OpCost(link_s + times.latency_s, link_s=link_s, latency_s=times.latency_s, origin=network.origin)
    mode: Mode = "low_latency" if shape.is_low_latency else "normal"
    return OpCost(
        link_s + times.latency_s, link_s=link_s, latency_s=times.latency_s, origin=_origin(op, shape, network),
        error_frac=float(network.fabric.interval_frac[mode]), is_extrapolated=_is_beyond(shape, network),
    )  # fmt: skip


def lent_units(op: Op, network: Network) -> int:
    """Compute units that the exchange's kernels take while it runs: those of normal mode on a measured fabric."""
    shape = op.shape
    if not isinstance(shape, ExchangeShape) or shape.is_low_latency or network.fabric is None:
        return 0
    return network.fabric.n_sms


def lent_ratio(ops: Iterable[Op], network: Network, device: DeviceSpec) -> float:
    """How much longer kernels take that share the device with the exchanges among `ops`: n / (n - lent) compute units.

    Assumes: the partition is fixed for the whole segment, as in DeepSeek's and SGLang's prefill, and time goes as 1 / units.
    """
    units = device.n_compute_units
    lent = max((lent_units(op, network) for op in ops if op.kind in EXCHANGES), default=0)
    return units / (units - lent) if units is not None and lent < units else 1.0


def _origin(op: Op, shape: ExchangeShape, network: Network) -> Origin:
    """As weak as what the file says of the ports in use: the NIC where domains are crossed, else the scale-up ports."""
    if network.fabric is None or _is_beyond(shape, network):
        return Origin.ASSUMPTION
    if shape.n_ranks > network.domain_size:
        return network.fabric.source_of("nic_bytes_per_s").origin
    mode = "low_latency" if shape.is_low_latency else "normal"
    return network.fabric.source_of(f"{mode}_{op.kind.value}.up_bytes_per_s").origin


def _is_beyond(shape: ExchangeShape, network: Network) -> bool:
    """Whether the links in use are not those that the fabric was measured on: other rates, or a spine that is too small."""
    crosses = shape.n_ranks > network.domain_size
    if crosses and shape.is_low_latency and network.cross_rail_ratio > 1.0:
        return True
    other_nic = crosses and abs(network.nic_bytes_per_s / network.nic_reference_bytes_per_s - 1.0) > 0.02
    return other_nic or abs(network.up_bytes_per_s / network.up_reference_bytes_per_s - 1.0) > 0.02


def _is_zero(x: Num) -> bool:
    return x == 0.0 if isinstance(x, float | int) else not np.any(x)
