"""How long an operator takes on given hardware, and why; energy and dollars. Pure functions of frozen values."""

from __future__ import annotations

from moesim.cost.collectives import Network, collective_cost, exchange_cost
from moesim.cost.efficiency import DEFAULT_EFFICIENCY, Efficiency, EfficiencyTable
from moesim.cost.energy import Energy, pass_energy, usd_per_million_tokens
from moesim.cost.estimate import CalibratedOps, CostModel, roofline
from moesim.cost.result import Bound, OpCost

__all__ = [
    "DEFAULT_EFFICIENCY",
    "Bound",
    "CalibratedOps",
    "CostModel",
    "Efficiency",
    "EfficiencyTable",
    "Energy",
    "Network",
    "OpCost",
    "collective_cost",
    "exchange_cost",
    "pass_energy",
    "roofline",
    "usd_per_million_tokens",
]
