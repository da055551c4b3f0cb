"""A small stage for serving tests: a made-up cost that can be checked by hand, and engines on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from moesim.sim.serving.cluster import Cluster, RouterKind, Transfer
from moesim.sim.serving.cost import RankWork
from moesim.sim.serving.engine import Engine, Overheads
from moesim.sim.serving.kv import BlockPool
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.policies import POLICIES
from moesim.sim.serving.rank import Limits, Rank, Speculation
from moesim.sim.serving.requests import Request

FREE = Overheads()
LIMITS = Limits(64, 512)


class LinearCost:
    """1 ms per pass, 10 us per token, 1 ns per token of context, and noise by the pass's number."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def _noise(self, passes):
        return self.noise * ((np.asarray(passes) * 7919) % 101)

    def decode_s(self, works: Sequence[RankWork], n_steps: int, growth: float, first_pass: int):
        steps = np.arange(n_steps, dtype=float) * growth
        seconds = np.zeros(n_steps)
        for work in works:
            own = 1e-3 + 1e-5 * work.n_decode + 1e-9 * (work.context_sum + work.n_decode * steps)
            seconds = np.maximum(seconds, own)
        return seconds + self._noise(first_pass + np.arange(n_steps))

    def pass_s(self, works: Sequence[RankWork], pass_index: int) -> float:
        own = [1e-3 + 1e-5 * (w.n_decode + w.n_prefill_tokens) + 1e-9 * w.context_sum for w in works]
        return max(own) + float(self._noise(pass_index))


def serve(
    requests: Iterable[Request], *, policy="vllm", limits=LIMITS, blocks=4096, block_size=16, jump=True, cost=None,
    overheads=FREE, dp=1, replicas=1, router=RouterKind.ROUND_ROBIN, decoders=0, transfer=None, concurrency=None,
    speculation: Speculation | None = None, overlapped=True, caching=True,
):  # fmt: skip
    recorder = Recorder()
    cluster = Cluster(recorder, router, overheads.request_s, limits.max_model_len)
    cost = cost if cost is not None else LinearCost()

    def engine(done, hand_over=False):
        ranks = [
            Rank(BlockPool(blocks, block_size, caching=caching), limits, speculation, np.random.default_rng(5))
            for _ in range(dp)
        ]
        return Engine(
            cluster.env, ranks, POLICIES[policy](overlapped=overlapped), cost, overheads, recorder, jump=jump,
            hand_over=hand_over, on_finished=done,
        )  # fmt: skip

    for i in range(replicas):
        done = cluster.prefilled(i) if decoders else cluster.finished(i)
        cluster.engines.append(engine(done, hand_over=decoders > 0))
    for i in range(decoders):
        cluster.decoders.append(engine(cluster.finished(i)))
    if decoders:
        cluster.transfer, cluster.link_free_s = transfer or Transfer(1e5, 1e10, 1e-5), [0.0] * replicas
    if concurrency is None:
        cluster.feed(requests)
    else:
        cluster.feed_closed(requests, concurrency)
    cluster.run()
    cluster.close()
    return recorder, cluster


def some_requests(n=120, seed=0, rate=60.0, most_in=900, most_out=80, shared=0):
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1.0 / rate, n))
    out = []
    for i in range(n):
        n_in, n_out = int(rng.integers(1, most_in)), int(rng.integers(1, most_out))
        hashes = ()
        if shared:
            family = int(rng.integers(0, shared))
            hashes = tuple(family * 1000 + k if k < 12 else i * 100_000 + k for k in range(n_in // 16))
        out.append(Request(str(i), float(at[i]), n_in, n_out, hashes, 16))
    return out


def books(recorder: Recorder):
    """Everything observable of a run, by request."""
    order = np.argsort([int(name) for name in recorder.ids])
    columns = {k: np.asarray(v)[order] for k, v in (recorder.times | recorder.counts).items()}
    return columns, [recorder.outcomes[i] for i in order]
