"""The pass in perfect balance where placements hold copies of hot experts: every slot as full as any other."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.study.instance import build_instance
from moesim.study.whatif import what_if


@pytest.mark.parametrize("overlap", [Overlap.NONE, Overlap.TWO_BATCH])
def test_balance_is_no_slower_than_a_skewed_pass_on_placements_with_copies(overlap: Overlap) -> None:
    routing = RoutingSpec(
        family=RouterFamily.PRESET, preset="deepseek-v3", placement=PlacementSpec(kind=PlacementKind.EPLB)
    )
    instance = build_instance(
        load_model("deepseek-v3"), ParallelSpec(dp_size=16, ep_size=16, redundant_experts=256),
        load_hardware("h100_x2_nodes", 16), routing, overlap=overlap, rng=np.random.default_rng(0),
    )  # fmt: skip
    found = what_if(instance, Pass(Phase.PREFILL, 16.0, 2048.0, 0.0))
    balanced = next(a for a in found.alternatives if a.name == "perfect balance")
    assert balanced.time_s < 1.01 * found.base.time_s
    # slots take whole tokens: the fullest rank has no more than a few rows above the mean
    assert balanced.slower_wait_s < 0.02 * balanced.time_s
