"""What a serving stack's host adds to the device time of a pass: as `validate` counts it, for numbers and arrays.

Decode passes run as captured graphs: device time + `step_s`. Passes with prompts run eagerly: device time x `prompt_ratio` beside
`launch_s` per kernel, + `prompt_pass_s` + `prompt_s` per prompt begun. Without a stack nothing is added.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moesim.analytic import OpLine, StepEstimate
from moesim.cost import Bound
from moesim.cost.served import stack_of
from moesim.cost.stack import StackParams, eager_s, n_launches
from moesim.lowering import Pass
from moesim.ops import OpKind, Phase, Program
from moesim.specs.base import Origin
from moesim.study.instance import Instance, PassTime

__all__ = ["HOST_GROUP", "hosted_s", "n_kernels", "wait_s", "with_host"]

#: The breakdown's row of host time.
HOST_GROUP = "host"


def hosted_s(stack: StackParams | None, device_s: Any, phase: Phase, kernels: Any = 0.0, n_new: Any = 0.0) -> Any:
    """Seconds of a pass with its host time.

    Args:
        stack: None adds nothing.
        device_s: of the pass.
        phase: of the pass.
        kernels: launched in it.
        n_new: prompts begun per attention-DP rank.
    """
    if stack is None:
        return device_s
    if phase is Phase.DECODE:
        return device_s + stack.step_s
    return eager_s(stack, device_s, kernels) + stack.prompt_pass_s + stack.prompt_s * n_new


def n_kernels(program: Program) -> float:
    """Kernels launched in a pass, counted over its layers."""
    return float(sum(segment.n_repeat * n_launches(op) for segment, op in program.ops()))


def wait_s(stack: StackParams | None, step_s: Any, prompt_tokens: Any) -> Any:
    """Seconds of a request outside its passes: to the server and back, and until the scheduler looks at it.

    Args:
        stack: None adds nothing.
        step_s: of the decode passes that it waits for.
        prompt_tokens: that its prompt is split into, cached ones too.
    """
    if stack is None:
        return 0.0 * step_s
    return stack.request_s + stack.token_s * prompt_tokens + stack.wait_passes * step_s


def with_host(instance: Instance, step: Pass, passing: PassTime, *, is_begun: bool = True) -> PassTime:
    """The pass as a server reaches it: its time, and a row of the breakdown for the host's part.

    Args:
        instance: whose stack it is; without one the pass stays as it is.
        step: the pass.
        passing: its device time.
        is_begun: whether its prompts begin in it (else it is a later chunk of them).
    """
    stack = stack_of(instance.cost.calibration)
    if stack is None:
        return passing
    kernels = n_new = 0.0
    if step.phase is Phase.PREFILL:
        kernels = n_kernels(passing.program if passing.program is not None else instance.program(step))
        n_new = max(1.0, float(step.batch) / instance.parallel.dp_size) * is_begun
    time_s = float(hosted_s(stack, passing.time_s, step.phase, kernels, n_new))
    return replace(passing, time_s=time_s, estimate=_with_line(passing.estimate, time_s - passing.time_s))


def _with_line(estimate: StepEstimate, host_s: float) -> StepEstimate:
    line = OpLine(
        "host_and_launches", HOST_GROUP, HOST_GROUP, OpKind.ELEMENTWISE, 1, host_s, 0.0, Bound.LATENCY, 0.0, 0.0,
        Origin.FITTED, 0.0, is_extrapolated=False,
    )  # fmt: skip
    whole = estimate.time_s + host_s
    return replace(
        estimate, time_s=whole, lines=(*estimate.lines, line),
        error_frac=None if estimate.error_frac is None else estimate.error_frac * estimate.time_s / whole,
        extrapolated_frac=estimate.extrapolated_frac * estimate.time_s / whole,
    )  # fmt: skip
