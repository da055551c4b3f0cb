"""Specs as values: frozen, strict, sourced; and everything that is shipped loads."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from moesim import units
from moesim.errors import InputError, ParallelError
from moesim.specs import catalog
from moesim.specs.base import Origin, numeric_leaves, weakest
from moesim.specs.hardware import DeviceSpec
from moesim.specs.load import read_yaml, validate
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import PlacementSpec, RoutingSpec
from moesim.specs.scenario import ScenarioSpec, SystemKind
from moesim.specs.workload import WorkloadSpec


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("141 GB", units.BYTES, 141e9),
        ("80 GiB", units.BYTES, 80 * 2.0**30),
        ("50 MiB", units.BYTES, 50 * 2.0**20),
        ("4.8 TB/s", units.BYTES_PER_S, 4.8e12),
        ("400 Gb/s", units.BYTES_PER_S, 50e9),
        ("400 Gbit/s", units.BYTES_PER_S, 50e9),
        ("989.4 TFLOP/s", units.FLOP_PER_S, 989.4e12),
        ("1.5 PFLOPS", units.FLOP_PER_S, 1.5e15),
        ("5 us", units.SECONDS, 5e-6),
        ("5 µs", units.SECONDS, 5e-6),
        ("1.98 GHz", units.HERTZ, 1.98e9),
        ("700 W", units.WATTS, 700.0),
        ("1.2 kW", units.WATTS, 1200.0),
        ("2.99 USD/h", units.USD_PER_H, 2.99),
        ("0 s", units.SECONDS, 0.0),
    ],
)
def test_quantities(text: str, dimension: units.Dimension, value: float) -> None:
    assert units.parse(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "4.8 TB", "4.8", "TB/s", "", "-1 TB/s", "nan TB/s", "inf TB/s", "1e999 TB/s", "4.8 TB/s/s", "4,8 TB/s", 4.8e12, None,
        True, ["4.8 TB/s"],
    ],
)  # fmt: skip
def test_what_is_no_bandwidth(text: object) -> None:
    with pytest.raises(InputError) as caught:
        units.parse(text, units.BYTES_PER_S)
    assert "a bandwidth such as '4.8 TB/s'" in str(caught.value)


def test_gigabytes_and_gibibytes_differ() -> None:
    assert units.parse("1 GiB", units.BYTES) / units.parse("1 GB", units.BYTES) == 1.073741824


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        ParallelSpec().tp_size = 2  # type: ignore[misc]


@pytest.mark.parametrize("bad", [0, -1, True, 2.0, "2", None, 10**13])
def test_counts_are_whole_numbers(bad: Any) -> None:
    with pytest.raises(ValidationError):
        ParallelSpec(tp_size=bad)


def test_the_weakest_origin_wins() -> None:
    assert weakest(Origin.DATASHEET, Origin.FITTED) is Origin.DATASHEET
    assert weakest(*Origin) is Origin.ASSUMPTION


def test_a_number_has_the_source_of_the_longest_path() -> None:
    path = catalog.data_dir() / "hardware/devices/h200_sxm.yaml"
    device = validate(DeviceSpec, read_yaml(path), str(path))
    for leaf in numeric_leaves(device):
        assert device.source_of(leaf).text
    with pytest.raises(KeyError):
        device.source_of("no_such_number")


def test_ranks_of_a_split() -> None:
    split = ParallelSpec(tp_size=2, dp_size=4, pp_size=3, ep_size=4)
    assert (split.n_stage_ranks, split.n_ranks, split.etp_size) == (8, 24, 2)
    assert split.label == "TP2 DP4 EP4 PP3"
    assert ParallelSpec().label == "1 GPU"


@pytest.mark.parametrize(
    ("model", "split", "field"),
    [
        ("llama-2-13b", {"tp_size": 3}, "tp_size"),
        ("mixtral-8x7b", {"dp_size": 3, "ep_size": 3}, "ep_size"),
        ("mixtral-8x7b", {"tp_size": 2, "ep_size": 4}, "ep_size"),
        ("mixtral-8x7b", {"pp_size": 33}, "pp_size"),
        ("qwen3-30b-a3b", {"dp_size": 5}, "etp_size"),
    ],
)
def test_splits_that_do_not_divide(model: str, split: dict[str, int], field: str) -> None:
    with pytest.raises(ParallelError) as caught:
        ParallelSpec(**split).check(catalog.load_model(model))
    assert caught.value.field == field
    assert caught.value.allowed


def test_redundant_experts_make_a_split_divide() -> None:
    model = catalog.load_model("mixtral-8x7b")
    ParallelSpec(dp_size=3, ep_size=3, redundant_experts=1).check(model)


def test_workload() -> None:
    workload = WorkloadSpec(input_tokens=100, output_tokens=20)
    assert workload.longest_context == 120
    assert workload.mean_context == 110


@pytest.mark.parametrize(
    "fields",
    [
        {"family": "zipf"}, {"family": "uniform", "skew": 1.0}, {"family": "preset"}, {"family": "trace", "preset": "x"},
        {"family": "popularity", "popularity": []}, {"family": "popularity", "popularity": [0.0, 0.0]},
        {"family": "popularity", "popularity": [1.0, -1.0]}, {"family": "zipf", "skew": 6.1}, {"capacity_factor": 0.0},
        {"placement": {"kind": "given"}}, {"placement": {"kind": "eplb", "given": [[0]]}},
    ],
)  # fmt: skip
def test_routing_that_contradicts_itself(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoutingSpec.model_validate(fields)


def test_a_given_placement() -> None:
    assert PlacementSpec.model_validate({"kind": "given", "given": [[0, 1], [2, 3]]}).given == ((0, 1), (2, 3))


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_shipped_scenarios_load(name: str) -> None:
    path = catalog.path_of("scenario", name)
    scenario = validate(ScenarioSpec, read_yaml(path), str(path))
    hardware = catalog.load_hardware(scenario.hardware, scenario.n_devices)
    assert scenario.reference in scenario.systems
    for system in scenario.systems:
        model = catalog.load_model(system.model)
        assert model.is_moe == (system.kind is SystemKind.MOE) or system.kind is SystemKind.ENSEMBLE
        system.parallel.check(model)
        assert hardware.n_devices % system.parallel.n_ranks == 0
        assert (model.max_position_embeddings or 10**9) >= scenario.workload.longest_context


def test_names_find_what_they_name() -> None:
    for kind, load in (("device", catalog.load_device), ("link", catalog.load_link), ("cluster", catalog.load_cluster)):
        for name in catalog.names(kind):
            assert load(name).name == name
    assert catalog.load_hardware("h200").device.name == "h200_sxm"
    assert catalog.load_model("mistralai/Mixtral-8x7B-v0.1").name == "mixtral-8x7b"


@pytest.mark.parametrize(
    ("family", "skew"), [("zipf", 6.0), ("lognormal", 6.0), ("dirichlet", 0.03), ("dirichlet", 1e4)]
)
@pytest.mark.parametrize("sizes", [(6, 256, 8, 8, 4), (6, 256, 8, 1, 1), (32, 8, 2, 1, 1)])
def test_every_skew_that_is_taken_gives_probabilities(
    family: str, skew: float, sizes: tuple[int, int, int, int, int]
) -> None:
    from moesim.routing import build_router

    router = build_router(RoutingSpec.model_validate({"family": family, "skew": skew}), *sizes)
    p = router.inclusion_probability()
    assert p.min() >= 0
    assert p.max() <= 1 + 1e-5
    assert p.sum(axis=-1) == pytest.approx(sizes[2], rel=1e-6)
