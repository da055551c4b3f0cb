"""Sequences that decode in lockstep: every pass gives each of them one step, so a pass costs no loop over sequences.

A sequence that joined at step s with c tokens in the cache has c + (D - s) g of them at step D, with growth g tokens per step
(1 without speculation). Sums and the next finish follow from running totals.
"""

from __future__ import annotations

import heapq

from moesim.sim.serving.requests import Sequence

__all__ = ["Cohort"]


class Cohort:
    """All decoding sequences of one rank. `step` counts decode passes scheduled so far."""

    __slots__ = (
        "_bases",
        "_heap",
        "_longest",
        "_residues",
        "_sum",
        "block_size",
        "growth",
        "is_reserved",
        "members",
        "step",
    )

    def __init__(self, block_size: int, growth: float = 1.0) -> None:
        self.block_size, self.growth = block_size, growth
        self.step = 0
        self.is_reserved = False
        self.members: dict[int, Sequence] = {}
        self._heap: list[tuple[int, int, Sequence]] = []
        self._sum = 0.0
        self._bases: dict[int, float] = {}
        self._longest: float | None = None
        self._residues = [0] * block_size

    def __len__(self) -> int:
        return len(self.members)

    @property
    def context_sum(self) -> float:
        """Tokens that the next step's queries see, all sequences together."""
        return self._sum + len(self.members) * (self.step * self.growth + 1.0)

    @property
    def context_max(self) -> float:
        """The longest of those contexts."""
        if not self.members:
            return 0.0
        if self._longest is None:
            self._longest = max(self._bases.values())
        return self._longest + self.step * self.growth + 1.0

    @property
    def next_finish(self) -> int:
        """Steps until the first member is done."""
        return self._heap[0][0] - self.step

    def join(self, seq: Sequence, context: int) -> None:
        """Add a sequence with `context` cached tokens and `seq.steps_left` steps to go."""
        base = context - self.step * self.growth
        seq.join_step, seq.join_context, seq.finish_step = self.step, context, self.step + seq.steps_left
        self.members[seq.order] = seq
        self._bases[seq.order] = base
        self._sum += base
        if (self._longest is not None and base > self._longest) or len(self.members) == 1:
            self._longest = base
        self._residues[(context - self.step) % self.block_size] += 1
        heapq.heappush(self._heap, (seq.finish_step, seq.order, seq))

    def leave(self, seq: Sequence) -> None:
        """Take out a member that was preempted (its heap entry goes too)."""
        self._drop(seq)
        self._heap = [entry for entry in self._heap if entry[2] is not seq]
        heapq.heapify(self._heap)

    def advance(self, n_steps: int) -> list[Sequence]:
        """Schedule `n_steps` passes; returns the members whose last step is the last of them, and takes them out."""
        self.step += n_steps
        done: list[Sequence] = []
        while self._heap and self._heap[0][0] <= self.step:
            seq = heapq.heappop(self._heap)[2]
            seq.held = max(seq.held, self.blocks_of(seq))
            self._drop(seq)
            done.append(seq)
        return done

    def new_blocks(self, n_steps: int) -> int:
        """Blocks that the next `n_steps` passes need beyond what the members hold; none where all were reserved at once."""
        if self.is_reserved:
            return 0
        if self.growth != 1.0:
            return self._stretched(n_steps)
        size, residues = self.block_size, self._residues
        cycles, rest = divmod(n_steps, size)
        total = cycles * len(self.members)
        for j in range(self.step, self.step + rest):
            total += residues[-j % size]
        return total

    def steps_within(self, n_free: int, most: int) -> int:
        """How many of the next `most` passes `n_free` blocks are enough for."""
        if not self.members or self.new_blocks(most) <= n_free:
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.new_blocks(middle) <= n_free else (low, middle)
        return low

    def context_of(self, seq: Sequence) -> int:
        """Tokens of a member that are cached once all scheduled passes are done."""
        return int(seq.join_context + (self.step - seq.join_step) * self.growth)

    def blocks_of(self, seq: Sequence) -> int:
        """Blocks that a member holds after the passes scheduled so far."""
        if self.is_reserved:
            return seq.held
        if self.growth == 1.0:
            return -(-min(self.context_of(seq), seq.join_context + seq.steps_left) // self.block_size)
        return seq.blocks + self._cycles(seq, self.step)

    def _cycles(self, seq: Sequence, step: int) -> int:
        return int((step - seq.join_step) * self.growth / self.block_size)

    def _stretched(self, n_steps: int) -> int:
        """With growth other than 1: each member takes a block every block_size / growth steps after it joined."""
        last = self.step + n_steps
        return sum(self._cycles(seq, last) - self._cycles(seq, self.step) for seq in self.members.values())

    def _drop(self, seq: Sequence) -> None:
        del self.members[seq.order]
        base = self._bases.pop(seq.order)
        self._sum -= base
        if base == self._longest:
            self._longest = None
        if not self.members:
            self._sum = 0.0
        self._residues[(seq.join_context - seq.join_step) % self.block_size] -= 1
