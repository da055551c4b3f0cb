"""Exchanges on a measured fabric: the form by hand, scaling with links, and the published tables within their targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cost import CostModel
from moesim.cost.exchange import lent_units, port_times
from moesim.cost.fabric import ExchangeRates, busy_s, latency_s
from moesim.lowering import Pass, expert_layout, lower, uniform_load
from moesim.ops import ExchangeShape, Op, OpKind, Phase, Work
from moesim.specs.base import Origin
from moesim.specs.catalog import data_dir, load_hardware, load_model
from moesim.specs.fabric import ExchangeFit
from moesim.specs.fabric_files import FABRIC_FOLDER, find_fabric, load_fabric
from moesim.specs.parallel import ParallelSpec
from moesim.testing import toy_hardware

US = 1e-6
FILES = sorted((data_dir() / FABRIC_FOLDER).glob("*.yaml"))
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def _rates(p: float = 4.0, n_sms: float = 10.0, nic: float = 50e9, **fields: float) -> ExchangeRates:
    fit = ExchangeFit(**{"base_s": 10 * US, "up_bytes_per_s": 100e9, **fields})
    return ExchangeRates(fit, nic, p, n_sms)


def test_one_port_by_hand() -> None:
    # 1 MB at 100 GB/s
    assert busy_s(_rates(), 1e6, 0.0, 1e3, 8.0, 0.0, 1) == pytest.approx(10 * US)
    # messages of 1 kB reach half of it where half_bytes is 1 kB
    assert busy_s(_rates(half_bytes=1e3), 1e6, 0.0, 1e3, 8.0, 0.0, 1) == pytest.approx(20 * US)
    # 8 experts at 5 GB/s each: 25 us, and the port beside it
    beside = busy_s(_rates(expert_bytes_per_s=5e9), 1e6, 0.0, 1e3, 8.0, 0.0, 1)
    assert beside == pytest.approx((25**4 + 10**4) ** 0.25 * US)
    # 10 units at 2 GB/s handle 1 MB + 2 x 0.5 MB of the NIC + 0.5 x 2 MB of own tokens: 150 us; NIC 10 us, port 10 us
    lent = busy_s(_rates(sm_bytes_per_s=2e9, nic_weight=2.0, token_weight=0.5), 1e6, 5e5, 1e3, 8.0, 2e6, 2)
    assert lent == pytest.approx((150**4 + 2 * 10**4) ** 0.25 * US)
    # a filling of 10 us over 10 us of work adds half of it, thrice as long across domains adds 7.5
    assert busy_s(_rates(fill_s=10 * US), 1e6, 0.0, 1e3, 8.0, 0.0, 1) == pytest.approx(15 * US)
    across = busy_s(_rates(fill_s=10 * US, crossing_fill_ratio=3.0), 1e6, 0.0, 1e3, 8.0, 0.0, 4)
    assert across == pytest.approx(17.5 * US)


def test_latency_by_hand() -> None:
    rates = _rates(
        crossing_s=5 * US, doubling_s=2 * US, expert_s=0.01 * US, notify_s=30 * US, notify_doubling_s=20 * US
    )
    assert latency_s(rates, 1, 100.0) == pytest.approx(11 * US)
    assert latency_s(rates, 2, 100.0) == pytest.approx(46 * US)
    assert latency_s(rates, 8, 100.0, notify=False) == pytest.approx(20 * US)
    np.testing.assert_allclose(
        latency_s(rates, np.array([1.0, 2.0, 8.0]), 100.0, notify=False), np.array([11, 16, 20]) * US
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(1.0, 1e9), st.floats(0.0, 1e9), st.floats(1.01, 10.0), st.integers(1, 64))
def test_more_bytes_take_longer_and_arrays_agree(up: float, nic: float, factor: float, n_domains: int) -> None:
    rates = _rates(sm_bytes_per_s=2e9, nic_weight=2.0, token_weight=0.5, fill_s=20 * US, half_bytes=300.0)
    one = busy_s(rates, up, nic, 7e3, 256.0, 1e6, n_domains)
    assert busy_s(rates, up * factor, nic * factor, 7e3, 256.0, 1e6, n_domains) > one
    both = busy_s(rates, np.array([up, up]), np.array([nic, nic]), 7e3, 256.0, 1e6, n_domains)
    np.testing.assert_allclose(both, one, rtol=1e-12)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_shipped_fabric_reads_and_says_what_it_was_held_against(path: Path) -> None:
    fabric = load_fabric(path)
    assert fabric.name == path.stem
    assert fabric.held_out, "no errors on left-out data"
    assert {h.mode for h in fabric.held_out} == {"low_latency", "normal"}
    assert all(0 < frac < 0.5 for frac in fabric.interval_frac.values())
    assert all(h.median_frac <= 0.12 for h in fabric.held_out)
    for device in fabric.devices:
        found = find_fabric(data_dir(), device, fabric.scale_up_links[0])
        assert found is fabric


def test_only_measured_hardware_has_a_fabric() -> None:
    assert load_hardware("h800_x40_nodes", 16).fabric is not None
    assert load_hardware("mi300x_8").fabric is None
    assert toy_hardware().fabric is None


def _exchange(n: int, up: float, nic: float, *, low: bool = True, kind: OpKind = OpKind.DISPATCH) -> Op:
    shape = ExchangeShape(n, up, up, nic, nic, n - 1.0, 7408.0, 128 * 7408.0, 256.0, is_low_latency=low)
    return Op("x", kind, Work(), shape)


def test_origin_interval_and_lent_units() -> None:
    model = CostModel.of(load_hardware("h100_x128_nodes", 16))
    cost = model.cost(_exchange(16, 4e6, 4e6))
    assert (cost.origin, cost.is_extrapolated) == (Origin.FITTED, False)
    assert cost.error_frac == model.network.fabric.interval_frac["low_latency"]  # type: ignore[union-attr]
    # the H200's NIC was not measured
    assert CostModel.of(load_hardware("h200_x4_nodes", 16)).cost(_exchange(16, 4e6, 4e6)).origin is Origin.ASSUMPTION
    assert CostModel.of(load_hardware("h200_x4_nodes", 8)).cost(_exchange(8, 4e6, 0.0)).origin is Origin.FITTED
    assert lent_units(_exchange(16, 1.0, 1.0), model.network) == 0
    assert lent_units(_exchange(16, 1.0, 1.0, low=False), model.network) == 20


def test_faster_links_scale_a_measured_fabric() -> None:
    model = CostModel.of(load_hardware("h100_x128_nodes", 64))
    fast = replace(model, network=replace(model.network, nic_bytes_per_s=2 * model.network.nic_bytes_per_s))
    op = _exchange(64, 1e3, 500e6)
    assert fast.cost(op).link_s == pytest.approx(model.cost(op).link_s / 2, rel=1e-6)  # type: ignore[operator]
    assert fast.cost(op).is_extrapolated
    assert fast.cost(op).latency_s == model.cost(op).latency_s


def test_lowering_tells_the_fabric_mode_rows_and_experts() -> None:
    model, split = load_model("deepseek-v3"), ParallelSpec(dp_size=64, ep_size=64)
    for phase, low in ((Phase.DECODE, True), (Phase.PREFILL, False)):
        step = Pass(phase, 64.0 * 16, 1.0, 100.0)
        layout = expert_layout(split, phase, 8)
        program = lower(
            model,
            split,
            step,
            lambda ffn, idx, s=step, lay=layout: uniform_load(s.n_tokens, 256.0, 8.0, lay, 16.0, balanced=True),
        )
        shapes = [op.shape for _, op in program.ops() if op.kind in (OpKind.DISPATCH, OpKind.COMBINE)]
        assert all(isinstance(s, ExchangeShape) and s.is_low_latency is low for s in shapes)
        dispatch, combine = shapes[0], shapes[1]
        assert isinstance(dispatch, ExchangeShape)
        assert isinstance(combine, ExchangeShape)
        # fp8 rows with a scale per 128 values and an index out, bf16 rows back
        assert (dispatch.message_bytes, combine.message_bytes) == (7168 + 7168 / 128 * 4 + 16, 2 * 7168 + 16)
        assert dispatch.token_bytes == 16 * dispatch.message_bytes
        assert dispatch.n_experts == 256


def test_deepep_low_latency_on_h800_is_within_its_target() -> None:
    # EP64, 128 tokens per rank: measured 173 us dispatch, 314 us combine (DeepEP, docs/legacy.md)
    for kind, measured, row in ((OpKind.DISPATCH, 173e-6, 7408.0), (OpKind.COMBINE, 314e-6, 14352.0)):
        copies = 128 * 8 / 64
        shape = ExchangeShape(64, copies * 7 * row, copies * 7 * row, copies * 56 * row, copies * 56 * row, 63.0, row,
                              128 * row, 256.0)  # fmt: skip
        model = CostModel.of(load_hardware("h800_x40_nodes", 64))
        assert float(port_times(Op("x", kind, Work(), shape), model.network).total_s) == pytest.approx(
            measured, rel=0.1
        )


@pytest.mark.skipif(not SHARED.is_dir(), reason="published tables are not beside this checkout")
def test_whole_published_table() -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    try:
        from fabric_csv import GROUPS, csv_rows
    finally:
        sys.path.pop(0)
    rows = list(csv_rows())
    assert [r.number for r in rows] == list(range(1, 47))
    assert {r.group for r in rows} == set(GROUPS)
    off = {g: np.array([abs(r.predicted_s / r.measured_s - 1) for r in rows if r.group == g]) for g in GROUPS}
    for group in ("H800 low latency", "H800 normal"):
        assert np.median(off[group]) <= 0.10
        assert off[group].max() <= 0.25
    # never fitted, measured by others
    assert np.median(off["H200 decode, measured by others"]) <= 0.10
    assert off["H200 decode, measured by others"].max() <= 0.25
    # V2 is another kernel and must be the quicker one everywhere
    assert all(r.measured_s < r.predicted_s for r in rows if r.group == "DeepEP V2")


def test_h800_low_latency_is_within_its_target_when_each_ep_size_is_left_out() -> None:
    fabric = load_hardware("h800_x40_nodes", 16).fabric
    assert fabric is not None
    held = {h.mode: h for h in fabric.held_out}
    assert held["low_latency"].n_points == 12
    assert held["low_latency"].median_frac <= 0.10
    assert held["low_latency"].worst_frac <= 0.25
    assert held["normal"].median_frac <= 0.10


def test_borrowed_ports_are_an_assumption() -> None:
    shape = ExchangeShape(8, 1e6, 1e6, 0.0, 0.0, 7.0, 7408.0, 1e6, 256.0)
    for cluster, origin in (("hgx_h100", Origin.FITTED), ("hgx_h20", Origin.ASSUMPTION)):
        cost = CostModel.of(load_hardware(cluster, 8)).cost(Op("x", OpKind.DISPATCH, Work(), shape))
        assert cost.origin is origin
        assert not cost.is_extrapolated
