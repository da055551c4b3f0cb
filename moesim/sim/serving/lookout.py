"""When a scheduler looks for new requests, and when it holds prompts that it has back."""

from __future__ import annotations

from moesim.sim.serving.policies import Policy
from moesim.sim.serving.rank import Rank

__all__ = ["Lookout"]


class Lookout:
    """Counts passes since the scheduler looked up, waited for other ranks' prompts, or for a fuller pass."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.n_unseen, self.n_held, self.n_filled = policy.poll_passes, 0, 0

    def looks(self) -> bool:
        """Whether the scheduler looks for requests before its next pass."""
        if self.n_unseen < self.policy.poll_passes:
            return False
        if self.policy.poll_passes > 1:
            self.n_unseen = 0
        return True

    def wake(self) -> None:
        """An idle scheduler looks at once."""
        self.n_unseen = self.policy.poll_passes

    def passed(self, n_prefill_tokens: int) -> None:
        """A pass was scheduled; one with prompts is followed by a look."""
        self.n_unseen = self.policy.poll_passes if n_prefill_tokens else self.n_unseen + 1

    def holds(self, ranks: list[Rank]) -> bool:
        """Whether the next pass only decodes, though prompts wait."""
        return self._waits_for_ranks(ranks) or self._fills_up(ranks)

    def _waits_for_ranks(self, ranks: list[Rank]) -> bool:
        """Whether ranks that have prompts wait for those that have none."""
        most = self.policy.balance_passes
        if not most or len(ranks) == 1:
            return False
        have = [self.policy.wants_prompt(rank) for rank in ranks]
        is_waiting = any(have) and not all(have) and any(len(rank.cohort) for rank in ranks)
        self.n_held = self.n_held + 1 if is_waiting and self.n_held < most else 0
        return self.n_held > 0

    def _fills_up(self, ranks: list[Rank]) -> bool:
        """Whether prompts wait, beside decodes, until a pass is fuller."""
        policy = self.policy
        if not policy.fill_passes:
            return False
        is_waiting = any(map(policy.wants_prompt, ranks)) and any(len(rank.cohort) for rank in ranks)
        is_waiting = is_waiting and self.n_filled < policy.fill_passes and not any(map(policy.is_full, ranks))
        self.n_filled = self.n_filled + 1 if is_waiting else 0
        return is_waiting
