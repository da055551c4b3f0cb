"""Sweeps: every combination of the fields that a file varies, answered quickly, kept as they come, and run anywhere."""

from __future__ import annotations

from moesim.study.sweep.files import load_sweep
from moesim.study.sweep.layout import make_layout
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.run import Progress, Tick, run_sweep
from moesim.study.sweep.tasks import Layout

__all__ = ["Layout", "Progress", "SweepResult", "Tick", "load_sweep", "make_layout", "run_sweep"]
