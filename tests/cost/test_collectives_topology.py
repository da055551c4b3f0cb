"""Algorithms and topologies by hand: in-switch reduction, trees, meshes, tori, host trees."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.cost import CostModel
from moesim.cost.collectives import algorithms, between, inside_domain
from moesim.ops import CollectiveShape, ExchangeShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware, load_link
from moesim.specs.hardware import LinkSpec, Topology
from moesim.testing import toy_cost, toy_hardware, toy_link

US = 1e-6


def _link(topology: Topology, **fields: object) -> LinkSpec:
    link = toy_link(100e9, 2 * US, topology=topology)
    numbers = tuple(name for name, value in fields.items() if not isinstance(value, str))
    source = link.sources[0].model_copy(update={"covers": (*link.sources[0].covers, *numbers)})
    return link.model_copy(update={**fields, "sources": (source,)})


def _model(topology: Topology, n: int = 8, **fields: object) -> CostModel:
    return toy_cost(toy_hardware(n, scale_up=_link(topology, **fields)))


def _op(kind: OpKind, n: int, size: float) -> Op:
    return Op("x", kind, Work(), CollectiveShape(n, size))


def _exchange(n: int, up: float) -> Op:
    return Op("x", OpKind.DISPATCH, Work(), ExchangeShape(n, up, up, 0.0, 0.0, n - 1.0))


def test_a_switch_that_adds_saves_nearly_half_of_an_all_reduce() -> None:
    model = _model(Topology.SWITCH, in_switch="reduce")
    # 800 MB: (1 + 1/8) x 8 ms, and the 25 us that NCCL counts for setting out
    assert model.cost(_op(OpKind.ALL_REDUCE, 8, 800e6)).time_s == pytest.approx(9e-3 + 25 * US)
    assert algorithms(_op(OpKind.ALL_REDUCE, 8, 800e6), model.network) == ("in-switch",)
    assert algorithms(_op(OpKind.ALL_REDUCE, 8, 1e6), model.network) == ("two-shot",)
    assert algorithms(_op(OpKind.ALL_REDUCE, 8, 1e3), model.network) == ("one-shot",)
    # two ranks gain nothing by it
    assert algorithms(_op(OpKind.ALL_REDUCE, 2, 800e6), model.network) == ("one-shot",)


def test_algorithms_between_domains_change_with_size() -> None:
    hardware = toy_hardware(512, 8, scale_out=toy_link(10e9, 5 * US, 1 * US))
    network = toy_cost(hardware).network
    small, large = _op(OpKind.ALL_REDUCE, 512, 1e3), _op(OpKind.ALL_REDUCE, 512, 1e9)
    assert algorithms(small, network)[1] == "tree"
    assert algorithms(large, network)[1] == "direct"
    # 64 peers: direct posts 63 messages twice; the tree takes 6 levels up and down
    found = between(OpKind.ALL_REDUCE, 64, 0.0, network)
    assert found["direct"][1] == pytest.approx(2 * (5 + 63) * US)
    assert found["ring"][1] == pytest.approx(2 * 63 * 6 * US)
    assert found["tree"][1] == pytest.approx(12 * 6 * US)
    sizes = np.array([1e3, 1e9])
    grid = CostModel(hardware, network).cost(Op("x", OpKind.ALL_REDUCE, Work(), CollectiveShape(512, sizes)))
    for i, size in enumerate(sizes):
        one = CostModel(hardware, network).cost(_op(OpKind.ALL_REDUCE, 512, float(size)))
        assert grid.time_s[i] == pytest.approx(one.time_s)  # type: ignore[index]


def test_a_mesh_gives_each_pair_one_link() -> None:
    model = _model(Topology.MESH, n_neighbours=7)
    # two of eight: one of seven links
    assert model.cost(_op(OpKind.ALL_GATHER, 2, 800e6)).time_s == pytest.approx(400e6 / (100e9 / 7) + 2 * US)
    assert model.cost(_op(OpKind.ALL_GATHER, 8, 800e6)).time_s == pytest.approx(7e-3 + 2 * US)
    assert model.cost(Op("x", OpKind.SEND, Work(), CollectiveShape(2, 100e6, 1))).time_s == pytest.approx(7e-3 + 2 * US)


def test_a_torus_pays_for_hops() -> None:
    # 64 chips in 4 x 4 x 4: a byte takes 3 hops on its mean way, so ports carry three times as much
    model = _model(Topology.TORUS, 64, n_neighbours=6)
    assert model.cost(_exchange(64, 100e6)).time_s == pytest.approx(3e-3 + 2 * US)
    # gathering goes round all rings at once: 9 steps of latency
    assert model.cost(_op(OpKind.ALL_GATHER, 64, 640e6)).time_s == pytest.approx(6.3e-3 + 9 * 2 * US)
    # one ring of 64: 16 hops
    assert _model(Topology.TORUS, 64).cost(_exchange(64, 100e6)).time_s == pytest.approx(16e-3 + 2 * US)


def test_a_host_tree_shares_its_root() -> None:
    shared = _model(Topology.HOST_TREE, shared_bytes_per_s=200e9)
    # 8 cards x 1 GB over 200 GB/s, where each alone would have 100 GB/s
    assert shared.cost(_exchange(8, 1e9)).time_s == pytest.approx(40e-3 + 2 * US)
    assert shared.cost(_op(OpKind.ALL_GATHER, 8, 800e6)).link_s == pytest.approx(700e6 / 25e9)
    bounced = _model(Topology.HOST_TREE, shared_bytes_per_s=200e9, peer_access="through_host")
    assert bounced.cost(_exchange(8, 1e9)).time_s == pytest.approx(80e-3 + 2 * US)
    assert _model(Topology.HOST_TREE).cost(_exchange(8, 1e9)).time_s == pytest.approx(10e-3 + 2 * US)


def test_only_what_the_topology_allows() -> None:
    ring = inside_domain(OpKind.ALL_REDUCE, 8, 1e6, _model(Topology.HOST_TREE).network, alone=True)
    assert set(ring) == {"ring"}
    part = inside_domain(OpKind.ALL_REDUCE, 8, 1e6, _model(Topology.SWITCH).network, alone=False)
    assert set(part) == {"two-shot"}


CLUSTERS = ("a100_pcie_8", "gb200_nvl72", "gaudi3_8", "hgx_a100", "hgx_h100", "h100_x12_nodes", "l40s_8", "mi250x_4", "mi300x_8",
            "rtx_4090_8", "rtx_pro_6000_8", "tpu_v5e_pod", "tpu_v7_pod", "trn2_16", "trn2_ultra", "trn3_ultra")  # fmt: skip
KINDS = (OpKind.ALL_REDUCE, OpKind.ALL_GATHER, OpKind.REDUCE_SCATTER)


def _times(model: CostModel, kind: OpKind, n: int, sizes: np.ndarray) -> np.ndarray:
    return np.asarray(model.cost(Op("x", kind, Work(), CollectiveShape(n, sizes))).time_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_shipped_links_keep_to_their_limits(cluster: str) -> None:
    model = CostModel.of(load_hardware(cluster))
    hardware, network = model.hardware, model.network
    sizes = np.geomspace(1e2, 1e11, 28)
    ranks = [n for n in (2, 4, 8, 16, 64, 256) if n <= hardware.n_devices]
    up = hardware.scale_up
    assert up is not None
    for kind in KINDS:
        before = np.zeros(len(sizes))
        for n in ranks:
            times = _times(model, kind, n, sizes)
            assert (np.diff(times) > 0).all()
            # what a direct link or a switch that adds saves with more ranks, nothing else may
            saves = network.topology is Topology.MESH or (network.reduces_in_switch and kind is OpKind.ALL_REDUCE)
            assert saves or (times >= before * 0.999).all()
            before = times
            if n <= hardware.scale_up_domain_size:
                share = (n - 1) / n * (2.0 if kind is OpKind.ALL_REDUCE else 1.0)
                share = min(share, 1 + 1 / n) if network.reduces_in_switch and kind is OpKind.ALL_REDUCE else share
                assert share * sizes[-1] / times[-1] <= up.bytes_per_s
                assert share * sizes[-1] / times[-1] >= 0.02 * up.bytes_per_s


def test_every_shipped_torus_says_how_many_dimensions_it_has() -> None:
    for name in ("ici_v4", "ici_v5e", "ici_v5p", "ici_v6e", "ici_v7", "neuronlink_v3"):
        link = load_link(name)
        assert link.topology is Topology.TORUS
        assert link.n_neighbours in (4, 6)
    # 16 chips in 4 x 4: two hops on the mean way, where one ring of 16 would take four
    network = CostModel.of(load_hardware("trn2_16")).network
    assert network.scatter_bytes_per_s(16) == pytest.approx(network.up_bytes_per_s / 2)
