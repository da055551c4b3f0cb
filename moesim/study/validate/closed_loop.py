"""A closed loop in units of passes: which requests are in which pass does not depend on how long passes take.

Every request is replaced the moment it is done, and schedulers look at tokens and blocks, never at the clock. So the schedule of
a row is made once, and mean TTFT and TPOT are weighted sums of pass durations. Assumes: a new request is known to the scheduler
one pass after its predecessor ended (it overlaps with the pass in flight); one that would overfill the KV cache waits, and
nothing is preempted.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Schedule", "closed_loop", "lengths_of"]

Floats = NDArray[np.float64]
#: Passes that TensorRT-LLM's attention-DP balancing waits at most (timeout_iters in the published launch scripts).
MOST_HELD = 60
#: Part of a request's output that has to fit into the KV cache before it starts. TensorRT-LLM's guaranteed-no-evict scheduler
#: wants all of it; vLLM and SGLang start sooner, and then hold half of the outputs on average (assumption: no preemption).
RESERVED_FRAC = {"trtllm": 1.0, "vllm": 0.5, "sglang": 0.5}
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Runs of equal passes, in order, and how the means of the client's times weigh their durations.

    Per run of `k` passes: n decodes of the fullest rank at mean context c, q prompt tokens in `pieces` pieces with `pairs`
    query-key pairs, `n_new` prompts. `ttft_weight` x duration of one of its passes, summed, is the mean TTFT; `tpot_weight`
    the mean TPOT (both already times k).
    """

    k: Floats
    n: Floats
    c: Floats
    q: Floats
    pairs: Floats
    pieces: Floats
    n_new: Floats
    ttft_weight: Floats
    tpot_weight: Floats
    n_requests: int


def lengths_of(nominal: int, n: int, spread: float, rng: np.random.Generator) -> Ints:
    """Whole numbers, uniform between 1 - `spread` and 1 of nominal."""
    return rng.integers(max(1, int((1.0 - spread) * nominal)), nominal + 1, size=n)


class _Loop:
    """State of the loop; see `closed_loop`."""

    def __init__(
        self, inputs: Ints, outputs: Ints, concurrency: int, n_ranks: int, policy: str, budget: int, poll: int,
        hold: tuple[int, float], capacity: float,
    ) -> None:  # fmt: skip
        self.inputs, self.outputs = inputs.tolist(), outputs.tolist()
        self.poll, self.since, self.hold, self.delayed = poll, poll, hold, 0
        self.policy, self.budget, self.n_ranks = policy, budget, n_ranks
        n = len(self.inputs)
        self.arrive, self.first, self.last = [-1] * n, [0] * n, [0] * n
        self.next = min(concurrency, n)
        self.waiting: list[list[list[int]]] = [[] for _ in range(n_ranks)]
        self.coming: list[list[tuple[int, int]]] = [[] for _ in range(n_ranks)]
        for i in range(self.next):
            self.coming[i % n_ranks].append((0, i))
        self.running: list[list[tuple[int, int]]] = [[] for _ in range(n_ranks)]
        self.context = [0.0] * n_ranks
        self.step = [0] * n_ranks
        self.rows: list[tuple[float, ...]] = []
        self.held = 0
        reserved = RESERVED_FRAC.get(policy, 1.0)
        self.footprint = [i + reserved * o for i, o in zip(self.inputs, self.outputs, strict=True)]
        self.capacity, self.used = capacity, [0.0] * n_ranks

    def run(self) -> None:
        """Until every request is done."""
        while True:
            self._look()
            plans = [self._plan(rank) for rank in range(self.n_ranks)]
            if waits := self._holds(plans) or self._delays(plans):
                plans = [[] for _ in plans]
            if any(plan for plan in plans):
                self._mixed(plans)
            elif any(self.running):
                self._decode(is_blocked=not waits)
            elif any(self.coming):
                for rank in range(self.n_ranks):
                    self.coming[rank] = [(0, i) for _, i in self.coming[rank]]
            else:
                return

    def _look(self) -> None:
        """New requests are seen every `poll` decode passes, after every pass with prompts, and when nothing runs."""
        if self.since >= self.poll or not any(self.running):
            self.since = 0
            for rank in range(self.n_ranks):
                self._let_in(rank)

    def _holds(self, plans: list[list[tuple[list[int], int]]]) -> bool:
        """TensorRT-LLM lets ranks wait until all of them have prompts, so that their long passes coincide."""
        if self.policy != "trtllm" or self.n_ranks == 1 or all(plans) or not any(plans) or not any(self.running):
            self.held = 0
            return False
        self.held += 1
        if self.held > MOST_HELD:
            self.held = 0
            return False
        return True

    def _delays(self, plans: list[list[tuple[list[int], int]]]) -> bool:
        """TensorRT-LLM may let prompts wait, for some passes, until a pass is fuller (batch_wait_timeout_iters)."""
        most, ratio = self.hold
        if not most or not any(plans) or not any(self.running):
            self.delayed = 0
            return False
        tokens = max(sum(take for _, take in plan) + len(r) for plan, r in zip(plans, self.running, strict=True))
        if tokens >= ratio * self.budget or self.delayed >= most:
            self.delayed = 0
            return False
        self.delayed += 1
        return True

    def _let_in(self, rank: int) -> None:
        due = self.coming[rank]
        while due and due[0][0] <= len(self.rows):
            i = due.pop(0)[1]
            self.waiting[rank].append([i, self.inputs[i], 0])

    def _plan(self, rank: int) -> list[tuple[list[int], int]]:
        """Pieces of prompts for the next pass."""
        queue = self.waiting[rank]
        if not queue:
            return []
        left = self.budget - (0 if self.policy == "sglang" else len(self.running[rank]))
        found: list[tuple[list[int], int]] = []
        free = self.capacity - self.used[rank]
        for seq in queue:
            need = seq[1] - seq[2]
            if left <= 0 or (self.policy == "trtllm" and need > left and found):
                break
            if seq[2] == 0:
                free -= self.footprint[seq[0]]
                if free < 0.0 and (found or self.used[rank] > 0.0):
                    break
            take = need if self.policy == "trtllm" else min(need, left)
            found.append((seq, take))
            left -= take
        return found

    def _mixed(self, plans: list[list[tuple[list[int], int]]]) -> None:
        """One pass with prompts; decodes go along unless the scheduler runs prompts alone."""
        alone = self.policy == "sglang"
        here = len(self.rows)
        tokens = [sum(take for _, take in plan) for plan in plans]
        fullest = max(range(self.n_ranks), key=tokens.__getitem__)
        pairs = sum(take * (seq[2] + 0.5 * (take + 1)) for seq, take in plans[fullest])
        n = 0 if alone else max(len(r) for r in self.running)
        total = sum(len(r) for r in self.running)
        c = sum(self.context) / total if total else 0.0
        n_new = sum(1 for plan in plans for seq, take in plan if seq[2] + take == seq[1])
        self.since = self.poll
        self.rows.append((1.0, float(n), c, float(tokens[fullest]), pairs, float(len(plans[fullest])), float(n_new)))
        for rank, plan in enumerate(plans):
            if not alone:
                self._advance(rank, 1, here)
            for seq, take in plan:
                if seq[2] == 0:
                    self.used[rank] += self.footprint[seq[0]]
                seq[2] += take
                if seq[2] >= seq[1]:
                    self._begin(rank, seq[0], here)
            self.waiting[rank] = [seq for seq in self.waiting[rank] if seq[2] < seq[1]]

    def _begin(self, rank: int, i: int, here: int) -> None:
        self.first[i] = here
        steps = self.outputs[i] - 1
        if steps <= 0:
            self._end(rank, i, here)
            return
        heapq.heappush(self.running[rank], (self.step[rank] + steps, i))
        self.context[rank] += self.inputs[i] + 1

    def _decode(self, *, is_blocked: bool) -> None:
        """As many passes of decodes alone as pass until one is done, or a request comes in that need not wait for that."""
        k = min(r[0][0] - self.step[i] for i, r in enumerate(self.running) if r)
        if any(self.waiting) and not (is_blocked and self.n_ranks == 1):
            k = 1
        elif any(self.waiting):
            pass
        elif any(self.coming):
            k = min(k, max(1, self.poll - self.since))
        # looks that found nobody went by within the k passes
        self.since = (self.since + k) if any(self.coming) or self.poll == 1 else (self.since + k) % self.poll
        n = max(len(r) for r in self.running)
        total = sum(len(r) for r in self.running)
        c = sum(self.context) / total + 0.5 * (k - 1)
        here = len(self.rows)
        self.rows.append((float(k), float(n), c, 0.0, 0.0, 0.0, 0.0))
        for rank in range(self.n_ranks):
            self._advance(rank, k, here)

    def _advance(self, rank: int, k: int, here: int) -> None:
        running = self.running[rank]
        self.step[rank] += k
        self.context[rank] += k * len(running)
        while running and running[0][0] <= self.step[rank]:
            _, i = heapq.heappop(running)
            self.context[rank] -= self.inputs[i] + self.outputs[i]
            self._end(rank, i, here)

    def _end(self, rank: int, i: int, here: int) -> None:
        self.last[i] = here
        self.used[rank] -= self.footprint[i]
        if self.next < len(self.inputs):
            new, self.next = self.next, self.next + 1
            self.arrive[new] = here
            self.coming[rank].append((here + 2, new))


def closed_loop(
    isl: int, osl: int, concurrency: int, policy: str, *, n_ranks: int = 1, budget: int = 8192, per_slot: int = 10,
    spread: float = 0.2, poll: int = 1, hold: tuple[int, float] = (0, 0.0), capacity: float = np.inf,
    rng: np.random.Generator,
) -> Schedule:  # fmt: skip
    """The schedule of `per_slot` x `concurrency` requests, `concurrency` in flight.

    Args:
        isl: nominal prompt length; lengths are uniform between 1 - `spread` and 1 of it.
        osl: nominal output length.
        concurrency: requests in flight.
        policy: vllm (prompts in pieces beside decodes), trtllm (whole prompts beside decodes) or sglang (prompts alone).
        n_ranks: attention-DP ranks that step together.
        budget: most tokens of a rank's pass.
        per_slot: requests over concurrency.
        spread: of the lengths; 0 means requests that are all alike.
        poll: decode passes between two looks at new requests.
        hold: passes that prompts wait at most until a pass holds a part of the budget, and that part.
        capacity: tokens that a rank's KV cache holds.
        rng: of the lengths.
    """
    n = per_slot * concurrency
    inputs, outputs = lengths_of(isl, n, spread, rng), lengths_of(osl, n, spread, rng)
    loop = _Loop(inputs, outputs, concurrency, n_ranks, policy, budget, poll, hold, capacity)
    loop.run()
    rows = np.asarray(loop.rows)
    arrive, first, last = (np.asarray(x) + 1 for x in (loop.arrive, loop.first, loop.last))
    size = len(rows) + 1
    ttft, tpot = np.zeros(size + 1), np.zeros(size + 1)
    # request i waits for the rows arrive < row <= first and decodes over first < row <= last (all shifted by one)
    np.add.at(ttft, arrive, 1.0)
    np.add.at(ttft, first, -1.0)
    each = 1.0 / np.maximum(outputs - 1, 1)
    np.add.at(tpot, first, each)
    np.add.at(tpot, last, -each)
    k, c = rows[:, 0], len(rows)
    return Schedule(
        k=k, n=rows[:, 1], c=rows[:, 2], q=rows[:, 3], pairs=rows[:, 4], pieces=rows[:, 5], n_new=rows[:, 6],
        ttft_weight=np.cumsum(ttft)[:c] * k / n, tpot_weight=np.cumsum(tpot)[:c] * k / n, n_requests=n,
    )  # fmt: skip
