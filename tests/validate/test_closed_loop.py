"""The schedule in units of passes against the serving simulator: same scheduler, same pass durations, same times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import validate_sample as sample

from moesim.sim.serving.cluster import Cluster
from moesim.sim.serving.cost import RankWork
from moesim.sim.serving.engine import Engine, Overheads
from moesim.sim.serving.kv import BlockPool
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.policies import POLICIES
from moesim.sim.serving.rank import Limits, Rank
from moesim.sim.serving.requests import Request
from moesim.study.validate.closed_loop import MOST_HELD, closed_loop, lengths_of
from moesim.study.validate.workload import Workbench


class TableCost:
    """Pass durations of a step table, as the engine asks for them."""

    def __init__(self, table: object) -> None:
        self.table = table

    def decode_s(self, works: Sequence[RankWork], n_steps: int, growth: float, first_pass: int) -> np.ndarray:
        work = max(works, key=lambda w: w.n_decode)
        contexts = work.context_sum / max(1, work.n_decode) + growth * np.arange(n_steps)
        return self.table.decode_parts(np.full(n_steps, float(work.n_decode)), contexts).sum(axis=1)

    def pass_s(self, works: Sequence[RankWork], pass_index: int) -> float:
        work = max(works, key=lambda w: w.n_prefill_tokens)
        n_decode = max(w.n_decode for w in works)
        pairs = sum(c.n_tokens * (c.context + 0.5 * (c.n_tokens + 1)) for c in work.chunks)
        context = sum(w.context_sum for w in works) / max(1, sum(w.n_decode for w in works))
        cells = (n_decode, context, work.n_prefill_tokens, pairs, len(work.chunks))
        return float(self.table.mixed_parts(*(np.asarray([float(x)]) for x in cells)).sum())


def simulate(
    table: object,
    inputs: np.ndarray,
    outputs: np.ndarray,
    concurrency: int,
    policy: str,
    n_ranks: int = 1,
    poll: int = 1,
) -> tuple[float, float]:
    recorder = Recorder()
    cluster = Cluster(recorder)
    limits = Limits(max(256, concurrency), 8192, None, policy == "vllm")
    ranks = [Rank(BlockPool(10**7, 16, caching=False), limits, None, np.random.default_rng(0)) for _ in range(n_ranks)]
    rules = POLICIES[policy](overlapped=True, poll_passes=poll, balance_passes=MOST_HELD if n_ranks > 1 else 0)
    cluster.engines.append(
        Engine(cluster.env, ranks, rules, TableCost(table), Overheads(), recorder, on_finished=cluster.finished(0))
    )
    cluster.feed_closed(
        (Request(f"r{k}", 0.0, int(i), int(o)) for k, (i, o) in enumerate(zip(inputs, outputs, strict=True))),
        concurrency,
    )
    cluster.run()
    cluster.close()
    return float(np.mean(recorder.times["ttft_s"])), float(np.mean(recorder.times["tpot_s"]))


CASES = [
    ("vllm", 512, 128, 8, {}),
    ("vllm", 1024, 256, 48, {"tp_size": 2}),
    ("vllm", 8192, 64, 16, {"tp_size": 4}),
    ("trtllm", 1024, 128, 32, {}),
    ("sglang", 1024, 128, 16, {"warm_up": "yes"}),
    ("sglang", 2048, 96, 64, {"tp_size": 2, "warm_up": "yes"}),
    ("vllm", 1024, 128, 24, {"model": "openai/gpt-oss-120b", "system": "h200_sxm", "precision": "fp4", "tp_size": 2}),
]


@pytest.mark.parametrize(("policy", "isl", "osl", "concurrency", "changes"), CASES)
def test_fast_path_equals_the_simulator(
    policy: str, isl: int, osl: int, concurrency: int, changes: dict[str, object]
) -> None:
    row = sample.run_row(backend=policy, isl=isl, osl=osl, concurrency=concurrency, **changes)
    fast, simulated = both(row, policy)
    assert fast == pytest.approx(simulated, rel=0.02)


def both(row: object, policy: str, n_ranks: int = 1, poll: int = 1) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean TTFT and TPOT of the fast path, and of the simulator."""
    table = Workbench().table(row)
    isl, osl, concurrency = row.isl, row.osl, row.concurrency
    plan = closed_loop(isl, osl, concurrency, policy, n_ranks=n_ranks, poll=poll, rng=np.random.default_rng(3))
    rng = np.random.default_rng(3)
    inputs, outputs = lengths_of(isl, plan.n_requests, 0.2, rng), lengths_of(osl, plan.n_requests, 0.2, rng)
    has = plan.q > 0
    seconds = np.zeros(len(plan.k))
    seconds[~has] = table.decode_parts(plan.n[~has], plan.c[~has]).sum(axis=1)
    mixed = table.mixed_parts(plan.n[has], plan.c[has], plan.q[has], plan.pairs[has], plan.pieces[has])
    seconds[has] = mixed.sum(axis=1)
    fast = (float(plan.ttft_weight @ seconds), float(plan.tpot_weight @ seconds))
    return fast, simulate(table, inputs, outputs, concurrency, policy, n_ranks, poll)


def test_seldom_looks_are_the_same_in_the_simulator() -> None:
    row = sample.run_row(backend="sglang", isl=1024, osl=256, concurrency=16, warm_up="yes")
    often, _ = both(row, "sglang")
    fast, simulated = both(row, "sglang", poll=30)
    assert fast[0] > 1.5 * often[0]
    # when a look falls within the passes that prompts shift is not the same to the pass
    assert fast == pytest.approx(simulated, rel=0.05)


def test_ranks_that_wait_for_each_other_do_so_in_the_simulator() -> None:
    row = sample.run_row(backend="trtllm", isl=1024, osl=256, concurrency=32, attention_dp_size=2, tp_size=1)
    fast, simulated = both(row, "trtllm", n_ranks=2)
    assert fast == pytest.approx(simulated, rel=0.02)


def test_every_token_is_in_some_pass() -> None:
    plan = closed_loop(300, 40, 12, "vllm", rng=np.random.default_rng(0))
    rng = np.random.default_rng(0)
    inputs, outputs = lengths_of(300, 120, 0.2, rng), lengths_of(40, 120, 0.2, rng)
    assert plan.q.sum() == inputs.sum()
    assert (plan.n * plan.k).sum() == (outputs - 1).sum()
    assert plan.n_new.sum() == 120
    # a mean TPOT of passes that all take a second is a second
    assert plan.tpot_weight.sum() == pytest.approx(1.0)


def test_a_server_that_looks_seldom_lets_requests_wait_for_half_an_interval() -> None:
    def waited(poll: int) -> float:
        plan = closed_loop(64, 400, 4, "sglang", poll=poll, rng=np.random.default_rng(1))
        return float(plan.ttft_weight.sum())

    # the first request of each of the four slots is seen at once, the other nine wait
    assert waited(30) - waited(1) == pytest.approx(0.9 * 14.5, rel=0.25)


def test_prompts_may_wait_until_a_pass_is_fuller() -> None:
    def waited(hold: tuple[int, float]) -> float:
        plan = closed_loop(64, 400, 4, "trtllm", budget=8192, hold=hold, rng=np.random.default_rng(1))
        return float(plan.ttft_weight.sum())

    assert waited((20, 0.9)) - waited((0, 0.0)) == pytest.approx(0.9 * 20.0, rel=0.2)
    # a pass that is full enough does not wait
    assert waited((20, 0.001)) == pytest.approx(waited((0, 0.0)))


def test_requests_wait_for_room_in_the_cache() -> None:
    def plan(capacity: float, policy: str = "trtllm") -> tuple[float, float]:
        found = closed_loop(100, 100, 16, policy, capacity=capacity, spread=0.0, rng=np.random.default_rng(1))
        return float(found.ttft_weight.sum()), float((found.n * found.k).sum() / found.k[found.n > 0].sum())

    free, _ = plan(float("inf"))
    waited, n_running = plan(1600.0)
    # half of the 16 requests of 200 tokens fit: the other half waits about as long as they run
    assert n_running == pytest.approx(8.0, rel=0.1)
    assert waited - free == pytest.approx(100.0, rel=0.25)
    assert plan(3200.0)[0] == pytest.approx(free)
    # vLLM does not reserve all of the output
    assert free < plan(1600.0, "vllm")[0] < waited
