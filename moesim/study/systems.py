"""From a scenario's words to systems on its hardware, the dense twins that the comparison asks for among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cost import CalibratedOps, CostModel
from moesim.errors import InputError, ParallelError
from moesim.specs.flow import FlowSpec
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import Basis, Engine, ScenarioSpec, SystemKind, SystemSpec
from moesim.study.instance import build_instance
from moesim.study.points import System, measure_point
from moesim.study.resolve import resolve_model
from moesim.study.twins import dense_twin

__all__ = ["Candidate", "build_candidates", "build_system", "dense_splits", "twin_system"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A system with the words it came from and the basis on which it is compared."""

    spec: SystemSpec
    basis: Basis
    system: System


def build_candidates(
    scenario: ScenarioSpec, hardware: Hardware, calibration: CalibratedOps | None, rng: np.random.Generator
) -> list[Candidate]:
    """The scenario's systems in order, then the reference's dense twins.

    Raises:
        InputError: a model that is not what the system's kind says, or a split that does not fit; with the field's path.
    """
    candidates = []
    for i, spec in enumerate(scenario.systems):
        try:
            model = resolve_model(spec)
            _check_kind(spec, model)
            _check_context(scenario, model)
            candidates.append(Candidate(spec, Basis.NAMED, build_system(spec, model, hardware, calibration, rng)))
        except InputError as error:
            inner = f".{error.field}" if error.field else ""
            is_split = isinstance(error, ParallelError) and not inner.startswith(".routing")
            where = "parallel" if is_split else ""
            error.field = f"systems.{i}{'.' + where if where else ''}{inner}"
            raise
    reference = next(c for c in candidates if c.spec.name == scenario.reference.name)
    for basis in scenario.comparison.bases:
        if basis is not Basis.NAMED:
            candidates.append(_twin(reference, basis, scenario, hardware, calibration, rng))
    return candidates


def build_system(
    spec: SystemSpec, model: ModelSpec, hardware: Hardware, calibration: CalibratedOps | None, rng: np.random.Generator
) -> System:
    """Instances of `model` that fill `hardware`.

    Raises:
        ParallelError: more ranks than devices, or devices left over.
    """
    n_ranks, n_devices = spec.parallel.n_ranks, hardware.n_devices
    if n_ranks > n_devices or n_devices % n_ranks:
        fits = [d for d in range(1, n_devices + 1) if n_devices % d == 0]
        raise ParallelError(
            f"{spec.parallel.label} needs {n_ranks} devices per instance, which do not fill the {n_devices} of the hardware",
            value=n_ranks, allowed=f"ranks per instance in {fits}",
        )  # fmt: skip
    cost = CostModel.of(hardware.with_n_devices(n_ranks), calibration)
    instance = build_instance(
        model, spec.parallel, hardware, spec.routing, cost=cost, overlap=spec.overlap, settings=spec.flow, rng=rng
    )
    popularity = 1.0 / np.arange(1, spec.n_members + 1) ** spec.member_skew
    shares = tuple(float(p) for p in popularity / popularity.sum())
    return System(spec.name, instance, n_devices // n_ranks, spec.n_members, shares, spec.dp_prefill)


def _check_kind(spec: SystemSpec, model: ModelSpec) -> None:
    if spec.kind is SystemKind.MOE and not model.is_moe:
        raise InputError(
            "is dense, but the system's kind is 'moe'", field="model", value=spec.model, hint="use kind: dense"
        )
    if spec.kind is SystemKind.DENSE and model.is_moe:
        raise InputError(
            "has experts, but the system's kind is 'dense'", field="model", value=spec.model, hint="use kind: moe"
        )


def _check_context(scenario: ScenarioSpec, model: ModelSpec) -> None:
    limit, longest = model.max_position_embeddings, scenario.workload.longest_context
    if limit is not None and longest > limit:
        raise InputError(
            "takes a shorter context than the workload's input_tokens + output_tokens", field="model", value=model.name,
            allowed=f"up to {limit} tokens, not {longest}",
        )  # fmt: skip


def twin_system(
    reference: Candidate, model: ModelSpec, name: str, scenario: ScenarioSpec, hardware: Hardware,
    calibration: CalibratedOps | None, rng: np.random.Generator,
) -> tuple[SystemSpec, System]:  # fmt: skip
    """A dense twin on the ranks of its MoE, split in the way that serves it best.

    Without experts to spread, attention data parallelism only copies weights, so every trade of data- for tensor-parallel ranks
    is tried; one that fits the largest concurrency is preferred, then the highest throughput at the middle one (closed form).
    """
    workload = scenario.workload
    tried = []
    for split in dense_splits(reference.spec.parallel, model):
        flow = _flow_of_twin(reference.spec.flow, split)
        spec = SystemSpec(name=name, kind=SystemKind.DENSE, model=reference.spec.model, parallel=split, flow=flow)
        system = build_system(spec, model, hardware, calibration, rng)
        largest, middle = (
            measure_point(system, hardware, workload, n, Engine.ANALYTIC, rng, explain=False)
            for n in (max(workload.concurrency), workload.middle)
        )
        tried.append((largest.outcome == "ok", middle.output_tokens_per_s or 0.0, spec, system))
    _, _, spec, system = max(tried, key=lambda t: (t[0], t[1]))
    return spec, system


def _flow_of_twin(flow: FlowSpec, split: ParallelSpec) -> FlowSpec:
    """What is slow in the machine is slow for the twin, too; it has no exchanges."""
    machine = flow.of_machine
    return machine.model_copy(update={"slow_links": {}}) if split.n_stage_ranks == 1 else machine


def _twin(
    reference: Candidate, basis: Basis, scenario: ScenarioSpec, hardware: Hardware, calibration: CalibratedOps | None,
    rng: np.random.Generator,
) -> Candidate:  # fmt: skip
    model = dense_twin(reference.system.instance.model, basis, scenario.comparison.quality_rule)
    name = f"dense, {basis.value.replace('_', ' ')}"
    spec, system = twin_system(reference, model, name, scenario, hardware, calibration, rng)
    return Candidate(spec, basis, system)


def dense_splits(own: ParallelSpec, model: ModelSpec) -> list[ParallelSpec]:
    """The MoE's split without expert parallelism, and each trade of attention-DP for TP that `model` divides by."""
    found = []
    for factor in (d for d in range(1, own.dp_size + 1) if own.dp_size % d == 0):
        split = ParallelSpec(
            tp_size=own.tp_size * factor, dp_size=own.dp_size // factor, cp_size=own.cp_size, pp_size=own.pp_size
        )
        try:
            split.check(model)
        except ParallelError:
            continue
        found.append(split)
    if not found:
        raise ParallelError(f"no dense split of {own.n_ranks} ranks divides {model.name}", field="comparison.bases")
    return found
