"""A pool as command lines of vLLM and SGLang.

Names and meanings: docs.vllm.ai (serve arguments, data and expert parallel deployment) and docs.sglang.io (server arguments),
looked up in 2025-11. vLLM spreads experts over all TP x DP ranks or over none, and counts `--max-num-seqs` per DP rank; SGLang's
`--tp-size` is TP x DP with attention DP, and it divides `--max-running-requests` and `--chunked-prefill-size` by `--dp-size`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from moesim.specs.dtypes import Dtype
from moesim.specs.model import ModelSpec
from moesim.study.plan.results import EngineFlags, PoolPlan
from moesim.study.plan.spec import PlanSpec

__all__ = ["sglang_flags", "vllm_flags"]

#: Formats that an engine makes of 16-bit weights when it loads them; others come with the checkpoint.
ON_LOAD = {Dtype.FP8: "fp8"}


def vllm_flags(pools: Sequence[PoolPlan], model: ModelSpec, spec: PlanSpec) -> EngineFlags:
    """``vllm serve`` for each pool."""
    partial = [p for p in pools if p.parallel.ep_size not in (1, p.parallel.n_stage_ranks)]
    if partial:
        split = partial[0].parallel
        note = f"vLLM spreads experts over all {split.n_stage_ranks} ranks of a stage or none, not over {split.ep_size}"
        return EngineFlags(commands=(), note=note)
    return EngineFlags(
        commands=tuple(_vllm(p, model, spec) for p in pools), note=_note(pools, spec, "--kv-transfer-config")
    )


def sglang_flags(pools: Sequence[PoolPlan], model: ModelSpec, spec: PlanSpec) -> EngineFlags:
    """``python -m sglang.launch_server`` for each pool."""
    return EngineFlags(commands=tuple(_sglang(p, model, spec) for p in pools), note=_note(pools, spec, None))


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
    words += ["--context-length", str(spec.workload.longest_context), "--kv-cache-dtype", _kv(model, "fp8_e4m3")]
    if pool.role != "serve":
        words += ["--disaggregation-mode", pool.role]
    return shlex.join([*words, *_quantization(spec)])


def _kv(model: ModelSpec, fp8: str) -> str:
    return fp8 if model.storage.kv_cache.dtype in (Dtype.FP8, Dtype.FP8_BLOCK) else "auto"


def _quantization(spec: PlanSpec) -> list[str]:
    return ["--quantization", ON_LOAD[spec.weight_dtype]] if spec.weight_dtype in ON_LOAD else []


def _note(pools: Sequence[PoolPlan], spec: PlanSpec, transfer: str | None) -> str | None:
    notes = []
    if any(pool.n_instances > 1 for pool in pools):
        many = ", ".join(f"{pool.n_instances} {pool.role}" for pool in pools)
        notes.append(f"start {many} servers behind a router")
    if len(pools) > 1 and transfer is not None:
        notes.append(f"both pools need {transfer} with the connector in use")
    if spec.weight_dtype is not None and spec.weight_dtype not in ON_LOAD:
        notes.append(f"needs a checkpoint in {spec.weight_dtype.value}")
    return "; ".join(notes) or None
