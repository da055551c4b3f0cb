"""What probably went wrong with a row: rules on what is known of the run, from the most to the least specific."""

from __future__ import annotations

from moesim.study.validate.accuracy import Judged

__all__ = ["suspected_cause"]


def suspected_cause(judged: Judged) -> str:
    """A sentence; a suspicion, never a correction."""
    row, ttft, tpot = judged.row, judged.error(0) or 0.0, judged.error(1) or 0.0
    if ttft < -0.5 and tpot > 0.15:
        return "fewer requests ran at once than the client sent (slots or KV blocks): long in the queue, quick once running"
    if ttft < -0.5 and abs(tpot) < 0.25 and row.warm_up == "no":
        return "the client did not warm up: compilation of first requests is in the mean TTFT"
    if ttft < -0.5 and abs(tpot) < 0.25:
        return "requests waited for something outside the engine's passes: slots, the front end, or a client of another kind"
    if ttft > 0.5 and abs(tpot) < 0.25:
        return "prompts were begun sooner than modelled: less launch and host time than this stack's average"
    if row.attention_dp_size > 1:
        return "attention-DP: when ranks wait for each other's prompts is a setting the table does not say"
    if tpot > 0.15 and row.ep_size > 1:
        return "experts hit fewer slots than under even routing, or another kernel ran"
    if tpot > 0.15:
        return "kernels quicker than in the tables (another version or backend of the kernel)"
    if tpot < -0.15:
        return "kernels slower than in the tables, or small kernels that no operator stands for"
    return "no single cause: launch, host and queueing errors add up"
