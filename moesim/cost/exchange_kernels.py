"""Kernels of low-latency exchanges that take the whole compute engine while two micro-batches are interleaved."""

from __future__ import annotations

import numpy as np

from moesim.cost.network import Network
from moesim.ops import ExchangeShape, Num, Op, OpKind

__all__ = ["kernels_s"]

#: Seconds of a dispatch's sending kernel besides moving rows, and bytes sent per second; of its receiving kernel alike.
SEND_S, SEND_BYTES_PER_S = 13.3e-6, 635e9
RECEIVE_S, RECEIVE_BYTES_PER_S = 4.8e-6, 1415e9
#: A combine's rows have no cast: rates over a dispatch's.
COMBINE_RATIO = 1.48


def kernels_s(op: Op, network: Network) -> Num:
    """How long an exchange's sending and receiving kernels hold the compute engine, data being under way without it.

    a + out / b + c + in / d, with out and in the bytes of the rank's rows, near and far. Zero for normal mode, whose kernels take
    some units all the time (`lent_ratio`), and on fabrics without a measured low-latency mode. Without overlap these kernels are
    inside the exchange's time; with it that time is shorter by them, and they queue with the other batch's computes.

    Assumes: the same on every device; the split of a combine between sending and receiving is a dispatch's.
    Source: a, b, c, d: Ant Group's table of DeepEP with receive hooks on H20, EP16, hidden size 7,168, 8 to 128 tokens (19 to 36
        us; worst 1.9 us off); combine: 40.8 us at 128 tokens, same source. Left out: B200, EP8, 128 tokens, 35.0 and 41.9 us
        (5 and 9% low).
    """
    shape = op.shape
    if not isinstance(shape, ExchangeShape) or not shape.is_low_latency or network.fabric is None:
        return 0.0
    if not np.any(shape.message_bytes):
        return 0.0
    ratio = COMBINE_RATIO if op.kind is OpKind.COMBINE else 1.0
    out, inward = shape.up_out_bytes + shape.nic_out_bytes, shape.up_in_bytes + shape.nic_in_bytes
    rows_s: Num = out / (SEND_BYTES_PER_S * ratio) + inward / (RECEIVE_BYTES_PER_S * ratio)
    return rows_s + (SEND_S + RECEIVE_S)
