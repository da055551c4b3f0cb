"""Replicas behind a router, closed or open arrivals, and prefill handed over to decode: the stage on which engines play."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

import simpy

from moesim.errors import ConservationError, InputError
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.policies import Policy
from moesim.sim.serving.rank import Rank
from moesim.sim.serving.requests import Outcome, Request, Sequence

__all__ = ["Cluster", "Replica", "RouterKind", "Transfer"]


class Replica(Protocol):
    """What serves a share of the requests: an engine, or a pipeline of several."""

    @property
    def ranks(self) -> list[Rank]:
        """Ranks with their KV blocks."""
        ...

    @property
    def policy(self) -> Policy:
        """Who runs in a pass."""
        ...

    @property
    def hand_over(self) -> bool:
        """Whether prompts go elsewhere to decode."""
        ...

    @property
    def n_unfinished(self) -> int:
        """Requests here that are not done."""
        ...

    def submit(self, seq: Sequence, ready_s: float, rank: int | None = None) -> None:
        """A request reaches it."""
        ...


class RouterKind(StrEnum):
    """How requests are dealt to replicas."""

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Moving a prompt's KV cache to a decode engine: latency + tokens x bytes / rate, one after another per link."""

    bytes_per_token: float
    bytes_per_s: float
    latency_s: float

    def seconds(self, tokens: int) -> float:
        """Time of one prompt on an idle link."""
        return self.latency_s + tokens * self.bytes_per_token / self.bytes_per_s


class Cluster:
    """Feeds requests to engines and keeps the books.

    `engines` serve whole requests, or only prefill where `decoders` are given; then each prompt's KV travels by `transfer`.
    """

    def __init__(
        self, recorder: Recorder, router: RouterKind = RouterKind.ROUND_ROBIN, request_s: float = 0.0,
        max_model_len: int | None = None,
    ) -> None:  # fmt: skip
        self.env = simpy.Environment()
        self.recorder, self.router, self.request_s, self.max_model_len = recorder, router, request_s, max_model_len
        self.engines: list[Replica] = []
        self.decoders: list[Replica] = []
        self.transfer: Transfer | None = None
        self.link_free_s: list[float] = []
        self.alive: dict[int, tuple[Sequence, int]] = {}
        self.turn = 0
        self.decode_turn = 0
        self.refill: Iterator[Request] | None = None
        self.n_transferred_tokens = 0

    def feed(self, requests: Iterable[Request]) -> None:
        """Open loop: each request arrives at its own time."""
        self.env.process(self._arrive(iter(requests)))

    def feed_closed(self, requests: Iterable[Request], concurrency: int) -> None:
        """Closed loop: `concurrency` requests in flight, each replaced when it is done."""
        self.refill = iter(requests)
        for _ in range(concurrency):
            self._next_closed(0.0)

    def run(self) -> None:
        """Until nothing happens any more."""
        self.env.run()

    def _arrive(self, requests: Iterator[Request]) -> Generator[Any, Any, None]:
        env = self.env
        for request in requests:
            delay = request.arrival_s + self.request_s - env.now
            if delay > 0.0:
                yield env.timeout(delay)
            self.submit(request)

    def _next_closed(self, now: float) -> None:
        request = next(self.refill, None) if self.refill is not None else None
        if request is None:
            return
        request = replace(request, arrival_s=now)
        if self.request_s > 0.0:
            self.env.process(self._later(request))
        else:
            self.submit(request)

    def _later(self, request: Request) -> Generator[Any, Any, None]:
        yield self.env.timeout(self.request_s)
        self.submit(request)

    def submit(self, request: Request) -> None:
        """Route a request, or turn it away.

        Raises:
            InputError: prefix hashes that do not name whole KV blocks.
        """
        block_size = self.engines[0].ranks[0].pool.block_size
        if request.prefix_hashes and request.hash_tokens % block_size:
            raise InputError("must be a multiple of the KV block", field="hash_tokens", value=request.hash_tokens,
                             allowed=f"multiples of {block_size}")  # fmt: skip
        self.recorder.totals.submitted += 1
        outcome = self._refusal(request)
        if outcome is not None:
            self.recorder.reject(request, outcome)
            if self.refill is not None:
                self._next_closed(request.arrival_s)
            return
        index = self._route(self.engines)
        seq = Sequence(request)
        self.alive[id(seq)] = (seq, index)
        self.engines[index].submit(seq, request.arrival_s + self.request_s)

    def _refusal(self, request: Request) -> Outcome | None:
        if request.input_tokens < 1 or request.output_tokens < 1:
            return Outcome.REJECTED_EMPTY
        total = request.input_tokens + request.output_tokens
        if self.max_model_len is not None and total > self.max_model_len:
            return Outcome.REJECTED_CONTEXT
        for engine in (*self.engines[:1], *self.decoders[:1]):
            pool = engine.ranks[0].pool
            tokens = request.input_tokens if engine.hand_over and not engine.policy.reserves else total
            if pool.blocks_for(tokens) > pool.n_blocks:
                return Outcome.REJECTED_KV
        return None

    def _route(self, engines: list[Replica]) -> int:
        if len(engines) == 1:
            return 0
        if self.router is RouterKind.LEAST_LOADED:
            return min(range(len(engines)), key=lambda i: engines[i].n_unfinished)
        self.turn += 1
        return (self.turn - 1) % len(engines)

    def finished(self, index: int) -> Callable[[Sequence, float], None]:
        """What to do when a sequence of replica `index` is done."""

        def done(seq: Sequence, now: float) -> None:
            self.recorder.finish(seq, index)
            del self.alive[id(seq)]
            if self.refill is not None:
                self._next_closed(now)

        return done

    def prefilled(self, index: int) -> Callable[[Sequence, float], None]:
        """What to do when prefill engine `index` is done with a prompt: send its KV, or finish if one token was all."""
        finish = self.finished(index)

        def done(seq: Sequence, now: float) -> None:
            if seq.generated >= seq.request.output_tokens:
                finish(seq, now)
                return
            self.env.process(self._move(seq, index, now))

        return done

    def _move(self, seq: Sequence, index: int, now: float) -> Generator[Any, Any, None]:
        if self.transfer is None:
            raise ConservationError("prefill is handed over, but nothing carries it")
        start = max(now, self.link_free_s[index])
        end = start + self.transfer.seconds(seq.target)
        self.link_free_s[index] = end
        self.n_transferred_tokens += seq.target
        delay = end - self.env.now
        if delay > 0.0:
            yield self.env.timeout(delay)
        target = self._route_decoder()
        seq.prefilled_elsewhere = True
        self.alive[id(seq)] = (seq, target)
        self.decoders[target].submit(seq, end)

    def _route_decoder(self) -> int:
        if self.router is RouterKind.LEAST_LOADED:
            return min(range(len(self.decoders)), key=lambda i: self.decoders[i].n_unfinished)
        self.decode_turn += 1
        return (self.decode_turn - 1) % len(self.decoders)

    def close(self) -> None:
        """Write down what is still in flight and check that nothing was lost.

        Raises:
            ConservationError: requests or KV blocks do not add up.
        """
        for seq, index in self.alive.values():
            self.recorder.leave_in_flight(seq, index)
        t = self.recorder.totals
        if t.submitted != t.finished + t.rejected + len(self.alive):
            raise ConservationError(
                f"{t.submitted} requests submitted, {t.finished} finished, {t.rejected} rejected, {len(self.alive)} in flight"
            )
        if self.alive:
            return
        for engine in (*self.engines, *self.decoders):
            for rank in engine.ranks:
                if rank.pool.n_free != rank.pool.n_blocks:
                    raise ConservationError(f"{rank.pool.n_blocks - rank.pool.n_free} KV blocks were never given back")
