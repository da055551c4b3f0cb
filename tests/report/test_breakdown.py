"""The breakdown's bars: they add up to the pass, whatever runs beside what, and what is hidden is drawn beyond them."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.report.figures_cost import hidden_by_group, time_by_group
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.specs.scenario import Engine
from moesim.specs.workload import WorkloadSpec
from moesim.study.detail import phase_detail
from moesim.study.instance import build_instance
from moesim.study.results import OperatorRow, PhaseDetail


@pytest.mark.parametrize("skew", [0.0, 1.0])
@pytest.mark.parametrize("overlap", ["none", "shared_experts", "two_batch"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_bars_add_up_to_the_pass(phase: str, overlap: str, skew: float) -> None:
    routing = RoutingSpec(family=RouterFamily.LOGNORMAL, skew=skew) if skew else RoutingSpec()
    instance = build_instance(
        load_model("deepseek-v3"), ParallelSpec(dp_size=16, ep_size=16), load_hardware("h100_x12_nodes", 16), routing,
        overlap=overlap, rng=np.random.default_rng(0),
    )  # fmt: skip
    step = instance.decode_pass(16 * 32, 1024) if phase == "decode" else instance.prefill_passes(512, 0, 8192, 16)[0]
    work = WorkloadSpec(input_tokens=512, output_tokens=128)
    detail = phase_detail(instance, work, 512, step, Engine.FLOW, np.random.default_rng(0)).detail
    assert sum(time_by_group(detail).values()) == pytest.approx(detail.time_s, rel=2.1e-3)
    hidden = sum(hidden_by_group(detail).values())
    assert (hidden > 0.0) == (overlap != "none")
    # an operator is one row, also where two micro-batches run it
    names = [(row.segment, row.name) for row in detail.operators]
    assert len(names) == len(set(names))
    # an operator's exposed and hidden time are apart: neither is in the other
    assert sum(row.time_s for row in detail.operators) <= detail.time_s * (1.2 if overlap == "two_batch" else 1.05)


def _row(name: str, group: str, time_s: float, hidden_s: float = 0.0) -> OperatorRow:
    return OperatorRow(
        name=name, group=group, segment="moe", n_repeat=1, time_s=time_s, hidden_s=hidden_s, bound="link", flops=0.0,
        moved_bytes=0.0, origin="assumption",
    )  # fmt: skip


def _detail(time_s: float, *rows: OperatorRow) -> PhaseDetail:
    return PhaseDetail(
        phase="decode", concurrency=1, n_tokens=1.0, context=1.0, time_s=time_s, imbalance_s=0.0, exposed_comm_s=0.0,
        hidden_comm_s=0.0, mfu=0.0, mbu=0.0, operators=rows,
    )  # fmt: skip


def test_hidden_time_is_taken_off_once() -> None:
    detail = _detail(5.0, _row("experts", "experts", 3.0), _row("dispatch", "communication", 2.0, hidden_s=4.0))
    assert time_by_group(detail) == {"experts": 3.0, "communication": 2.0}
    assert hidden_by_group(detail) == {"communication": 4.0}


def test_a_closed_form_that_takes_longer_hides_more_communication() -> None:
    rows = _row("experts", "experts", 3.0), _row("dispatch", "communication", 2.0)
    assert time_by_group(_detail(4.5, *rows)) == {"experts": 3.0, "communication": 1.5}
    assert time_by_group(_detail(2.4, *rows)) == {"experts": 2.4}
    assert time_by_group(_detail(6.0, *rows)) == {"experts": 3.0, "communication": 2.0, "waiting": 1.0}
