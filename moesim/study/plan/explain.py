"""One deployment in full: times from scalar estimates of its passes, memory, bottleneck, interval, price, flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moesim.analytic import StepEstimate
from moesim.cost import usd_per_million_tokens
from moesim.cost.served import stack_of
from moesim.lowering import Pass
from moesim.ops import OpKind
from moesim.specs.base import weakest
from moesim.specs.parallel import ParallelSpec
from moesim.study.calibrated import basis_of
from moesim.study.host import n_kernels, wait_s
from moesim.study.plan.curves import prefill_steps, prompts_begun, turn_s
from moesim.study.plan.flags import sglang_flags, vllm_flags
from moesim.study.plan.formulas import PrefillTimes, colocated, pool_ttft
from moesim.study.plan.ground import Ground
from moesim.study.plan.results import Bottleneck, PlanPoint, PoolPlan
from moesim.study.plan.splits import memory_of
from moesim.study.points import attention_in
from moesim.study.serve_host import FITTED_OVERHEADS, overheads_of, prompt_pass_s
from moesim.study.uncertainty import Exposure, current_bands, exposure_of, spread_of

__all__ = ["Deployment", "explain"]

Weighted = Sequence[tuple[StepEstimate, float]]


@dataclass(frozen=True, slots=True)
class Deployment:
    """Instances to explain: `n_main` that decode (and prefill, unless `n_prefill` others do), at a batch of `per_rank`."""

    parallel: ParallelSpec
    per_rank: int
    n_main: int = 1
    prefill: ParallelSpec | None = None
    n_prefill: int = 0
    n_units: int = 1
    most_per_rank: int | None = None

    @property
    def batch(self) -> int:
        """Requests on one decoding instance."""
        return self.per_rank * self.parallel.dp_size * self.parallel.pp_size


@dataclass(frozen=True, slots=True)
class _Prefill:
    alone: StepEstimate
    times: PrefillTimes
    full: Sequence[StepEstimate]


def explain(ground: Ground, d: Deployment) -> PlanPoint:
    """The record of a deployment."""
    spec = ground.spec
    decode = ground.instance(d.parallel)
    step = decode.analytic(decode.decode_pass(d.batch, spec.workload.mean_context)).estimate
    sends_s = _sends(step)
    pass_s = float(
        turn_s(
            step.time_s - sends_s + overheads_of(ground.calibration).pass_s,
            sends_s,
            len(ground.model.layers),
            d.parallel.pp_size,
        )
    )
    prefill = _prefill(ground, d.prefill or d.parallel)
    transfer_s = 0.0
    if d.prefill is None:
        served = colocated(
            pass_s, attention_in(step), float(d.per_rank), prefill.times, spec.output_tokens, ground.stepping,
            stack_of(ground.calibration),
        )  # fmt: skip
        tpot, ttft, queue = float(served.tpot_s), float(served.ttft_s), float(served.queue_s)
        rate = float(served.requests_per_s) * d.n_main
        round_s = d.batch / (float(served.requests_per_s) * spec.output_tokens)
        weight = (round_s - pass_s) / sum(e.time_s for e in prefill.full)
        parts = [(step, pass_s / step.time_s), *((e, weight) for e in prefill.full)]
        pools = [_pool(ground, "serve", d.parallel, d.n_main * d.n_units, d.batch, pass_s, None, parts)]
    else:
        rate = d.n_main * d.batch / (pass_s * spec.output_tokens)
        busy = rate * prefill.times.share_s / d.n_prefill
        transfer_s = ground.transfer_s or 0.0
        wait, passes = pool_ttft(rate / d.n_prefill, prefill.times)
        client = float(wait_s(stack_of(ground.calibration), pass_s, float(spec.input_tokens)))
        tpot, queue, ttft, parts = pass_s, float(wait), float(wait + passes) + transfer_s + client, [(step, 1.0)]
        n = prefill.times.n_per_pass * d.prefill.dp_size * d.prefill.pp_size
        full = [(e, 1.0) for e in prefill.full]
        pools = [
            _pool(ground, "prefill", d.prefill, d.n_prefill * d.n_units, n, prefill.times.alone_s, busy, full),
            _pool(ground, "decode", d.parallel, d.n_main * d.n_units, d.batch, pass_s, None, parts),
        ]
    return _point(ground, d, pools, parts, prefill, tpot=tpot, ttft=ttft, queue=queue, transfer=transfer_s,
                  rate=rate * d.n_units)  # fmt: skip


def _point(
    ground: Ground, d: Deployment, pools: list[PoolPlan], parts: Weighted, prefill: _Prefill, *, tpot: float, ttft: float,
    queue: float, transfer: float, rate: float,
) -> PlanPoint:  # fmt: skip
    spec, hardware = ground.spec, ground.hardware
    n_devices = sum(pool.n_devices for pool in pools)
    tokens_per_s = rate * spec.output_tokens
    price = hardware.price_usd_per_device_h
    total_s = sum(e.time_s * w for e, w in parts)
    return PlanPoint(
        hardware=hardware.name, mode="in place" if d.prefill is None else "disaggregated", pools=tuple(pools),
        n_units=d.n_units, n_devices=n_devices, concurrency=d.batch * d.n_main * d.n_units, ttft_s=ttft, queue_s=queue,
        transfer_s=transfer,
        tpot_s=tpot, requests_per_s=rate, output_tokens_per_s=tokens_per_s,
        output_tokens_per_s_per_device=tokens_per_s / n_devices, output_tokens_per_s_per_user=1.0 / tpot,
        usd_per_million_output_tokens=usd_per_million_tokens(hardware, n_devices, tokens_per_s),
        usd_per_h=None if price is None else price * n_devices, error_frac=_error(ground, d, parts),
        ttft_error_frac=_error(ground, d, [(prefill.alone, 1.0)], is_ttft=True),
        origin=weakest(*(e.origin for e, _ in parts), prefill.alone.origin),
        extrapolated_frac=sum(e.extrapolated_frac * e.time_s * w for e, w in parts) / total_s,
        meets_goals=tpot <= (spec.tpot_s or tpot) and ttft <= (spec.ttft_s or ttft), limited_by=_limit(ground, d),
        vllm=vllm_flags(pools, ground.model, spec), sglang=sglang_flags(pools, ground.model, spec),
    )  # fmt: skip


def _prefill(ground: Ground, parallel: ParallelSpec) -> _Prefill:
    instance = ground.instance(parallel)
    groups, n_chunks, per_pass = prefill_steps(instance, ground.spec)
    known: dict[Pass, StepEstimate] = {}
    alone, full = (
        [known.setdefault(step, known.get(step) or instance.analytic(step).estimate) for step in steps]
        for steps in groups
    )
    kernels = n_kernels(instance.program(groups[0][0]))
    seconds = [
        sum(
            float(prompt_pass_s(ground.calibration, known[step].time_s, kernels, prompts_begun(parallel, step)))
            for step in steps
        )
        for steps in groups
    ]
    n_layers, sends_s = len(ground.model.layers), sum(_sends(e) for e in full)
    turn = float(turn_s(seconds[1] - sends_s, sends_s, n_layers, parallel.pp_size, n_chunks))
    share = turn / (per_pass * parallel.dp_size * parallel.pp_size)
    if parallel.pp_size > 1:
        seconds = [s + FITTED_OVERHEADS.host_s * n_chunks for s in seconds]
    chunk = min(ground.spec.input_tokens, ground.spec.max_pass_tokens)
    times = PrefillTimes(seconds[0], share, parallel.dp_size, parallel.pp_size, n_chunks, per_pass, chunk)
    return _Prefill(alone[-1], times, full)


def _sends(step: StepEstimate) -> float:
    """Seconds of sends between pipeline stages."""
    return sum(line.time_s for line in step.lines if line.kind is OpKind.SEND)


def _pool(
    ground: Ground, role: Literal["serve", "prefill", "decode"], parallel: ParallelSpec, n: int, batch: int, pass_s: float,
    busy: float | None, parts: Weighted,
) -> PoolPlan:  # fmt: skip
    memory = memory_of(ground.model, parallel, ground.hardware, ground.spec, batch)
    return PoolPlan(
        role=role, n_instances=n, parallel=parallel, batch=batch, memory_bytes=memory.memory.total,
        capacity_bytes=memory.capacity_bytes, pass_s=pass_s, busy_frac=busy, bottleneck=_bottleneck(parts),
        static_bytes=memory.memory.weights.total + memory.memory.kv_cache,
    )  # fmt: skip


def _bottleneck(parts: Weighted) -> Bottleneck:
    groups: dict[str, dict[str, float]] = {}
    for estimate, weight in parts:
        for line in estimate.lines:
            bounds = groups.setdefault(line.group, {})
            bounds[line.bound.value] = bounds.get(line.bound.value, 0.0) + line.time_s * weight
    total = sum(sum(bounds.values()) for bounds in groups.values())
    group = max(groups, key=lambda g: sum(groups[g].values()))
    bounds = groups[group]
    return Bottleneck(group=group, bound=max(bounds, key=lambda b: bounds[b]), share_frac=sum(bounds.values()) / total)


def _error(ground: Ground, d: Deployment, parts: Weighted, *, is_ttft: bool = False) -> float | None:
    """Half of the 90% interval over the value, as `run` and `sweep` make it; None where only assumptions stand behind it."""
    is_wide = d.parallel.n_ranks > ground.hardware.scale_up_domain_size
    total = sum(e.time_s * w for e, w in parts)
    each = [(exposure_of(e, is_wide=is_wide), e.time_s * w / total) for e, w in parts]
    names = ("kernels", "links", "assumed_frac", "outside_frac")
    mean = Exposure(**{name: sum(float(getattr(e, name)) * share for e, share in each) for name in names})
    spread = spread_of(
        basis_of(ground.calibration), mean, current_bands(), is_moe=ground.model.is_moe, is_ttft=is_ttft
    )  # fmt: skip
    half = float(spread.half_frac)
    return None if math.isnan(half) else half


def _limit(ground: Ground, d: Deployment) -> str:
    if d.most_per_rank is None or d.per_rank < d.most_per_rank:
        return "goals" if ground.spec.tpot_s or ground.spec.ttft_s else "choice"
    return "max_batch" if d.per_rank >= ground.spec.max_batch else "memory"
