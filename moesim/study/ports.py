"""Bytes through the scale-up ports and the NIC of every rank in a pass, out and in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.ops import CollectiveShape, ExchangeShape, Num, Op, OpKind, Program, Segment
from moesim.specs.hardware import Hardware

__all__ = ["PortUse", "port_use"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PortUse:
    """Bytes over what a port could carry in the time at its rated bandwidth, [R] each; None where there is no such port."""

    up_out: Floats | None
    up_in: Floats | None
    nic_out: Floats | None
    nic_in: Floats | None


def port_use(program: Program, hardware: Hardware, time_s: float) -> PortUse:
    """How much of the bandwidth of its ports each rank uses in a pass of `time_s`.

    Exchanges by their own count of bytes. Collectives as rings, r (n-1)/n B with r = 2 for all-reduce: inside a domain, and
    between domains for a rank's share of the buffer (assumption: one-shot and in-switch algorithms move other amounts).
    """
    total = np.zeros((4, program.n_ranks))
    inside = [segment for part in program.micro_batches for segment in part.segments if segment.layers]
    outside = [segment for segment in program.segments if not (inside and segment.layers)]
    for segment in (*outside, *inside):
        for op in segment.ops:
            total += _bytes(op, segment, hardware.scale_up_domain_size, program.n_ranks)
    up = hardware.scale_up.bytes_per_s if hardware.scale_up is not None else None
    nic = hardware.nic_bytes_per_s or (hardware.scale_out.bytes_per_s if hardware.scale_out is not None else None)
    crosses = program.n_ranks > hardware.scale_up_domain_size
    known = (up, up, nic if crosses else None, nic if crosses else None)
    used = (None if rate is None else x / (rate * max(time_s, 1e-30)) for x, rate in zip(total, known, strict=True))
    return PortUse(*used)


def _bytes(op: Op, segment: Segment, domain_size: int, n_ranks: int) -> Floats:
    """[4, R] over all layers of a segment: scale-up out and in, NIC out and in."""
    shape = op.shape
    if isinstance(shape, ExchangeShape):
        four: tuple[Num, ...] = (shape.up_out_bytes, shape.up_in_bytes, shape.nic_out_bytes, shape.nic_in_bytes)
    elif isinstance(shape, CollectiveShape) and op.kind is not OpKind.SEND:
        rounds = 2.0 if op.kind is OpKind.ALL_REDUCE else 1.0
        n_in = min(shape.n_ranks, max(1, domain_size // shape.stride))
        n_out = -(-shape.n_ranks // n_in)
        inside = shape.message_bytes * (rounds * (n_in - 1) / n_in)
        between = shape.message_bytes * (rounds * (n_out - 1) / n_out / n_in)
        four = (inside, inside, between, between)
    else:
        return np.zeros((4, n_ranks))
    return np.array([_over_layers(x, segment.n_repeat, n_ranks) for x in four])


def _over_layers(x: Num, n_repeat: int, n_ranks: int) -> Floats:
    known = np.atleast_2d(np.asarray(x, dtype=float))
    rows = np.broadcast_to(known, (known.shape[0], n_ranks)).sum(axis=0)
    return np.asarray(rows * (n_repeat / known.shape[0]))
