"""Physical form of collectives inside one scale-up domain.

Letters: n ranks, B bytes of one rank's full buffer, f(n) B bytes through its busiest port.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cost.forms import Array, Form, Parameters, Target, Terms, param, stack_features
from moesim.ops import CollectiveShape

__all__ = ["COLLECTIVES_FITTED", "CollectiveParams", "collective_form"]

COLLECTIVES_FITTED = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


@dataclass(frozen=True, slots=True)
class CollectiveParams(Parameters):
    """Parameters of a collective."""

    link_frac: float = param(0.75, 1e-3, 1.5, "", "part of the peak link bytes/s that large messages reach")
    bytes_half: float = param(1e6, 1e2, 1e9, "B", "port bytes at which half of that rate is reached")
    low_latency_frac: float = param(0.1, 1e-4, 1.5, "", "part of the peak link bytes/s of the low-latency protocol")
    overhead_s: float = param(5e-6, 3e-7, 5e-4, "s", "time of an empty call between two ranks")
    rank_s: float = param(5e-7, 1e-9, 1e-4, "s", "time per rank beyond two")
    rank_power: float = param(0.1, 1e-3, 3.0, "", "exponent of the loss of rate with ranks, (n / 2)^-power")
    power: float = param(3.0, 1.0, 12.0, "", "exponent of the smooth maximum of the two protocols' rates")


def _port_share(kind: str, n: Array) -> Array:
    share = (n - 1.0) / n
    return 2.0 * share if kind == "all_reduce" else share


def collective_form(kind: str) -> Form:
    """The form of one collective: overhead + the faster of a low-latency and a high-bandwidth protocol.

    `memory_s` of the terms is the high-bandwidth protocol, `compute_s` the low-latency one as a rate that combines with it by a
    power mean (the faster protocol is chosen at every size). Source: NCCL's LL/LL128/Simple protocols, fitted.
    """

    def terms(shape: CollectiveShape, p: CollectiveParams, target: Target) -> Terms:
        n, size = np.asarray(shape.n_ranks, dtype=np.float64), np.asarray(shape.message_bytes, dtype=np.float64)
        through = _port_share(kind, n) * size
        loss = (n / 2.0) ** p.rank_power
        bulk = (through + p.bytes_half) * loss / (target.link_bytes_per_s * p.link_frac)
        quick = (through + 1.0) * loss / (target.link_bytes_per_s * p.low_latency_frac)
        best = (bulk**-p.power + quick**-p.power) ** (-1.0 / p.power)
        return Terms(best * 1e-9, best, np.zeros(()), p.overhead_s + p.rank_s * (n - 2.0))

    def features(shape: CollectiveShape, p: CollectiveParams, target: Target, t: Terms) -> Array:
        n, size = np.asarray(shape.n_ranks, dtype=np.float64), np.asarray(shape.message_bytes, dtype=np.float64)
        return stack_features(np.log2(size), np.log2(n), np.log2(t.memory_s / t.overhead_s), np.log2(size / n))

    return Form(
        kind=kind,
        params_type=CollectiveParams,
        terms=terms,
        features=features,
        feature_names=("log bytes", "log ranks", "log link/overhead", "log bytes per rank"),
        shape_columns=("n_ranks", "message_bytes"),
        group_columns=("message_bytes",),
        length=1.0,
        ridge=1e-3,
        # tables of one collective are small and hardly noisy: with the usual 60 points and a centre for three of them, a left-out
        # size was predicted without the correction that its neighbours support
        correction_points=24,
        points_per_centre=1,
    )
