"""Times of a split over a whole grid of batches, with one evaluation of the cost model per phase.

Letters: k sequences per attention-DP rank and pipeline turn, I input and O output tokens, P pipeline stages. A pass of P stages
takes the time of all layers on one stage's ranks plus P - 1 sends, so every pipeline depth shares one evaluation. P passes are
under way at once: the stage with most layers sets the pace, or the way of one pass through all stages and the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.analytic import step_time
from moesim.cost import CostModel
from moesim.lowering import Pass
from moesim.ops import Num, OpKind, Phase, Program, maximum
from moesim.specs.parallel import ParallelSpec
from moesim.study.host import n_kernels
from moesim.study.instance import Instance
from moesim.study.plan.formulas import PrefillTimes
from moesim.study.plan.spec import PlanSpec
from moesim.study.serve_host import FITTED_OVERHEADS, overheads_of, prompt_pass_s

__all__ = ["Curve", "batch_grid", "measure_curve", "prefill_steps", "prompts_begun", "turn_s", "uneven_stages"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """A stage split's times by sequences per rank; `*_send_s` are what each further pipeline stage adds.

    `prefill_s` is of one prompt (on every rank of several), and of as many as fill the passes of all ranks.
    """

    stage: ParallelSpec
    n_layers: int
    per_rank: Floats
    decode_s: Floats
    decode_send_s: Floats
    attention_s: Floats
    prefill_s: tuple[float, float]
    prefill_send_s: tuple[float, float]
    n_chunks: int
    n_per_pass: int
    chunk_tokens: int

    def decode(self, pp_size: int) -> Floats:
        """Seconds between a sequence's tokens, by `per_rank`."""
        return np.asarray(turn_s(self.decode_s, self.decode_send_s * (pp_size - 1), self.n_layers, pp_size))

    def prefill(self, pp_size: int) -> PrefillTimes:
        """Seconds of prefill through all stages."""
        host_s = FITTED_OVERHEADS.host_s * self.n_chunks if pp_size > 1 else 0.0
        alone = self.prefill_s[0] + self.prefill_send_s[0] * (pp_size - 1) + host_s
        full = turn_s(self.prefill_s[1], self.prefill_send_s[1] * (pp_size - 1), self.n_layers, pp_size, self.n_chunks)
        share = float(full) / (self.n_per_pass * self.stage.dp_size * pp_size)
        return PrefillTimes(
            alone, share, self.stage.dp_size, pp_size, self.n_chunks, self.n_per_pass, self.chunk_tokens
        )


def uneven_stages(n_layers: int, pp_size: int) -> float:
    """How much longer the longest stage is than the mean one, by its layers: all stages wait for it.

    >>> uneven_stages(10, 4)
    1.2
    """
    return -(-n_layers // pp_size) * pp_size / n_layers


def turn_s(pass_s: Num, sends_s: Num, n_layers: int, pp_size: int, n_passes: int = 1) -> Num:
    """Seconds from one pass of a lane to its next: max(P t_longest, sum t + sends + host); of `n_passes` of them together.

    Source: the recursion of stages that take passes in turn, as the serving simulation does (`moesim.sim.serving.pipeline`).
    """
    if pp_size == 1:
        return pass_s
    turn: Num = maximum(
        pass_s * uneven_stages(n_layers, pp_size), pass_s + sends_s + FITTED_OVERHEADS.host_s * n_passes
    )
    return turn


def batch_grid(most: int) -> Floats:
    """Powers of two and the halves between them, quarters from 64, up to `most`, which is included.

    >>> batch_grid(20).tolist()
    [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0]
    """
    values, x = {float(most)}, 1
    while x < most:
        values |= {min(float(most), float(x + x * i // 4)) for i in ((0, 1, 2, 3) if x >= 64 else (0, 2))}
        x *= 2
    return np.asarray(sorted(values))


def prefill_steps(instance: Instance, spec: PlanSpec) -> tuple[tuple[list[Pass], list[Pass]], int, int]:
    """Passes of one prompt on every rank, of as many as fill them; chunks of a prompt; prompts per pass and rank."""
    dp, per_pass = instance.parallel.dp_size, max(1, spec.max_pass_tokens // spec.input_tokens)
    one, full = (instance.prefill_passes(spec.input_tokens, 0, spec.max_pass_tokens, n) for n in (dp, per_pass * dp))
    return (one, full), len(one), per_pass


def measure_curve(instance: Instance, spec: PlanSpec, most_per_rank: int) -> Curve:
    """Both phases of a stage split (`pp_size` 1) in two evaluations.

    Every pass has the host time that the serving simulation gives it (docs/serving.md).
    Assumes: the chunks of one prompt follow each other; a round of decoding has equal shares on every rank.
    """
    stage = instance.parallel
    k = batch_grid(most_per_rank)
    decode = Pass(Phase.DECODE, _grid(k * stage.dp_size), 1.0, max(0.0, spec.workload.mean_context - 1.0))
    decode_s, decode_send_s, attention_s = _times(instance, decode, len(k))
    steps, n_chunks, per_pass = prefill_steps(instance, spec)
    flat = [step for group in steps for step in group]
    batch, new, cached = (
        _grid(np.asarray([getattr(s, name) for s in flat])) for name in ("batch", "new_tokens", "cached_tokens")
    )
    seconds, send_s, _ = _times(instance, Pass(Phase.PREFILL, batch, new, cached), len(flat))
    calibration = instance.cost.calibration
    decode_s = decode_s + overheads_of(calibration).pass_s
    program = instance.program(flat[0])
    seconds = prompt_pass_s(
        calibration, seconds, n_kernels(program), np.asarray([prompts_begun(stage, s) for s in flat])
    )
    return Curve(
        stage=stage, n_layers=len(instance.model.layers), per_rank=k, decode_s=decode_s, decode_send_s=decode_send_s,
        attention_s=attention_s, prefill_s=_sums(seconds, steps), prefill_send_s=_sums(send_s, steps), n_chunks=n_chunks,
        n_per_pass=per_pass, chunk_tokens=min(spec.input_tokens, spec.max_pass_tokens),
    )  # fmt: skip


def prompts_begun(stage: ParallelSpec, step: Pass) -> float:
    """Prompts that begin in a pass, on each attention-DP rank; none in the later chunks of long ones."""
    return max(1.0, float(step.batch) / stage.dp_size) if float(step.cached_tokens) == 0.0 else 0.0


def _sums(values: Floats, groups: tuple[list[Pass], list[Pass]]) -> tuple[float, float]:
    n = len(groups[0])
    return float(values[:n].sum()), float(values[n:].sum())


def _times(instance: Instance, step: Pass, n: int) -> tuple[Floats, Floats, Floats]:
    """Seconds of all layers, of one send to a next stage, and of decode attention in all layers, at each of n points."""
    deeper = replace(instance, parallel=instance.parallel.model_copy(update={"pp_size": 2}))
    program: Program = deeper.program(step)
    layers = step_time(replace(program, pp_size=1, stage_sends=()), instance.cost)
    return _flat(layers, n), _flat(_send(program, instance.cost), n), _attention(program, instance.cost, n)


def _attention(program: Program, cost: CostModel, n: int) -> Floats:
    total = np.zeros(n)
    for segment, op in program.ops():
        if op.kind is OpKind.ATTENTION_DECODE:
            total = total + _flat(cost.cost(op).time_s, n) * segment.n_repeat
    return total


def _send(program: Program, cost: CostModel) -> Num:
    total: Num = 0.0
    for op in program.stage_sends:
        total = total + cost.cost(op).time_s
    return total


def _flat(seconds: Num, n: int) -> Floats:
    return np.array(np.broadcast_to(np.asarray(seconds, dtype=float).reshape(-1), (n,)))


def _grid(values: Floats) -> Floats:
    return np.asarray(values, dtype=float)[:, None, None]
