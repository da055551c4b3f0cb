"""A pool as command lines of vLLM and SGLang.

Names and meanings: docs.vllm.ai (serve arguments, data and expert parallel deployment) and docs.sglang.io (server arguments),
looked up in 2025-11. vLLM spreads experts over all TP x DP ranks or over none, and counts `--max-num-seqs` per DP rank; SGLang's
`--tp-size` is TP x DP with attention DP, and it divides `--max-running-requests` and `--chunked-prefill-size` by `--dp-size`.
vLLM's `--gpu-memory-utilization` is of all that it holds (0.9 if not given), SGLang's `--mem-fraction-static` of weights
and cache.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from moesim.specs.dtypes import Dtype
from moesim.specs.model import ModelSpec
from moesim.study.plan.results import EngineFlags, PoolPlan
from moesim.study.plan.spec import PlanSpec

__all__ = ["sglang_flags", "vllm_flags"]

#: Formats that an engine makes of 16-bit weights when it loads them; others come with the checkpoint.
ON_LOAD = {Dtype.FP8: "fp8"}
#: vLLM's fraction if none is given; about what SGLang chooses by itself (assumption: it depends on the device).
VLLM_MEMORY_FRAC = SGLANG_MEMORY_FRAC = 0.9
#: No more than this is asked for: the driver and other processes hold the rest. Assumption.
MOST_MEMORY_FRAC = 0.97


def vllm_flags(pools: Sequence[PoolPlan], model: ModelSpec, spec: PlanSpec) -> EngineFlags:
    """``vllm serve`` for each pool."""
    partial = [p for p in pools if p.parallel.ep_size not in (1, p.parallel.n_stage_ranks)]
    if partial:
        split = partial[0].parallel
        note = f"vLLM spreads experts over all {split.n_stage_ranks} ranks of a stage or none, not over {split.ep_size}"
        return EngineFlags(commands=(), note=note)
    return EngineFlags(
        commands=tuple(_vllm(p, model, spec) for p in pools),
        note=_note(
            pools, spec, "--kv-transfer-config", _more_memory(pools, [_needed(p) for p in pools], VLLM_MEMORY_FRAC)
        ),
    )


def sglang_flags(pools: Sequence[PoolPlan], model: ModelSpec, spec: PlanSpec) -> EngineFlags:
    """``python -m sglang.launch_server`` for each pool."""
    more = _more_memory(pools, [_needed_static(p) for p in pools], SGLANG_MEMORY_FRAC)
    return EngineFlags(commands=tuple(_sglang(p, model, spec) for p in pools), note=_note(pools, spec, None, more))


def _vllm(pool: PoolPlan, model: ModelSpec, spec: PlanSpec) -> str:
    p = pool.parallel
    words = ["vllm", "serve", model.hf_id or model.name, "--tensor-parallel-size", str(p.tp_size)]
    if p.pp_size > 1:
        words += ["--pipeline-parallel-size", str(p.pp_size)]
    if p.dp_size > 1:
        words += ["--data-parallel-size", str(p.dp_size)]
    if p.ep_size > 1:
        words += ["--enable-expert-parallel"]
    words += ["--max-num-seqs", str(pool.per_rank), "--max-num-batched-tokens", str(spec.max_pass_tokens)]
    words += ["--gpu-memory-utilization", f"{max(VLLM_MEMORY_FRAC, _asked(_needed(pool))):.2f}"]
    words += ["--max-model-len", str(spec.workload.longest_context), "--kv-cache-dtype", _kv(model, "fp8")]
    return shlex.join([*words, *_quantization(spec)])


def _sglang(pool: PoolPlan, model: ModelSpec, spec: PlanSpec) -> str:
    p = pool.parallel
    words = ["python", "-m", "sglang.launch_server", "--model-path", model.hf_id or model.name]
    words += ["--tp-size", str(p.n_stage_ranks)]
    if p.dp_size > 1:
        words += ["--dp-size", str(p.dp_size), "--enable-dp-attention"]
    if p.ep_size > 1:
        words += ["--ep-size", str(p.ep_size)]
    if p.pp_size > 1:
        words += ["--pp-size", str(p.pp_size)]
    words += ["--max-running-requests", str(pool.per_rank * p.dp_size)]
    words += ["--chunked-prefill-size", str(spec.max_pass_tokens * p.dp_size)]
    words += ["--mem-fraction-static", f"{_asked(_needed_static(pool)):.2f}"]
    words += ["--context-length", str(spec.workload.longest_context), "--kv-cache-dtype", _kv(model, "fp8_e4m3")]
    if pool.role != "serve":
        words += ["--disaggregation-mode", pool.role]
    return shlex.join([*words, *_quantization(spec)])


def _needed(pool: PoolPlan) -> float:
    """Fraction of a device that the plan counts on for everything."""
    return pool.memory_bytes / pool.capacity_bytes


def _needed_static(pool: PoolPlan) -> float:
    """The same of weights and cache alone."""
    return (pool.memory_bytes if pool.static_bytes is None else pool.static_bytes) / pool.capacity_bytes


def _asked(frac: float) -> float:
    """Rounded up to a hundredth, at most `MOST_MEMORY_FRAC`."""
    return min(MOST_MEMORY_FRAC, math.ceil(frac * 100.0 - 1e-9) / 100.0)


def _more_memory(pools: Sequence[PoolPlan], needed: Sequence[float], usual: float) -> str | None:
    """What to know where a pool needs more memory than the engine takes by itself."""
    most, pool = max(zip(needed, pools, strict=True), key=lambda pair: pair[0])
    if _asked(most) <= usual:
        return None
    words = f"the batch of {pool.role} needs {most:.1%} of the memory, more than the usual {usual:g}"
    if most > MOST_MEMORY_FRAC:
        words += f"; {MOST_MEMORY_FRAC:g} is asked for, so that somewhat fewer requests may fit"
    return words


def _kv(model: ModelSpec, fp8: str) -> str:
    return fp8 if model.storage.kv_cache.dtype in (Dtype.FP8, Dtype.FP8_BLOCK) else "auto"


def _quantization(spec: PlanSpec) -> list[str]:
    return ["--quantization", ON_LOAD[spec.weight_dtype]] if spec.weight_dtype in ON_LOAD else []


def _note(pools: Sequence[PoolPlan], spec: PlanSpec, transfer: str | None, memory: str | None) -> str | None:
    notes = []
    if any(pool.n_instances > 1 for pool in pools):
        many = ", ".join(f"{pool.n_instances} {pool.role}" for pool in pools)
        notes.append(f"start {many} servers behind a router")
    if len(pools) > 1 and transfer is not None:
        notes.append(f"both pools need {transfer} with the connector in use")
    if spec.weight_dtype is not None and spec.weight_dtype not in ON_LOAD:
        notes.append(f"needs a checkpoint in {spec.weight_dtype.value}")
    if memory is not None:
        notes.append(memory)
    return "; ".join(notes) or None
