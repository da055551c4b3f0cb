"""Expert exchanges on a measured fabric: port times of dispatch and combine in two modes.

Letters: u bytes of one direction through a rank's scale-up port, v through its NIC, m bytes of one message, E experts, t bytes of
the rank's own tokens, S compute units lent, D scale-up domains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moesim.ops import Num
from moesim.specs.fabric import ExchangeFit

__all__ = ["ExchangeRates", "busy_s", "latency_s"]


@dataclass(frozen=True, slots=True)
class ExchangeRates:
    """A fit on hardware whose links are `up_scale` and `nic_scale` times as fast as those it was made on."""

    fit: ExchangeFit
    nic_bytes_per_s: float
    sharpness: float
    n_sms: float
    up_scale: float = 1.0
    nic_scale: float = 1.0


def latency_s(rates: ExchangeRates, n_domains: Num, n_experts: Num, *, notify: bool = True) -> Num:
    """What an exchange takes besides moving bytes: base + E expert + [D > 1] (crossing + doubling log2(D / 2) + notify)."""
    fit = rates.fit
    inside = n_experts * fit.expert_s + fit.base_s
    crossing, doubling = fit.crossing_s, fit.doubling_s
    if notify:
        crossing, doubling = crossing + fit.notify_s, doubling + fit.notify_doubling_s
    if isinstance(n_domains, np.ndarray):
        beyond = np.log2(np.maximum(n_domains, 2.0) / 2.0)
        return inside + np.where(n_domains > 1, crossing + doubling * beyond, 0.0)
    return inside + (crossing + doubling * math.log2(n_domains / 2.0) if n_domains > 1 else 0.0)


def busy_s(
    rates: ExchangeRates, up_bytes: Num, nic_bytes: Num, message_bytes: Num, n_experts: Num, token_bytes: Num,
    n_domains: Num,
) -> Num:  # fmt: skip
    """How long one direction of a rank's ports is busy: the p-norm of the things that work side by side, and a filling.

    x = (sum_i x_i^p)^(1/p) over u / (up eff), u / (E expert rate), v / (nic eff), (u + w v + o t) / (S sm eff), with
    eff = m / (m + half); then x + f x / (x + f).

    Assumes: ports, NIC and compute units overlap but for the p-norm's rounding. Source: a form by assumption, after DeepEP's
    kernels (low-latency: a worker per expert; normal: channels of compute units, two hops across domains); parameters fitted.
    """
    fit, p = rates.fit, rates.sharpness
    eff = message_bytes / (message_bytes + fit.half_bytes) if fit.half_bytes else 1.0
    total = (up_bytes / (eff * (fit.up_bytes_per_s * rates.up_scale))) ** p
    total = total + (nic_bytes / (eff * (rates.nic_bytes_per_s * rates.nic_scale))) ** p
    if fit.expert_bytes_per_s is not None:
        total = total + (up_bytes / (n_experts * fit.expert_bytes_per_s)) ** p
    if fit.sm_bytes_per_s is not None:
        handled = up_bytes + nic_bytes * fit.nic_weight + token_bytes * fit.token_weight
        total = total + (handled / (eff * (rates.n_sms * fit.sm_bytes_per_s))) ** p
    x = total ** (1.0 / p)
    if not fit.fill_s:
        return x
    ratio = fit.crossing_fill_ratio
    crosses = (
        np.where(n_domains > 1, ratio, 1.0) if isinstance(n_domains, np.ndarray) else ratio if n_domains > 1 else 1.0
    )
    fill = fit.fill_s * crosses
    return x + x * fill / (x + fill)
