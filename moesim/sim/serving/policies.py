"""Scheduler policies: who runs in the next pass. One small class each; the verbs that change state are `Rank`'s.

What each assumes is in its docstring with its source; none of them looks into the future or at output lengths, except where the
real one reserves memory for the longest output.
"""

from __future__ import annotations

from collections.abc import Callable

from moesim.sim.serving.rank import Plan, Rank
from moesim.sim.serving.requests import Sequence

__all__ = ["POLICIES", "Policy", "SglangPolicy", "StaticPolicy", "TrtllmPolicy", "VllmPolicy"]


class Policy:
    """Decides each pass of a rank. `depth` is how many passes may be scheduled and not yet finished.

    New requests are looked at every `poll_passes` passes of decodes, and after every pass with prompts (SGLang's
    scheduler_recv_interval). With `balance_passes`, attention-DP ranks let prompts wait for up to that many passes until every
    rank has some, so that their long passes coincide (TensorRT-LLM's attention_dp_config: enable_balance, timeout_iters). With
    `fill_passes`, prompts wait beside decodes for up to that many passes until some rank's pass would hold `fill_frac` of its
    token budget (its batch_wait_timeout_iters and batch_wait_max_tokens_ratio).
    """

    name = "base"
    depth = 1
    #: Whether blocks for the longest output are taken when a sequence starts.
    reserves = False
    #: How often a waiting request counts where new ones go to the least loaded rank: four times in vLLM's data-parallel client.
    waiting_weight = 4

    def __init__(
        self, *, overlapped: bool = True, poll_passes: int = 1, balance_passes: int = 0, fill_passes: int = 0,
        fill_frac: float = 0.0,
    ) -> None:  # fmt: skip
        self.depth = 2 if overlapped else 1
        self.poll_passes, self.balance_passes = poll_passes, balance_passes
        self.fill_passes, self.fill_frac = fill_passes, fill_frac

    def wants_prompt(self, rank: Rank) -> bool:
        """Whether the next pass of a rank would carry prompts."""
        return bool(rank.prefilling) or not self.is_blocked(rank)

    def is_full(self, rank: Rank) -> bool:
        """Whether the next pass of a rank would hold `fill_frac` of its token budget."""
        tokens = sum(seq.target - seq.computed for seq in rank.prefilling) + len(rank.cohort) * rank.tokens_per_decode
        free = rank.limits.max_num_seqs - rank.n_running
        tokens += sum(seq.target for seq, _ in zip(rank.waiting, range(max(0, free)), strict=False))
        return tokens >= self.fill_frac * rank.limits.max_num_batched_tokens

    def plan_decodes(self, rank: Rank) -> Plan:
        """A pass without prompts, however many wait."""
        plan = Plan()
        rank.decode(plan)
        return plan

    def plan(self, rank: Rank, now: float) -> Plan:
        """The next pass of a rank; changes its state as if the pass were under way."""
        raise NotImplementedError

    def take_over(self, rank: Rank, now: float) -> None:
        """Let sequences at the head of the queue that were prefilled elsewhere join the decodes."""
        while rank.waiting and rank.waiting[0].prefilled_elsewhere and rank.n_running < rank.limits.max_num_seqs:
            if not rank.admit_decoding(rank.waiting[0], now):
                return
            rank.waiting.popleft()

    def is_blocked(self, rank: Rank) -> bool:
        """True if the head of the queue cannot start before something running ends, however many decodes pass."""
        if not rank.waiting:
            return True
        if rank.n_running >= rank.limits.max_num_seqs:
            return True
        return not self._fits_first(rank)

    def _fits_over(self, rank: Rank) -> bool:
        """Whether a sequence prefilled elsewhere can be taken over."""
        seq = rank.waiting[0]
        tokens = seq.final_context if self.reserves else seq.target
        return rank.pool.blocks_for(tokens) <= rank.pool.n_free

    def is_steady(self, rank: Rank) -> bool:
        """True if nothing but decodes of the same sequences can be scheduled until one finishes or a request arrives."""
        if rank.prefilling:
            return False
        return not rank.waiting or (not rank.leaving and self.is_blocked(rank))

    def _fits_first(self, rank: Rank) -> bool:
        seq = rank.waiting[0]
        if seq.prefilled_elsewhere:
            return self._fits_over(rank)
        n_hits = rank.reuse_prefix(seq)
        left = seq.target - n_hits * seq.request.hash_tokens
        budget = rank.limits.max_num_batched_tokens - len(rank.cohort) * rank.tokens_per_decode
        if left > budget and _runs_whole(rank, left):
            return False
        return budget > 0 and rank.need(seq, min(left, budget), n_hits) <= rank.pool.n_free


def _runs_whole(rank: Rank, n_tokens: int) -> bool:
    """Whether a prompt may not be cut: chunking is off and it fits into a pass of its own."""
    return not rank.limits.chunked_prefill and n_tokens <= rank.limits.max_num_batched_tokens


class VllmPolicy(Policy):
    """vLLM V1: decodes first, then prompts already begun, then the queue in order, all within one token budget.

    A prompt longer than what is left of the budget is cut (chunked prefill); blocks are taken as tokens are scheduled; when they
    run out the sequence admitted last is recomputed later, and nothing new starts in that pass. With asynchronous scheduling the
    next pass is scheduled while this one runs, and a sequence that is done keeps its slot until its last pass has ended.
    Source: vLLM 0.19, vllm/v1/core/sched/scheduler.py and async_scheduler.py.
    """

    name = "vllm"

    def plan(self, rank: Rank, now: float) -> Plan:
        """See the class."""
        plan = Plan()
        n_before = rank.n_preempted
        rank.decode(plan)
        budget = rank.limits.max_num_batched_tokens - plan.n_decode * rank.tokens_per_decode
        budget = self._continue(rank, plan, budget)
        if rank.n_preempted == n_before:
            self._start(rank, plan, budget, now)
        return plan

    def _continue(self, rank: Rank, plan: Plan, budget: int) -> int:
        for seq in list(rank.prefilling):
            if budget <= 0 or seq not in rank.prefilling:
                break
            n = min(budget, seq.target - seq.computed)
            while not rank.reserve(seq, seq.computed + n):
                rank.preempt()
                if seq not in rank.prefilling:
                    return budget
            plan.chunks.append((seq, n))
            budget -= n
        return budget

    def _start(self, rank: Rank, plan: Plan, budget: int, now: float) -> None:
        limits = rank.limits
        while rank.waiting and budget > 0 and rank.n_running < limits.max_num_seqs:
            seq = rank.waiting[0]
            if seq.prefilled_elsewhere:
                if not rank.admit_decoding(seq, now):
                    return
                rank.waiting.popleft()
                continue
            n_hits = rank.reuse_prefix(seq)
            left = seq.target - n_hits * seq.request.hash_tokens
            if left > budget and _runs_whole(rank, left):
                return
            n = min(left, budget)
            if not rank.admit(seq, n, n_hits, now, room_for=self._room_for(seq)):
                return
            rank.waiting.popleft()
            plan.chunks.append((seq, n))
            budget -= n

    def _room_for(self, seq: Sequence) -> int:
        """Tokens whose blocks a sequence takes when it starts; 0 takes them as they are needed."""
        return 0


class SglangPolicy(Policy):
    """SGLang: prompts go first, in passes of their own; decodes run when no prompt can start.

    A prompt is cut at the token budget (chunked_prefill_size) and goes on in the next pass. One starts only if, besides its own
    tokens, `reserve_frac` of what the running sequences may still generate fits (new_token_ratio, 0.7 at first and lower after;
    here its middle). When blocks run out the sequence admitted last is retracted. The radix cache is modelled as a prefix cache.
    Source: SGLang, python/sglang/srt/managers/scheduler.py and schedule_policy.py; the constant ratio is an assumption.
    """

    name = "sglang"
    reserve_frac = 0.4

    def plan(self, rank: Rank, now: float) -> Plan:
        """See the class."""
        plan = Plan()
        budget = rank.limits.max_num_batched_tokens
        for seq in rank.prefilling:
            n = min(budget, seq.target - seq.computed)
            if n <= 0 or not rank.reserve(seq, seq.computed + n):
                break
            plan.chunks.append((seq, n))
            budget -= n
        while rank.waiting and budget > 0 and rank.n_running < rank.limits.max_num_seqs and self._fits_first(rank):
            seq = rank.waiting[0]
            if seq.prefilled_elsewhere:
                if not rank.admit_decoding(seq, now):
                    break
                rank.waiting.popleft()
                continue
            n_hits = rank.reuse_prefix(seq)
            n = min(seq.target - n_hits * seq.request.hash_tokens, budget)
            if not rank.admit(seq, n, n_hits, now):
                break
            rank.waiting.popleft()
            plan.chunks.append((seq, n))
            budget -= n
        if not plan.chunks:
            rank.decode(plan)
        return plan

    def is_blocked(self, rank: Rank) -> bool:
        """Only a lack of slots is sure to last: what running sequences may still need shrinks from pass to pass."""
        return not rank.waiting or rank.n_running >= rank.limits.max_num_seqs

    def _fits_first(self, rank: Rank) -> bool:
        seq = rank.waiting[0]
        still = sum(max(0, s.finish_step - rank.cohort.step) for s in rank.cohort.members.values())
        own = seq.target + self.reserve_frac * (seq.request.output_tokens - seq.generated)
        need = rank.pool.blocks_for(int(own + self.reserve_frac * still))
        return need <= rank.pool.n_free


class TrtllmPolicy(VllmPolicy):
    """TensorRT-LLM in-flight batching: as vLLM's pass, but a sequence starts only when blocks for its longest output are free.

    Nothing is ever evicted (capacity policy GUARANTEED_NO_EVICT, the default); a prompt runs whole unless context chunking is on.
    Source: TensorRT-LLM documentation, "Useful runtime flags": capacity scheduler policy, max_num_tokens.
    """

    name = "trtllm"
    reserves = True
    #: It gives new requests to the rank with the fewest active ones, waiting or not (PyExecutor's attention-DP scheduling).
    waiting_weight = 1

    def _room_for(self, seq: Sequence) -> int:
        return seq.final_context

    def _fits_first(self, rank: Rank) -> bool:
        seq = rank.waiting[0]
        if seq.prefilled_elsewhere:
            return self._fits_over(rank)
        n_hits = rank.reuse_prefix(seq)
        n = min(seq.target - n_hits * seq.request.hash_tokens, rank.limits.max_num_batched_tokens)
        return rank.need(seq, n, n_hits, seq.final_context) <= rank.pool.n_free


class StaticPolicy(Policy):
    """Static batching: a batch is filled, prefilled, and decoded until its last sequence is done; only then the next one starts.

    The baseline that continuous batching is compared with (Yu et al., Orca, OSDI 2022, section 2). Finished sequences leave their
    row empty; the batch does not wait to be full.
    """

    name = "static"
    reserves = True

    def __init__(
        self, *, overlapped: bool = True, poll_passes: int = 1, balance_passes: int = 0, fill_passes: int = 0,
        fill_frac: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(overlapped=False, poll_passes=poll_passes)

    def plan(self, rank: Rank, now: float) -> Plan:
        """See the class."""
        plan = Plan()
        if rank.waiting and not rank.n_running:
            self._fill(rank, now)
        budget = rank.limits.max_num_batched_tokens
        for seq in rank.prefilling:
            n = min(budget, seq.target - seq.computed)
            if n <= 0:
                break
            plan.chunks.append((seq, n))
            budget -= n
        if not plan.chunks:
            rank.decode(plan)
        return plan

    def _fill(self, rank: Rank, now: float) -> None:
        while rank.waiting and rank.n_running < rank.limits.max_num_seqs:
            seq = rank.waiting[0]
            if not rank.admit(seq, seq.target, 0, now, room_for=seq.final_context):
                return
            rank.waiting.popleft()

    def is_blocked(self, rank: Rank) -> bool:
        """Nothing starts while a batch runs, but what was prefilled elsewhere joins where there is room."""
        if rank.waiting and rank.waiting[0].prefilled_elsewhere:
            return super().is_blocked(rank)
        return not rank.waiting or rank.n_running > 0


POLICIES: dict[str, Callable[..., Policy]] = {
    policy.name: policy for policy in (VllmPolicy, SglangPolicy, TrtllmPolicy, StaticPolicy)
}
