"""Pipeline stages in the serving simulation, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.sim.serving.cluster import Cluster
from moesim.sim.serving.cost import RankWork
from moesim.sim.serving.engine import Engine, Overheads
from moesim.sim.serving.kv import BlockPool
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.pipeline import Pipeline, Stages
from moesim.sim.serving.policies import POLICIES
from moesim.sim.serving.rank import Limits, Rank
from moesim.sim.serving.requests import Request
from moesim.specs.serving import ServeScenarioSpec
from moesim.study.serve import simulate_requests
from moesim.study.serve_build import build_deployment

PASS_S = 0.012


class Constant:
    """Every pass takes as long, whatever is in it."""

    def decode_s(self, works, n_steps, growth, first_pass):
        return np.full(n_steps, PASS_S)

    def pass_s(self, works: list[RankWork], pass_index: int) -> float:
        return PASS_S


def pipeline(shares, *, send_s=0.0, host_s=0.0, per_lane=4, blocks=4096, n_lanes=None):
    recorder = Recorder()
    cluster = Cluster(recorder)
    stages = Stages(tuple(shares), np.full(4097, send_s), host_s)
    lanes = [
        Engine(
            cluster.env, [Rank(BlockPool(blocks, 16), Limits(per_lane, 512))], POLICIES["vllm"](overlapped=False), Constant(),
            Overheads(), recorder, on_finished=cluster.finished(0), stages=stages,
        )
        for _ in range(n_lanes or len(shares))
    ]  # fmt: skip
    cluster.engines.append(Pipeline(lanes))
    return cluster, recorder


@pytest.mark.parametrize(
    ("shares", "send_s", "host_s"),
    [
        ([0.25] * 4, 0.0, 0.0),
        ([0.25] * 4, 0.001, 0.0),
        ([0.25] * 4, 0.0, 0.002),
        ([0.4, 0.3, 0.3], 0.0005, 0.001),
        ([0.7, 0.1, 0.1, 0.1], 0.001, 0.0),
        ([1.0], 0.0, 0.001),
    ],
)
def test_a_full_pipeline_turns_as_the_slowest_stage_or_as_its_whole_way(shares, send_s, host_s):
    """Lanes always busy: a token every max(sum t + (P - 1) h + host, P max t), for each of the P lanes' sequences."""
    n, per_lane, out = len(shares), 4, 400
    cluster, recorder = pipeline(shares, send_s=send_s, host_s=host_s, per_lane=per_lane)
    cluster.feed_closed((Request(str(i), 0.0, 16, out) for i in range(n * per_lane)), n * per_lane)
    cluster.run()
    cluster.close()
    expected = max(PASS_S + (n - 1) * send_s + host_s, n * PASS_S * max(shares))
    assert np.asarray(recorder.times["tpot_s"]) == pytest.approx(expected, rel=0.02)
    rate = n * per_lane * out / float(np.max(recorder.times["finish_s"]))
    assert rate == pytest.approx(n * per_lane / expected, rel=0.03)


def test_one_request_alone_takes_every_stage_in_turn():
    cluster, recorder = pipeline([0.5, 0.3, 0.2], send_s=0.001, host_s=0.002)
    cluster.feed([Request("0", 1.0, 16, 3)])
    cluster.run()
    cluster.close()
    one = PASS_S + 2 * 0.001 + 0.002
    assert recorder.times["ttft_s"][0] == pytest.approx(one)
    assert recorder.times["e2e_s"][0] == pytest.approx(3 * one)


def test_stages_take_passes_in_order_and_never_two_at_once():
    """By hand: the recursion end_i = max(end_{i-1} + send, free_i) + t_i, and a host that schedules one pass at a time."""
    stages = Stages((0.75, 0.25), np.asarray([0.0, 1.0]), 0.5)
    assert stages.run(0.0, 4.0, 1) == (0.5, 5.5)  # host to 0.5, stage 1 to 3.5, send to 4.5, stage 2 to 5.5
    assert stages.run(0.0, 4.0, 1) == (3.5, 8.5)  # host to 1.0, stage 1 free at 3.5 to 6.5, send, stage 2 to 8.5
    assert stages.run(20.0, 4.0, 0) == (20.5, 24.5)  # no tokens, no send


def test_every_request_ends_and_blocks_come_back_when_lanes_run_short():
    cluster, recorder = pipeline([0.5, 0.5], per_lane=8, blocks=40)
    rng = np.random.default_rng(3)
    at = np.cumsum(rng.exponential(0.01, 60))
    sizes = [(int(rng.integers(1, 200)), int(rng.integers(1, 60))) for _ in at]
    cluster.feed(Request(str(i), float(t), *size) for i, (t, size) in enumerate(zip(at, sizes, strict=True)))
    cluster.run()
    cluster.close()
    assert recorder.totals.finished == 60
    assert all(r.pool.n_free == r.pool.n_blocks for r in cluster.engines[0].ranks)
    order = [int(name) for name in recorder.ids]
    assert [recorder.counts["output_tokens"][order.index(i)] for i in range(60)] == [size[1] for size in sizes]


def served(parallel, n_devices, batch):
    return ServeScenarioSpec.model_validate({
        "title": "t", "hardware": "hgx_h100", "n_devices": n_devices,
        "system": {"name": "s", "kind": "dense", "model": "llama-3.1-70b", "parallel": parallel},
        "serving": {
            "arrivals": {"kind": "closed_loop", "n_requests": batch, "concurrency": batch},
            "input": {"tokens": 128}, "output": {"tokens": 300}, "scheduler": {"max_num_seqs": batch},
        },
    })  # fmt: skip


@pytest.mark.parametrize(("tp", "pp"), [(1, 4), (2, 2), (4, 2), (2, 3)])
def test_decoding_in_a_deep_pipeline_is_what_the_closed_form_says(tp, pp):
    """Same costs on both sides: the time between tokens of a full pipeline of a real model."""
    from moesim.study.plan.curves import turn_s

    n_layers, batch = 80, 16 * pp
    deployment = build_deployment(served({"tp_size": tp, "pp_size": pp}, tp * pp, batch), 0)
    recorder, _ = simulate_requests(deployment, 0)
    pool = deployment.main
    work = RankWork(16, 16 * 278.0, 278.0, (), 16)
    pass_s = float(pool.cost.decode_s([work], 1, 1.0, 0)[0]) + deployment.overheads.pass_s
    assert pool.send_s is not None
    host = deployment.overheads.host_s
    uneven = -(-n_layers // pp) * pp / n_layers
    expected = max(pass_s * uneven, pass_s + (pp - 1) * float(pool.send_s[16]) + host)
    assert np.mean(recorder.times["tpot_s"]) == pytest.approx(expected, rel=0.03)
    assert turn_s(pass_s, (pp - 1) * float(pool.send_s[16]), n_layers, pp) == pytest.approx(expected, rel=0.05)


def test_stages_hold_a_share_of_the_cache_each():
    flat = build_deployment(served({"tp_size": 8}, 8, 64), 0)
    deep = build_deployment(served({"tp_size": 4, "pp_size": 2}, 8, 64), 0)
    # half the layers on half the ranks: as many tokens fit, but for the reserve of each device
    assert deep.main.kv_blocks == pytest.approx(flat.main.kv_blocks, rel=0.1)
    cluster = deep.cluster(Recorder(), np.random.default_rng(0))
    (replica,) = cluster.engines
    assert len(replica.ranks) == 2
    assert sum(rank.pool.n_blocks for rank in replica.ranks) == pytest.approx(deep.main.kv_blocks, abs=2)
    assert {rank.limits.max_num_seqs for rank in replica.ranks} == {32}
