"""A row of traffic as the cost model times it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.cost import CostModel
from moesim.cost.exchange import port_times
from moesim.ops import ExchangeShape, Op, OpKind, Work
from moesim.specs.hardware import Hardware

__all__ = ["predicted_s"]


def predicted_s(row: dict[str, object], hardware: Hardware, n_sms: int | None = None, *, notify: bool = False) -> float:
    """A row's time through `CostModel`'s own path; the exchange of counts apart, as benchmarks time it."""
    network = CostModel.of(hardware).network
    if n_sms is not None and network.fabric is not None:
        network = replace(network, fabric=network.fabric.model_copy(update={"n_sms": n_sms}))
    r = {k: float(v) if isinstance(v, (int, float, np.number)) else v for k, v in row.items()}
    kind = OpKind.DISPATCH if r["kind"] == "dispatch" else OpKind.COMBINE
    is_low_latency = r["mode"] == "low_latency"
    shape = ExchangeShape(int(r["n_ranks"]), r["up"], r["up"], r["nic"], r["nic"], r["n_ranks"] - 1, r["m"], r["own"],
                          r["experts"], is_low_latency=is_low_latency)  # fmt: skip
    time_s = float(port_times(Op(str(r["kind"]), kind, Work(), shape), network).total_s)
    if not notify and not is_low_latency and r["n_domains"] > 1 and network.fabric is not None:
        fit = network.fabric.exchange("normal", kind is OpKind.COMBINE)
        time_s -= fit.notify_s + fit.notify_doubling_s * float(np.log2(r["n_domains"] / 2))
    return time_s
