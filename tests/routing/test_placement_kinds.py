"""Kinds of placement as a scenario names them."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from moesim.errors import InputError
from moesim.routing.locality import TokenHome, path_copies
from moesim.routing.placement import contiguous, trivial
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.load import read_yaml, validate
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.scenario import ScenarioSpec
from moesim.study.instance import Instance, build_instance


def _olmoe(placement: dict[str, object], n_redundant: int = 0) -> Instance:
    routing = RoutingSpec.model_validate({"family": "preset", "preset": "olmoe-1b-7b", "placement": placement})
    split = ParallelSpec(dp_size=16, ep_size=16, redundant_experts=n_redundant)
    hardware = load_hardware("h100_x128_nodes", 16)
    return build_instance(load_model("olmoe-1b-7b"), split, hardware, routing, rng=np.random.default_rng(0))


def test_trivial_repeats_the_first_experts_in_redundant_slots() -> None:
    routed = _olmoe({"kind": "trivial"}, 16).routed
    assert routed is not None
    np.testing.assert_array_equal(routed.placements[64, 8].slots, trivial(64, 16, 80).slots)
    with pytest.raises(InputError, match="balancing placement"):
        _olmoe({"kind": "locality"}, 16)


def test_locality_crosses_fewer_borders_on_unseen_tokens() -> None:
    instance = _olmoe({"kind": "locality", "load_tolerance": 0.3})
    assert instance.routed is not None
    placed, router = instance.routed.placements[64, 8], instance.routed.routers[64, 8]
    unseen = router.sample_tokens(2000, np.random.default_rng(5))
    crossings = [path_copies(unseen, p, 8, TokenHome.FIXED).total for p in (placed, contiguous(64, 16))]
    assert crossings[0] < 0.97 * crossings[1]
    # the pass runs on it
    step = instance.decode_pass(1024, 1000)
    assert instance.flow(step, np.random.default_rng(0)).time_s > 0


def test_settings_of_another_kind_are_refused() -> None:
    with pytest.raises(ValidationError, match="only for kind 'locality'"):
        RoutingSpec.model_validate({"placement": {"kind": "eplb", "home": "moving"}})
    with pytest.raises(ValidationError):
        RoutingSpec.model_validate({"placement": {"kind": "locality", "load_tolerance": 0}})


def test_a_scenario_file_may_name_them(tmp_path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        """
title: locality
hardware: h100_x128_nodes
systems:
  - name: a
    kind: moe
    model: olmoe-1b-7b
    parallel: {dp_size: 16, ep_size: 16}
    routing: {family: preset, preset: olmoe-1b-7b, placement: {kind: locality, home: moving}}
workload: {input_tokens: 128, output_tokens: 16, concurrency: [64]}
""",
        encoding="utf-8",
    )
    spec = validate(ScenarioSpec, read_yaml(path))
    routing = spec.systems[0].routing
    assert routing is not None
    assert routing.placement.home == "moving"
