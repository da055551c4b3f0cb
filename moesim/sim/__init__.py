"""Discrete-event simulation (simpy): order, contention and waiting, with every duration from the cost model."""

from __future__ import annotations

from moesim.sim.flow import FlowResult, simulate
from moesim.sim.options import FlowOptions, Granularity

__all__ = ["FlowOptions", "FlowResult", "Granularity", "simulate"]
