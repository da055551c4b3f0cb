"""Communication in closed form: latency plus the busiest port, within a scale-up domain and across domains.

Letters: n ranks, B bytes of one rank's full buffer, a latency of one message, o time to post one, w achieved bytes per second and
direction. Where several algorithms fit, the quickest is taken, as tuned libraries do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from moesim.cost.exchange import PortTimes, exchange_cost, port_times
from moesim.cost.library import LibraryTimes
from moesim.cost.network import Network
from moesim.cost.result import OpCost
from moesim.ops import CollectiveShape, Num, Op, OpKind, maximum, minimum
from moesim.specs.hardware import Topology

__all__ = ["Network", "PortTimes", "algorithms", "collective_cost", "exchange_cost", "port_times"]

Parts = tuple[Num, Num]

#: What a reduction inside the switch takes to set out. Source: NCCL's own tuning model, src/graph/tuning.cc, NVLS on NVLink.
IN_SWITCH_LATENCY_S = 25e-6


def collective_cost(op: Op, network: Network) -> OpCost:
    """All-reduce, all-gather, reduce-scatter or send of one rank.

    Within a domain the quickest of `algorithms`; across domains: scatter inside, exchange between peers over NICs, gather inside.
    Source: standard alpha-beta forms (Thakur et al., 2005).
    """
    shape = op.shape
    if not isinstance(shape, CollectiveShape):
        raise TypeError(f"{op.name} is not a collective")
    n, size = shape.n_ranks, shape.message_bytes
    if op.kind is OpKind.SEND:
        inside = shape.stride < network.domain_size
        rate, latency = _link(network, inside)
        return _result(size / rate, latency, network)
    n_in, n_out = _shares(n, shape.stride, network)
    link_s: Num = 0.0
    latency_s: Num = 0.0
    if n_out > 1:
        link_s, latency_s = _best(between(op.kind, n_out, size * (1.0 / n_in), network))
        if n_in == 1 and network.library is not None:
            latency_s = latency_s + network.library.start_s
    if n_in > 1:
        up_s, up_latency_s = _best(inside_domain(op.kind, n_in, size, network, alone=n_out == 1))
        link_s, latency_s = link_s + up_s, latency_s + up_latency_s
    return _result(link_s, latency_s, network)


def algorithms(op: Op, network: Network) -> tuple[str, ...]:
    """Names of the quickest algorithm inside domains and, where it leaves them, between them, for the largest size in `op`."""
    shape = op.shape
    if not isinstance(shape, CollectiveShape) or op.kind is OpKind.SEND:
        return ()
    n_in, n_out = _shares(shape.n_ranks, shape.stride, network)
    size = float(np.max(shape.message_bytes))
    names = []
    if n_in > 1:
        names.append(_quickest(inside_domain(op.kind, n_in, size, network, alone=n_out == 1)))
    if n_out > 1:
        names.append(_quickest(between(op.kind, n_out, size / n_in, network)))
    return tuple(names)


def inside_domain(kind: OpKind, n: int, size: Num, network: Network, *, alone: bool) -> Mapping[str, Parts]:
    """Link time and latency of every algorithm that the topology allows.

    Switch, mesh: direct (n-1)/n B/w + a; all-reduce one-shot (n-1) B/w + a, two-shot 2 (n-1)/n B/w + 2a, and in a switch that
    adds (1 + 1/n) B/w + 25 us. Torus, host tree: ring, (n-1)/n B/w + (n-1) a per round; in a torus of d dimensions one after the
    other, d (n^(1/d) - 1) a. Host tree: the root's rate bounds w. `alone` is False inside a larger collective: then no one-shot.
    With a library's times (`network.library`) these are rings, its direct kernels and its way through the switch.
    """
    if network.library is not None and network.topology is not Topology.TORUS:
        return _by_library(network.library, kind, n, size, network, alone=alone)
    rate, latency = network.pair_bytes_per_s(n), network.up_latency_s
    part = size * ((n - 1) / n) / rate
    rounds = 2.0 if kind is OpKind.ALL_REDUCE else 1.0
    if not network.is_switched:
        root = network.root_bytes_per_s(n)
        if root is not None:
            part = size * ((n - 1) / n) / min(rate, root)
        n_dims = max(1, (network.n_neighbours or 2) // 2) if network.topology is Topology.TORUS else 1
        steps = float(n - 1) if n_dims == 1 else n_dims * (n ** (1.0 / n_dims) - 1.0)
        return {"ring": (part * rounds, latency * steps * rounds)}
    if kind is not OpKind.ALL_REDUCE:
        return {"direct": (part, latency)}
    found: dict[str, Parts] = {"two-shot": (part * 2.0, 2.0 * latency)}
    if alone:
        found["one-shot"] = (size * (float(n - 1) / rate), latency)
    if network.reduces_in_switch and n > 2:
        found["in-switch"] = (size * ((1.0 + 1.0 / n) / rate), IN_SWITCH_LATENCY_S)
    return found


def _by_library(
    library: LibraryTimes, kind: OpKind, n: int, size: Num, network: Network, *, alone: bool
) -> Mapping[str, Parts]:
    peak = network.pair_bytes_per_s(n) / network.up_frac
    link_s, latency_s = library.ring(kind, n, size, peak)
    root = network.root_bytes_per_s(n)
    if root is not None:
        rounds = 2.0 if kind is OpKind.ALL_REDUCE else 1.0
        link_s = maximum(link_s, size * (rounds * (n - 1) / n / root))
    found: dict[str, Parts] = {"ring": (link_s, latency_s)}
    if kind is OpKind.ALL_REDUCE and network.is_switched:
        if alone:
            found |= library.direct(n, size, peak)
        if network.reduces_in_switch and n > 2:
            found["in-switch"] = library.in_switch(n, size, peak)
    return found


def between(kind: OpKind, n: int, size: Num, network: Network) -> Mapping[str, Parts]:
    """The same between domains, over NICs, for one rank's share B of the buffer.

    direct r (n-1)/n B/w + r (a + (n-1) o), ring r (n-1)/n B/w + r (n-1) (a + o) with r = 2 rounds for all-reduce; tree, for
    all-reduce, 2 B/w + 2 log2(n) (a + o).
    """
    rate, latency, post = network.nic_bytes_per_s, network.nic_latency_s, network.nic_message_s
    rounds = 2.0 if kind is OpKind.ALL_REDUCE else 1.0
    part = size * (rounds * (n - 1) / n / rate)
    found: dict[str, Parts] = {
        "direct": (part, rounds * (latency + (n - 1) * post)),
        "ring": (part, rounds * (n - 1) * (latency + post)),
    }
    if kind is OpKind.ALL_REDUCE:
        found["tree"] = (size * (2.0 / rate), 2.0 * math.ceil(math.log2(n)) * (latency + post))
    return found


def _shares(n: int, stride: int, network: Network) -> tuple[int, int]:
    n_in = min(n, max(1, network.domain_size // stride))
    return n_in, -(-n // n_in)


def _best(found: Mapping[str, Parts]) -> Parts:
    """The quickest, element by element where sizes are arrays."""
    parts = list(found.values())
    best_s, best_latency_s = parts[0][0] + parts[0][1], parts[0][1]
    for link_s, latency_s in parts[1:]:
        total = link_s + latency_s
        if isinstance(total, float) and isinstance(best_s, float):
            if total < best_s:
                best_s, best_latency_s = total, latency_s
            continue
        best_latency_s = np.where(total < best_s, latency_s, best_latency_s)
        best_s = minimum(best_s, total)
    return best_s - best_latency_s, best_latency_s


def _quickest(found: Mapping[str, Parts]) -> str:
    return min(found, key=lambda name: float(found[name][0]) + float(found[name][1]))


def _link(network: Network, inside: bool) -> tuple[float, float]:
    if inside:
        return network.pair_bytes_per_s(2), network.up_latency_s
    return network.nic_bytes_per_s, network.nic_latency_s


def _result(link_s: Num, latency_s: Num, network: Network) -> OpCost:
    return OpCost(link_s + latency_s, link_s=link_s, latency_s=latency_s, origin=network.origin)
