"""How attention-DP ranks take prompts: what a scenario says, else what the engine of the calibration does."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.cost import CalibratedOps
from moesim.specs.parallel import DpPrefill, ParallelSpec
from moesim.study.steady import PromptTimes, in_step

__all__ = ["BALANCE_PASSES", "Round", "Stepping", "backend_of", "mean_round", "stepping_of", "waits_of"]

Num = Any

#: Passes that prompts wait for other ranks at most: timeout_iters of TensorRT-LLM's AttentionDpConfig. Its enable_balance is off
#: by default and on in the published launch scripts of attention-DP runs (docs/serving.md).
BALANCE_PASSES = 50
_BACKEND = re.compile(r"/(vllm|sglang|trtllm)\b")


@dataclass(frozen=True, slots=True)
class Stepping:
    """A rule with what it takes of an engine: passes held, prompts apart from decodes, and spread over ranks."""

    rule: DpPrefill
    hold_passes: int
    is_apart: bool
    is_spread: bool

    @property
    def is_in_step(self) -> bool:
        """Whether ranks wait for each other's prompts."""
        return self.rule is not DpPrefill.TOGETHER


def backend_of(calibration: CalibratedOps | None) -> str | None:
    """vllm, sglang or trtllm: the engine whose tables stand behind a calibration, None for others."""
    found = None if calibration is None else _BACKEND.search(calibration.name)
    return None if found is None else found.group(1)


def stepping_of(rule: DpPrefill | None, calibration: CalibratedOps | None) -> Stepping:
    """The rule asked for, else the engine's own; without an engine vLLM's."""
    backend = backend_of(calibration)
    if rule is None:
        rule = DpPrefill.BALANCED if backend == "trtllm" else DpPrefill.LOCKSTEP
    held = BALANCE_PASSES if rule is DpPrefill.BALANCED else 0
    return Stepping(rule, held, is_apart=backend == "sglang", is_spread=backend != "trtllm")


def waits_of(
    rule: DpPrefill | None, calibration: CalibratedOps | None, *, n_waiting: int, parallel: ParallelSpec
) -> Stepping | None:
    """How an instance takes prompts; None where neither ranks nor the lanes of a pipeline wait for each other.

    Args:
        rule: of attention-DP ranks, as asked for.
        calibration: whose engine is meant.
        n_waiting: attention-DP ranks that share experts; 1 where none do.
        parallel: the split. A pipeline's lanes wait for long passes whatever the rule; with attention-DP ranks that do not wait
            for each other that is left out.
    """
    found = stepping_of(rule, calibration)
    if n_waiting > 1:
        return found
    if parallel.pp_size > 1 and parallel.dp_size == 1:
        return replace(found, rule=DpPrefill.LOCKSTEP, hold_passes=0)
    return None


@dataclass(frozen=True, slots=True)
class Round:
    """Means of an instance in steady state, numbers or arrays.

    `tpot_s` between a request's tokens, `cycle_s` of an instance's time per token of every request, `prefill_s` of it that one
    prompt costs, `queue_s` before a prompt's own passes, `waited_s` the pass that one that comes waits for.
    """

    tpot_s: Num
    cycle_s: Num
    prefill_s: Num
    queue_s: Num
    waited_s: Num


def mean_round(
    decode_s: Num, attention_s: Num, requests: Num, output_tokens: Num, prompts: PromptTimes, pp_size: int,
    stepping: Stepping | None,
) -> Round:  # fmt: skip
    """Continuous batching with `requests` b on an instance: a round of decoding takes d, a request's O tokens O of them.

    Where nobody waits for another's prompts, each of the other b - 1 requests prefills once in that time, in full passes: gaps of
    d + (b - 1) t_prefill / O. Ranks in step, and lanes of a pipeline: `moesim.study.steady`; a prompt waits for the pass under
    way.

    Args:
        decode_s: d.
        attention_s: of it in the kernels of attention.
        requests: b.
        output_tokens: O.
        prompts: their times.
        pp_size: pipeline stages, all busy.
        stepping: None where neither ranks nor lanes wait for each other.
    """
    if stepping is None or not stepping.is_in_step:
        prefill_s = prompts.full_s / (prompts.n_per_pass * prompts.dp_size) / pp_size
        tpot_s = decode_s + np.maximum(0.0, requests - 1.0) * prefill_s / output_tokens
        return Round(tpot_s, decode_s + requests * prefill_s / output_tokens, prefill_s, 0.0 * decode_s, decode_s)
    s = in_step(
        decode_s, attention_s, requests, output_tokens, prompts, pp_size=pp_size, hold_passes=stepping.hold_passes,
        is_apart=stepping.is_apart, is_spread=stepping.is_spread,
    )  # fmt: skip
    others = (requests - 1.0) / requests
    return Round(
        s.seen_s, s.cycle_s, (s.pass_s - decode_s) * output_tokens / requests, s.pass_s * (others + s.waits), s.seen_s
    )
