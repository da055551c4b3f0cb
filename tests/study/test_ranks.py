"""Rank by rank: averages over neighbours, rounding, and where sampled tokens start."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.sim import FlowResult
from moesim.sim.ledger import Ledger
from moesim.sim.schedule import Exchange
from moesim.sim.visits import Group, Visits
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.study.instance import build_instance
from moesim.study.ranks import N_ROWS, rank_detail
from moesim.study.tokens import home_ranks


def _result(n_ranks: int) -> FlowResult:
    """Rank r waits r µs in layer 1 for the last one's bytes and is busy for r / n of a second."""
    sent = np.zeros(n_ranks)
    late = 1e-6 * np.arange(n_ranks)
    go = Exchange(1, "go", sent, sent, sent, (), 0.0, 0.0)
    visits = Visits.blank([Group((), go), Group((), None)], n_ranks)
    visits.left_s[:] = late
    visits.arrival_s[1] = visits.begin_s[1] = visits.joined_s[1] = late
    ledger = Ledger(n_ranks, [(0, visits)], late)
    busy = np.arange(n_ranks) / n_ranks
    return FlowResult(1.0, 0.0, 0, engine_busy_s=busy, out_busy_s=busy / 2, in_busy_s=busy / 4, ledger=ledger)


def test_few_ranks_have_a_row_each() -> None:
    found = rank_detail(_result(4), 3)
    assert found.n_ranks_per_row == 1
    assert found.wait_s == ((0.0, 0.0, 0.0), (0.0, 1e-6, 0.0), (0.0, 2e-6, 0.0), (0.0, 3e-6, 0.0))
    assert found.engine_frac == (0.0, 0.25, 0.5, 0.75)
    assert found.out_port_frac[3] == 0.375
    assert found.in_port_frac[3] == 0.1875


@pytest.mark.parametrize("n_ranks", [N_ROWS, N_ROWS + 1, 2048, 2049])
def test_many_ranks_are_averaged(n_ranks: int) -> None:
    found = rank_detail(_result(n_ranks), 2)
    per_row = found.n_ranks_per_row
    assert len(found.wait_s) == len(found.engine_frac) <= N_ROWS
    assert len(found.wait_s) == -(-n_ranks // per_row)
    members = [range(i, min(i + per_row, n_ranks)) for i in range(0, n_ranks, per_row)]
    for row, ranks in zip(found.wait_s, members, strict=True):
        assert row[0] == 0.0
        assert row[1] == pytest.approx(1e-6 * sum(ranks) / len(ranks), rel=1e-3)


@pytest.mark.parametrize(
    ("parallel", "homes"),
    [
        (ParallelSpec(dp_size=8, ep_size=8), (0, 2, 4, 6)),
        (ParallelSpec(tp_size=4, dp_size=2, ep_size=8), (0, 0, 4, 4)),
        (ParallelSpec(tp_size=8), (0, 0, 0, 0)),
    ],
)
def test_tokens_start_on_attention_groups_evenly(parallel: ParallelSpec, homes: tuple[int, ...]) -> None:
    instance = build_instance(load_model("mixtral-8x7b"), parallel, load_hardware("hgx_h100"))
    assert home_ranks(instance, 4) == homes
