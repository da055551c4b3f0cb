"""One engine: passes one after another, scheduled one ahead where the policy overlaps; stretches of equal decodes in one jump.

A jump plans passes until the first sequence finishes or blocks run out. If a request arrives in between and could start, the
jump is cut at the pass that would have been the first to see it, so that the outcome is that of single steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import simpy

from moesim.sim.serving.batch import NO_ENDS, Batch
from moesim.sim.serving.clock import Overheads, PassClock, SharedStages
from moesim.sim.serving.cost import Chunk, RankWork, StepCost
from moesim.sim.serving.lookout import Lookout
from moesim.sim.serving.metrics import Recorder
from moesim.sim.serving.policies import Policy
from moesim.sim.serving.rank import Plan, Rank
from moesim.sim.serving.requests import Sequence

__all__ = ["Engine", "Overheads"]

MAX_JUMP = 4096


class Engine:
    """Ranks that step together; `on_first` is called when a prompt is done, `on_finished` when a sequence is."""

    def __init__(
        self, env: simpy.Environment, ranks: list[Rank], policy: Policy, cost: StepCost, overheads: Overheads,
        recorder: Recorder, *, jump: bool = True, hand_over: bool = False, name: str = "engine",
        on_finished: Callable[[Sequence, float], None] = lambda seq, now: None, stages: SharedStages | None = None,
    ) -> None:  # fmt: skip
        # passes of other engines come between those of one that shares its stages: no run of them can be planned alone
        # and where the scheduler looks up seldom, or ranks wait for each other, passes are counted one by one
        jump = jump and stages is None and policy.poll_passes == 1 and policy.fill_passes == 0
        jump = jump and (policy.balance_passes == 0 or len(ranks) == 1)
        self.clock = PassClock(
            cost, overheads, policy.depth, ranks[0].cohort.growth, ranks[0].tokens_per_decode, stages
        )
        self.env, self.ranks, self.policy, self.lookout = env, ranks, policy, Lookout(policy)
        self.recorder, self.max_jump, self.hand_over, self.name = recorder, MAX_JUMP if jump else 1, hand_over, name
        self.on_finished = on_finished
        for rank in ranks:
            rank.cohort.is_reserved = policy.reserves
        self.inbox: deque[tuple[float, int, Sequence]] = deque()
        self.inflight: deque[Batch] = deque()
        self.open: Batch | None = None
        self.signal: simpy.Event | None = None
        self.last_end_s = 0.0
        self.now = 0.0
        self.n_passes = 0
        self.n_inside = 0
        self.process = env.process(self.serve())

    @property
    def n_unfinished(self) -> int:
        """Requests here that are not done, for a router that looks at load."""
        return self.n_inside

    def submit(self, seq: Sequence, ready_s: float, rank: int | None = None) -> None:
        """A request reaches the engine; called at simulated time `ready_s`."""
        if rank is None:
            rank = self._least_loaded() if len(self.ranks) > 1 else 0
        self.n_inside += 1
        self.inbox.append((ready_s, rank, seq))
        if self.signal is not None and not self.signal.triggered:
            self.signal.succeed(True)

    def _least_loaded(self) -> int:
        """The rank with the fewest requests, waiting ones counted as often as the policy says."""
        weight = self.policy.waiting_weight
        pending = [0] * len(self.ranks)
        for _, rank, _ in self.inbox:
            pending[rank] += weight
        scores = [weight * len(r.waiting) + r.n_running + pending[i] for i, r in enumerate(self.ranks)]
        return min(range(len(scores)), key=scores.__getitem__)

    def serve(self) -> Generator[Any, Any, None]:
        """Schedule as far ahead as the policy allows, then wait for what ends or arrives first."""
        while True:
            if self.lookout.looks():
                self._drain(self.now)
            while self.open is None and len(self.inflight) < self.policy.depth:
                batch = self._schedule()
                if batch is None:
                    break
                self.inflight.append(batch)
            if not self.inflight:
                while not self.inbox:
                    yield from self._wait(None)
                self.now = max(self.now, self.inbox[0][0])
                self.lookout.wake()
                continue
            if self.open is not None:
                yield from self._ride(self.open)
                continue
            batch = self.inflight[0]
            delay = batch.end_s - self.env.now
            if delay > 0.0:
                yield self.env.timeout(delay)
            self.now = batch.end_s
            self._complete(self.inflight.popleft())

    def _wait(self, until_s: float | None) -> Generator[Any, Any, bool]:
        """Until a time, or a request arrives (True). Does not look up for requests that are in the inbox already."""
        if self.inbox and until_s is not None:
            delay = until_s - self.env.now
            if delay > 0.0:
                yield self.env.timeout(delay)
            return False
        signal = self.signal = self.env.event()
        if until_s is not None:
            delay = until_s - self.env.now
            if delay <= 0.0:
                self.signal = None
                return False
            _end_at(self.env.timeout(delay), signal)
        arrived: bool = yield signal
        self.signal = None
        return arrived

    def _ride(self, run: Batch) -> Generator[Any, Any, None]:
        """Wait for the end of an open run, or until an arrival that can start cuts it."""
        n, depth = len(run.ends), self.policy.depth
        deadline_s = run.decision_s(n, depth)
        while True:
            ahead = self.inflight[0] if self.inflight[0] is not run and self.inflight[0].matters else None
            at_s, keep = deadline_s, n
            if self.inbox:
                keep = run.first_decision(self.inbox[0][0], depth)
                at_s = run.decision_s(keep, depth)
            if ahead is not None and ahead.end_s < at_s:
                at_s, keep = ahead.end_s, 0
            if (yield from self._wait(at_s)):
                continue
            if ahead is not None and ahead.end_s <= at_s:
                self._complete(self.inflight.popleft())
            if keep == n:
                self._settle(run, n, deadline_s)
                return
            if keep:
                self._drain(at_s)
            if not all(self.policy.is_steady(rank) for rank in self.ranks):
                self._settle(run, keep or run.first_decision(at_s, depth), at_s)
                return

    def _drain(self, now: float) -> None:
        """Requests that are ready by `now` join their rank's queue."""
        while self.inbox and self.inbox[0][0] <= now:
            _, rank, seq = self.inbox.popleft()
            if seq.queued_s < 0.0:
                seq.queued_s = now
            self.ranks[rank].waiting.append(seq)

    def _schedule(self) -> Batch | None:
        for rank in self.ranks:
            if rank.waiting:
                self.policy.take_over(rank, self.now)
        if self.max_jump > 1:
            run = self._plan_run()
            if run is not None:
                return run
        if self.lookout.holds(self.ranks):
            plans = [self.policy.plan_decodes(rank) for rank in self.ranks]
        else:
            plans = [self.policy.plan(rank, self.now) for rank in self.ranks]
        if not any(plan.has_work for plan in plans):
            return None
        works: list[RankWork] = []
        firsts: list[tuple[int, Sequence]] = []
        finishers: list[tuple[int, Sequence]] = []
        for i, (rank, plan) in enumerate(zip(self.ranks, plans, strict=True)):
            works.append(self._progress(i, rank, plan, firsts, finishers))
        start_s, end_s = self.clock.span(works, self.n_passes, self.now, self.last_end_s)
        n_decode, n_prefill = sum(w.n_decode for w in works), sum(w.n_prefill_tokens for w in works)
        batch = Batch(NO_ENDS, end_s, start_s, self.last_end_s, n_decode, self.n_passes, firsts, finishers)
        running, held = self._state()
        previous_s = max(self.last_end_s, self.now)
        self.recorder.one_pass(
            previous_s, start_s, end_s, n_decode * self.clock.growth, n_prefill, len(firsts), running, held
        )
        self.n_passes += 1
        self.lookout.passed(n_prefill)
        self.last_end_s = end_s
        return batch

    def _progress(
        self, index: int, rank: Rank, plan: Plan, firsts: list[tuple[int, Sequence]], finishers: list[tuple[int, Sequence]]
    ) -> RankWork:  # fmt: skip
        """Count what a plan computes; sequences whose prompt it ends go on to decode, or leave."""
        finishers += [(index, seq) for seq in plan.done]
        chunks, n_ready = [], 0
        for seq, n in plan.chunks:
            chunks.append(Chunk(n, seq.computed))
            seq.computed += n
            if seq.computed < seq.target:
                continue
            n_ready += 1
            rank.prefilling.remove(seq)
            seq.generated += 1
            firsts.append((index, seq))
            if self.hand_over or seq.generated >= seq.request.output_tokens:
                finishers.append((index, seq))
                rank.leaving += 1
            else:
                rank.join(seq)
        return RankWork(plan.n_decode, plan.context_sum, plan.context_max, tuple(chunks), plan.n_decode + n_ready)

    def _plan_run(self) -> Batch | None:
        """A run of decodes up to the first finish or shortage of blocks; None if something else can happen next."""
        n_steps, n_decode = self.max_jump, 0
        for rank in self.ranks:
            if not self.policy.is_steady(rank):
                return None
            cohort = rank.cohort
            if len(cohort):
                n_decode += len(cohort)
                n_steps = min(n_steps, cohort.next_finish)
        if not n_decode:
            return None
        for rank in self.ranks:
            n_steps = rank.cohort.steps_within(rank.pool.n_free, n_steps)
        if n_steps < 2:
            return None
        cohorts = [rank.cohort for rank in self.ranks]
        works = [RankWork(len(c), c.context_sum, c.context_max, (), len(c)) for c in cohorts]
        start_s = self.clock.start_s(self.now, self.last_end_s)
        ends = self.clock.run_ends_s(works, n_steps, self.n_passes, start_s)
        previous_s = self.last_end_s if self.inflight else self.now
        run = self.open = Batch(ends, float(ends[-1]), start_s, previous_s, n_decode, self.n_passes)
        for rank in self.ranks:
            # The first pass is scheduled now, before the pass under way gives anything back.
            run.taken.append(rank.cohort.new_blocks(1))
            rank.pool.take(run.taken[-1])
        return run

    def _settle(self, run: Batch, n_steps: int, now: float) -> None:
        """Fix how many passes of a run take place."""
        run.ends = run.ends[:n_steps]
        run.end_s = float(run.ends[-1])
        for i, rank in enumerate(self.ranks):
            if not len(rank.cohort):
                rank.cohort.step += n_steps
                continue
            rank.pool.take(rank.cohort.new_blocks(n_steps) - run.taken[i])
            done = rank.cohort.advance(n_steps)
            rank.leaving += len(done)
            run.finishers += [(i, seq) for seq in done]
        self.n_passes += n_steps
        running, held = self._state()
        n_decode = run.n_decode * self.clock.growth
        self.recorder.passes(max(self.last_end_s, run.previous_s), run.start_s, run.ends, n_decode, running, held)
        self.last_end_s, self.open, self.now = run.end_s, None, now
        while self.inflight and self.inflight[0].end_s <= now:
            self._complete(self.inflight.popleft())

    def _state(self) -> tuple[int, float]:
        """Sequences that hold a slot, and the share of blocks held on the fullest rank."""
        ranks = self.ranks
        if len(ranks) == 1:
            return ranks[0].n_running, ranks[0].pool.occupancy
        return sum(rank.n_running for rank in ranks), max(rank.pool.occupancy for rank in ranks)

    def _complete(self, batch: Batch) -> None:
        """Tokens of a finished batch are out; sequences that are done free what they hold."""
        end_s = batch.end_s
        for index, seq in batch.firsts:
            if seq.first_s < 0.0:
                seq.first_s = end_s
            if seq.computed >= seq.target:
                self.ranks[index].publish(seq)
        for index, seq in batch.finishers:
            rank = self.ranks[index]
            rank.leaving -= 1
            self.n_inside -= 1
            seq.last_s = end_s
            rank.free(seq)
            self.on_finished(seq, end_s)


def _end_at(timer: simpy.Event, signal: simpy.Event) -> None:
    """Let a timer trigger a signal that nothing else has triggered."""

    def fire(_: simpy.Event) -> None:
        if not signal.triggered:
            signal.succeed(False)

    timer.callbacks.append(fire)
