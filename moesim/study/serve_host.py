"""Host time in served passes: of the stack that a calibration was fitted to, else what was fitted on vLLM."""

from __future__ import annotations

from typing import Any

from moesim.cost import CalibratedOps
from moesim.cost.served import stack_of
from moesim.ops import Phase
from moesim.sim.serving.engine import Overheads
from moesim.study.host import hosted_s

__all__ = ["FITTED_OVERHEADS", "overheads_of", "prompt_pass_s"]

#: Fitted on the vLLM 0.19 log of Llama-3.1-8B on an RTX PRO 6000 and checked on that of Qwen3-32B (docs/serving.md); `host_s` is
#: an assumption that matters only where passes are shorter, scheduling is not asynchronous, or stages form a pipeline.
FITTED_OVERHEADS = Overheads(
    pass_s=0.9e-3, host_s=1.5e-3, prefill_s=0.0, sequence_s=0.0, request_s=1.2e-3, first_pass_s=0.08
)


def overheads_of(calibration: CalibratedOps | None, *, is_hidden: bool = False) -> Overheads:
    """Host times of an engine; what depends on a pass's prompts and kernels is in the pass's cost.

    A fitted stack has its own: nothing more at the first pass (its servers were warm, or what that costs was fitted), and for a
    request what `serve_client` adds.

    Args:
        calibration: whose stack runs it; without one the times fitted on vLLM 0.19.
        is_hidden: whether the host schedules beside the device, where the stack's own times are all that is left of it.
    """
    stack = stack_of(calibration)
    if stack is None:
        return FITTED_OVERHEADS
    return Overheads(
        pass_s=stack.step_s,
        prefill_s=stack.prompt_pass_s - stack.step_s,
        host_s=0.0 if is_hidden else FITTED_OVERHEADS.host_s,
    )


def prompt_pass_s(calibration: CalibratedOps | None, device_s: Any, kernels: float, n_new: Any) -> Any:
    """Seconds of a pass with prompts, its host time included.

    Args:
        calibration: whose stack runs it.
        device_s: operators of the pass.
        kernels: launched in it.
        n_new: prompts begun per attention-DP rank.
    """
    stack = stack_of(calibration)
    if stack is None:
        return device_s + (FITTED_OVERHEADS.pass_s + FITTED_OVERHEADS.prefill_s)
    return hosted_s(stack, device_s, Phase.PREFILL, kernels, n_new)
