"""Traffic under node-limited routing, against tokens followed one by one, for experts in order and scattered."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.lowering import Pass, expert_layout, route_model
from moesim.lowering.load import uniform_load
from moesim.lowering.traffic import ExpertLayout
from moesim.ops import Phase
from moesim.routing import build_router
from moesim.specs.catalog import load_model
from moesim.specs.model import MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec


@pytest.mark.parametrize("n_ranks", [16, 32, 64])
def test_node_limited_routing_crosses_to_fewer_domains(n_ranks: int) -> None:
    # DeepSeek-V3: 256 experts in 8 groups, 8 per token out of 4 groups; domains of 8 ranks hold 4, 2 or 1 groups
    router = build_router(RoutingSpec(), 1, 256, 8, 8, 4)
    chosen = router.sample_tokens(4000, np.random.default_rng(0)).astype(int)[:, 0, :]
    per_rank, per_domain = 256 // n_ranks, 256 * 8 // n_ranks
    ranks = np.mean([len(set((x // per_rank).tolist())) for x in chosen])
    domains = np.mean([len(set((x // per_domain).tolist())) for x in chosen])
    layout = ExpertLayout(n_ranks, n_ranks, 1, 8, False, True, None, 8, 4)
    load = uniform_load(1000.0 * n_ranks, 256.0, 8.0, layout, 1000.0, balanced=True)
    n_domains = n_ranks // 8
    assert load.nic_out_copies / 1000 == pytest.approx(domains * (n_domains - 1) / n_domains, rel=0.02)
    # each copy at a rank was sent there inside its domain, unless the gate is the rank itself (one in eight)
    assert load.up_out_copies / 1000 == pytest.approx(ranks * 7 / 8, rel=0.02)
    free = uniform_load(
        1000.0 * n_ranks, 256.0, 8.0, ExpertLayout(n_ranks, n_ranks, 1, 8, False, True), 1000.0, balanced=True
    )
    if n_ranks == 64:
        assert free.nic_out_copies > 1.25 * load.nic_out_copies  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["striped", "eplb_global", "eplb", "trivial"])
@pytest.mark.parametrize("n_ranks", [16, 32])
def test_placements_that_scatter_groups_lose_the_limit(n_ranks: int, kind: str) -> None:
    """Tokens followed one by one to the copies of their experts, against the drawn load and the closed form."""
    spec = RoutingSpec(
        family=RouterFamily.PRESET, preset="deepseek-v3", placement=PlacementSpec(kind=PlacementKind(kind))
    )
    redundant = 0 if kind == "striped" else 32
    split = ParallelSpec(dp_size=n_ranks, ep_size=n_ranks, redundant_experts=redundant)
    model, rng = load_model("deepseek-v3"), np.random.default_rng(3)
    routed = route_model(model, spec, split, 8, np.random.default_rng(1))
    layers, at = routed.layers[(256, 8)], 20
    ffn = model.layers[layers[at]].ffn
    assert isinstance(ffn, MoeFfn)
    placement = routed.placements[(256, 8)]
    row = placement.slots[min(at, len(placement.slots) - 1)]
    copies = [np.flatnonzero(row == e) for e in range(256)]
    chosen = routed.routers[(256, 8)].sample_tokens(3000, rng).astype(int)[:, at]
    slots = np.array([[rng.choice(copies[e]) for e in token] for token in chosen])
    ranks = slots // placement.slots_per_rank
    home = rng.integers(n_ranks, size=len(ranks))
    crossing = np.mean([len({*(r // 8)} - {h // 8}) for r, h in zip(ranks, home, strict=True)])
    reached = np.mean([len({*r}) for r in ranks])
    step = Pass(Phase.PREFILL, float(n_ranks), 512.0, 0.0)
    layout = expert_layout(split, step.phase, 8)
    drawn = routed.drawn(ffn, (layers[at],), step, layout, routed.draw(step, layout, rng))
    assert np.mean(drawn.nic_out_copies) / 512 == pytest.approx(crossing, rel=0.03)
    assert drawn.tokens_per_pair == pytest.approx(reached / 8, rel=0.03)
    closed = routed.expected(ffn, (layers[at],), step, layout)
    assert float(np.mean(closed.nic_out_copies)) / 512 == pytest.approx(crossing, rel=0.03)
