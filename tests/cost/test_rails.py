"""Rails and an oversubscribed spine: what crosses them waits, what stays on its rail does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.cost import CostModel
from moesim.cost.collectives import collective_cost
from moesim.cost.exchange import port_times
from moesim.cost.network import Network
from moesim.errors import InputError
from moesim.ops import CollectiveShape, ExchangeShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware

CLUSTER = """
name: mine
device: a100_sxm
n_devices_per_node: 8
n_nodes: 4
scale_up_link: nvlink3
scale_up_domain_size: 8
scale_out_link: infiniband_hdr
n_nics_per_node: 8
{more}
sources:
  - origin: assumption
    text: made up for a test
    covers: [n_devices_per_node, n_nodes, scale_up_domain_size, n_nics_per_node{covers}]
"""


def network(tmp_path: Path, more: str) -> Network:
    path = tmp_path / f"c{len(list(tmp_path.iterdir()))}.yaml"  # what a name stands for is remembered
    path.write_text(
        CLUSTER.format(more=more, covers="".join(f", {line.partition(':')[0]}" for line in more.splitlines()))
    )
    return CostModel.of(load_hardware(str(path), 32)).network


def exchange_s(net: Network, *, low: bool) -> float:
    shape = ExchangeShape(32, 0.0, 0.0, 4e8, 4e8, 31.0, is_low_latency=low)
    return float(port_times(Op("x", OpKind.DISPATCH, Work(), shape), net).out_s)


def all_reduce_s(net: Network) -> float:
    op = Op("x", OpKind.ALL_REDUCE, Work(), CollectiveShape(32, 1e9))
    return float(collective_cost(op, net).time_s)


def test_direct_exchanges_cross_rails_and_two_hop_ones_do_not(tmp_path: Path) -> None:
    even = network(tmp_path, "n_rails: 8")
    half = network(tmp_path, "n_rails: 8\nspine_oversubscription: 2")
    assert exchange_s(half, low=True) == pytest.approx(7 / 8 * 2 * exchange_s(even, low=True))
    assert exchange_s(half, low=False) == exchange_s(even, low=False)
    assert all_reduce_s(half) == all_reduce_s(even)


def test_a_fabric_measured_on_a_full_spine_is_extrapolated_to_a_small_one() -> None:
    hardware = load_hardware("h100_x128_nodes", 32)
    small = hardware.model_copy(update={"spine_oversubscription": 2.0})
    for low, beyond in ((True, True), (False, False)):
        shape = ExchangeShape(32, 1e6, 1e6, 4e8, 4e8, 31.0, 7408.0, 1e6, 256.0, is_low_latency=low)
        op = Op("x", OpKind.DISPATCH, Work(), shape)
        assert not CostModel.of(hardware).cost(op).is_extrapolated
        assert CostModel.of(small).cost(op).is_extrapolated is beyond


def test_a_spine_a_little_too_small_is_not_the_limit(tmp_path: Path) -> None:
    even = network(tmp_path, "n_rails: 8")
    tight = network(tmp_path, "n_rails: 8\nspine_oversubscription: 1.1")
    assert exchange_s(tight, low=True) == exchange_s(even, low=True)


def test_without_rails_everything_between_nodes_waits(tmp_path: Path) -> None:
    even, half = network(tmp_path, ""), network(tmp_path, "spine_oversubscription: 2")
    for low in (True, False):
        assert exchange_s(half, low=low) == pytest.approx(2 * exchange_s(even, low=low))
    assert all_reduce_s(half) > 1.5 * all_reduce_s(even)


@pytest.mark.parametrize("value", ["0.5", "no"])
def test_bad_oversubscription_is_one_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError) as caught:
        network(tmp_path, f"spine_oversubscription: {value}")
    assert caught.value.field == "spine_oversubscription"
    assert "\n" not in str(caught.value)
