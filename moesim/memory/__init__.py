"""Memory per rank: counted before anything is timed, and explained where it does not fit."""

from __future__ import annotations

from moesim.memory.count import (
    MemoryBytes,
    Serving,
    WeightBytes,
    kv_bytes_per_sequence,
    rank_memory,
    rank_weights,
    stage_layers,
)
from moesim.memory.fit import MemoryReport, Outcome, check_memory, with_weight_dtype

__all__ = [
    "MemoryBytes",
    "MemoryReport",
    "Outcome",
    "Serving",
    "WeightBytes",
    "check_memory",
    "kv_bytes_per_sequence",
    "rank_memory",
    "rank_weights",
    "stage_layers",
    "with_weight_dtype",
]
