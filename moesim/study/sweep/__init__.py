"""Sweeps: every combination of the fields that a file varies, answered quickly, kept as they come, and run anywhere."""

from __future__ import annotations

from moesim.study.sweep.plan import Plan, load_sweep, make_plan
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.run import Progress, Tick, run_sweep

__all__ = ["Plan", "Progress", "SweepResult", "Tick", "load_sweep", "make_plan", "run_sweep"]
