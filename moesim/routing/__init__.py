"""Who goes where: router models, capacity, placement and replication, traces, paths."""

from moesim.routing.build import build_router
from moesim.routing.capacity import DropRule, Kept, apply_capacity, capped_counts, expert_capacity, padded_counts
from moesim.routing.eplb import eplb_global, eplb_hierarchical
from moesim.routing.paths import Stop, path_ranks, ranks_touched, token_paths
from moesim.routing.placement import Placement, contiguous, given, striped
from moesim.routing.presets import RouterPreset, load_preset, preset_names
from moesim.routing.router import RouterModel
from moesim.routing.stats import (
    coefficient_of_variation,
    expert_imbalance_ratio,
    gini,
    max_over_mean,
    normalised_entropy,
    rank_imbalance_ratio,
)
from moesim.routing.trace import RecordedTrace, read_trace, write_trace

__all__ = [
    "DropRule",
    "Kept",
    "Placement",
    "RecordedTrace",
    "RouterModel",
    "RouterPreset",
    "Stop",
    "apply_capacity",
    "build_router",
    "capped_counts",
    "coefficient_of_variation",
    "contiguous",
    "eplb_global",
    "eplb_hierarchical",
    "expert_capacity",
    "expert_imbalance_ratio",
    "gini",
    "given",
    "load_preset",
    "max_over_mean",
    "normalised_entropy",
    "padded_counts",
    "path_ranks",
    "preset_names",
    "rank_imbalance_ratio",
    "ranks_touched",
    "read_trace",
    "striped",
    "token_paths",
    "write_trace",
]
