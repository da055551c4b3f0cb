"""Run a scenario: build its systems, measure their points, explain a pass of each, compare, and find where verdicts flip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moesim._version import __version__
from moesim.cost import CalibratedOps
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.specs.catalog import load_hardware, path_of
from moesim.specs.hardware import Hardware
from moesim.specs.load import line_of, read_yaml, validate
from moesim.specs.model import MoeFfn
from moesim.specs.scenario import Basis, Engine, QualityRule, ScenarioSpec, SystemKind
from moesim.study.calibrated import basis_of, calibration_for
from moesim.study.compare import compare, ratio_spreads
from moesim.study.detail import Explained, expert_load, phase_detail
from moesim.study.flips import flip_curves
from moesim.study.flow_settings import check_engine, check_flips, notes_of
from moesim.study.headline import headline, limits
from moesim.study.instance import Instance
from moesim.study.points import System, measure_point, memory_report
from moesim.study.provenance import input_origins
from moesim.study.quality import dense_equivalent_params
from moesim.study.ranks import alternatives
from moesim.study.results import (
    Comparison,
    FlipCurve,
    MemoryResult,
    PhaseDetail,
    Point,
    QualitySensitivity,
    RunResult,
    SystemResult,
)
from moesim.study.systems import Candidate, build_candidates, twin_system
from moesim.study.tokens import path_sample
from moesim.study.twins import dense_twin
from moesim.study.uncertainty import verdict
from moesim.timeline import Timeline

__all__ = ["Run", "load_scenario", "run_scenario"]

Progress = Callable[[str, float], None]
#: Prefills of more tokens are not looked at rank by rank: half a dozen of them take minutes.
MOST_SEEN_TOKENS = 2**21


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: the record, and timelines of the reference system's decode and full prefill where they were simulated."""

    result: RunResult
    timeline: Timeline | None
    prefill_timeline: Timeline | None = None


def load_scenario(name: str) -> tuple[ScenarioSpec, Path]:
    """A scenario by shipped name or path, with the file it came from.

    Raises:
        InputError: for the first thing wrong in it, with file, line and field.
    """
    path = path_of("scenario", name)
    return validate(ScenarioSpec, read_yaml(path), str(path)), path


def run_scenario(
    scenario: ScenarioSpec, *, name: str = "scenario", engine: Engine | None = None, seed: int | None = None,
    file: Path | None = None, progress: Progress = lambda what, done: None,
) -> Run:  # fmt: skip
    """Answer a scenario.

    Args:
        scenario: the checked scenario.
        name: what the report calls it.
        engine: overrides the scenario's engine.
        seed: overrides the scenario's seed.
        file: where the scenario was read, for the line of an error.
        progress: called with a step's name and the fraction done before it.

    Raises:
        InputError: anything in the scenario that does not fit together.
    """
    engine = engine if engine is not None else scenario.engine
    seed = seed if seed is not None else scenario.seed
    try:
        return _Runner(scenario, name, engine, seed, progress).run()
    except InputError as error:
        if file is not None:
            field = error.field or ""
            loc = tuple(int(part) if part.isdigit() else part for part in field.split("."))
            error.at(file=str(file), line=line_of(read_yaml(file), loc))
        raise


class _Runner:
    """Steps of one run over shared inputs; every random draw has its own stream, spawned from the seed."""

    def __init__(self, scenario: ScenarioSpec, name: str, engine: Engine, seed: int, progress: Progress) -> None:
        self.scenario, self.name, self.engine, self.seed, self.progress = scenario, name, engine, seed, progress
        self.hardware: Hardware = load_hardware(scenario.hardware, scenario.n_devices)
        self.calibration: CalibratedOps | None = calibration_for(scenario.calibration, self.hardware.device.name)
        self.streams = np.random.SeedSequence(seed)
        self.at = scenario.workload.middle
        self.prefill_timeline: Timeline | None = None
        for i, system in enumerate(scenario.systems):
            check_engine(system.flow, engine, f"systems.{i}.flow")
        check_flips(scenario)

    def rng(self) -> np.random.Generator:
        """The next independent stream."""
        return np.random.default_rng(self.streams.spawn(1)[0])

    def run(self) -> Run:
        """All steps in order."""
        candidates = build_candidates(self.scenario, self.hardware, self.calibration, self.rng())
        reference = self.scenario.reference.name
        systems, timeline = [], None
        for i, candidate in enumerate(candidates):
            self.progress(f"measuring {candidate.spec.name}", 0.7 * i / len(candidates))
            measured, recorded = self.measure(candidate)
            systems.append(measured)
            if candidate.spec.name == reference:
                timeline = recorded
        main = next(s for s in systems if s.name == reference)
        comparisons = tuple(
            compare(main, other, n)
            for other in systems
            if other is not main
            for n in self.scenario.workload.concurrency
        )
        flips = self.flips(candidates)
        self.progress("weighing quality rules", 0.95)
        quality = self.quality(candidates, main)
        result = self.record(tuple(systems), comparisons, flips, quality, candidates)
        self.progress("done", 1.0)
        return Run(result, timeline, self.prefill_timeline)

    def measure(self, candidate: Candidate) -> tuple[SystemResult, Timeline | None]:
        """Points, memory, and a pass of each phase in detail."""
        system, instance = candidate.system, candidate.system.instance
        workload, model = self.scenario.workload, candidate.system.instance.model
        points = tuple(
            self.with_memory(system, measure_point(system, self.hardware, workload, n, self.engine, self.rng()))
            for n in workload.concurrency
        )
        batch = max(1.0, self.at / max(system.n_instances, system.n_members))
        decode = instance.decode_pass(batch, workload.mean_context)
        new = workload.input_tokens - workload.cached_prefix_tokens
        prefill = instance.prefill_passes(new, workload.cached_prefix_tokens, workload.max_pass_tokens)[-1]
        passes: list[Explained] = []
        is_reference = candidate.spec.name == self.scenario.reference.name
        for step in (decode, prefill):
            stream = self.streams.spawn(1)[0]
            passes.append(self.detail(instance, step, stream, by_rank=is_reference and step is decode))
        seen = passes[0]
        full, absent = None, None
        if is_reference and self.engine is Engine.FLOW and instance.has_exchanges:
            full, absent = self.full_prefill(instance)
        ffn = model.moe_ffn
        result = SystemResult(
            name=candidate.spec.name, kind=candidate.spec.kind, basis=candidate.basis, model=model.name, hf_id=model.hf_id,
            n_params=float(model.n_params) * system.n_members, n_active_params=float(model.n_active_params),
            n_experts=ffn.n_routed_experts if ffn else None, top_k=ffn.num_experts_per_tok if ffn else None,
            n_members=system.n_members, parallel=instance.parallel.label, n_ranks_per_instance=instance.parallel.n_ranks,
            n_instances=system.n_instances, weight_dtypes=_dtypes(candidate), routing=_routing(candidate),
            memory=self.memory(system), points=points, details=tuple(found.detail for found in passes), full_prefill=full,
            no_full_prefill=absent,
            expert_load=expert_load(instance, decode, self.rng(), seen.counts),
            paths=seen.paths or path_sample(instance, self.rng()),
            notes=tuple(note for note in (model.note, _rounds(system), *notes_of(instance, decode)) if note),
        )  # fmt: skip
        return result, seen.timeline

    def detail(self, instance: Instance, step: Pass, stream: np.random.SeedSequence, *, by_rank: bool) -> Explained:
        """A pass in detail, with what would make it quicker where it is seen by rank."""
        rng = np.random.default_rng(stream)
        workload = self.scenario.workload
        found = phase_detail(instance, workload, self.at, step, self.engine, rng, by_rank=by_rank)
        if found.detail.ranks is None:
            return found
        # the same stream, so that the first row is this very pass
        rows = alternatives(instance, step, stream)
        return replace(found, detail=found.detail.model_copy(update={"what_if": rows}))

    def full_prefill(self, instance: Instance) -> tuple[PhaseDetail | None, str | None]:
        """A prefill with as many prompts on each attention-DP rank as a pass takes, rank by rank (the last chunk), or why not."""
        w = self.scenario.workload
        new = w.input_tokens - w.cached_prefix_tokens
        n_together = max(1, w.max_pass_tokens // new) * instance.parallel.dp_size
        step = instance.prefill_passes(new, w.cached_prefix_tokens, w.max_pass_tokens, n_together)[-1]
        if float(step.n_tokens) > MOST_SEEN_TOKENS:
            most = f"more than the {MOST_SEEN_TOKENS:,} up to which a pass is shown rank by rank"
            return None, f"it has {float(step.n_tokens):,.0f} tokens, {most}"
        # a stream beside the others, so that they are what they are without it
        stream = np.random.SeedSequence([self.seed, 1])
        found = self.detail(instance, step, stream, by_rank=True)
        self.prefill_timeline = found.timeline
        return found.detail, None

    def with_memory(self, system: System, point: Point) -> Point:
        """The point with what the fullest device would hold at it."""
        batch = max(1, -(-point.concurrency // system.n_instances))
        report = memory_report(system, self.scenario.workload, batch, explain=False)
        return point.model_copy(update={"memory_bytes_per_device": report.memory.total})

    def memory(self, system: System) -> MemoryResult:
        """Memory at the largest concurrency; an ensemble's slot holds several models."""
        workload, n = self.scenario.workload, max(self.scenario.workload.concurrency)
        batch = max(1, -(-n // system.n_instances))
        report = memory_report(system, workload, batch)
        m = report.memory
        weights = {
            kind: getattr(m.weights, kind) for kind in m.weights.__dataclass_fields__ if getattr(m.weights, kind)
        }
        return MemoryResult(
            outcome=report.outcome.value, sentence=report.sentence, remedies=report.remedies,
            capacity_bytes=report.capacity_bytes, weights_bytes=weights, kv_cache_bytes=m.kv_cache,
            activation_bytes=m.activations, comm_buffer_bytes=m.comm_buffers, runtime_reserve_bytes=m.runtime_reserve,
            total_bytes=m.total, kv_bytes_per_token=report.kv_bytes_per_token,
            kv_capacity_tokens=report.kv_capacity_tokens, max_sequences=report.max_sequences, at_concurrency=n,
        )  # fmt: skip

    def flips(self, candidates: list[Candidate]) -> tuple[FlipCurve, ...]:
        """One curve per axis and other system."""
        reference = next(c for c in candidates if c.spec.name == self.scenario.reference.name)
        others = [c.system for c in candidates if c is not reference]
        axes = self.scenario.comparison.flips
        curves: list[FlipCurve] = []
        for i, axis in enumerate(axes):
            self.progress(f"tracing {axis.value.replace('_', ' ')}", 0.7 + 0.25 * i / len(axes))
            workload = self.scenario.workload
            curves += flip_curves(reference.system, others, self.hardware, workload, self.at, axis, self.seed)
        return tuple(curves)

    def quality(self, candidates: list[Candidate], main: SystemResult) -> tuple[QualitySensitivity, ...]:
        """The verdict under each rule for equal quality."""
        reference = next(c for c in candidates if c.spec.name == self.scenario.reference.name)
        model = reference.system.instance.model
        if not model.is_moe:
            return ()
        point = next(p for p in main.points if p.concurrency == self.at)
        rows = []
        for rule in QualityRule:
            twin = dense_twin(model, Basis.EQUAL_QUALITY, rule)
            _, equal = twin_system(
                reference, twin, "equal quality", self.scenario, self.hardware, self.calibration, self.rng()
            )
            # what is slow in the machine is known to the simulation only
            engine = self.engine if equal.instance.settings.simulated else Engine.ANALYTIC
            other = measure_point(equal, self.hardware, self.scenario.workload, self.at, engine, self.rng())
            usd = _over(point.output_tokens_per_s, other.output_tokens_per_s)
            spread = ratio_spreads(other, point).get("usd_ratio")
            words = verdict(reference.spec.name, "the dense model", usd, spread)
            ends = spread.interval(usd) if spread is not None else None
            if other.outcome != "ok":
                words = f"the dense model does not run here: {other.outcome}"
            rows.append(
                QualitySensitivity(
                    rule=rule.value, dense_params=dense_equivalent_params(model, rule), usd_ratio=usd,
                    tpot_ratio=_over(other.tpot_s, point.tpot_s), usd_ratio_low=ends[0] if ends else None,
                    usd_ratio_high=ends[1] if ends else None, verdict=words,
                )
            )  # fmt: skip
        return tuple(rows)

    def record(
        self, systems: tuple[SystemResult, ...], comparisons: tuple[Comparison, ...], flips: tuple[FlipCurve, ...],
        quality: tuple[QualitySensitivity, ...], candidates: list[Candidate],
    ) -> RunResult:  # fmt: skip
        """Everything in one record."""
        device = self.hardware.device
        peaks = {k: v for k, v in device.peak_flop_per_s.model_dump().items() if v is not None}
        calibration = self.calibration.name if self.calibration is not None else "default efficiencies (assumption)"
        return RunResult(
            moesim_version=__version__, scenario=self.scenario, scenario_name=self.name, engine=self.engine.value,
            seed=self.seed, hardware_name=self.hardware.name, device_name=device.name, n_devices=self.hardware.n_devices,
            scale_up_domain_size=self.hardware.scale_up_domain_size, peak_flop_per_s=peaks,
            memory_bytes_per_s=device.memory_bytes_per_s, device_memory_bytes=device.memory_bytes,
            price_usd_per_device_h=self.hardware.price_usd_per_device_h, calibration=calibration, systems=systems,
            comparisons=comparisons, flips=flips, quality=quality,
            inputs=input_origins(self.hardware, candidates, self.calibration),
            headline=headline(systems, comparisons, flips, self.at),
            notes=limits(self.scenario, self.engine, basis_of(self.calibration), self.calibration),
        )  # fmt: skip


def _rounds(system: System) -> str | None:
    """What a pass in detail shows of an ensemble, None for other systems."""
    if system.n_members == 1:
        return None
    return (
        f"A pass in detail is one member's, with an even share of the requests; {system.members_per_slot} members take turns on "
        "a slot, so a step of the table is a round of such passes."
    )


def _dtypes(candidate: Candidate) -> dict[str, str]:
    storage = candidate.system.instance.model.storage
    kinds = ("attention", "dense_ffn", "routed_experts", "kv_cache")
    model = candidate.system.instance.model
    used = {kind: getattr(storage, kind).dtype.value for kind in kinds}
    if not model.is_moe:
        used.pop("routed_experts")
    if all(isinstance(layer.ffn, MoeFfn) for layer in model.layers):
        used.pop("dense_ffn", None)
    return used


def _routing(candidate: Candidate) -> str | None:
    if candidate.spec.kind is not SystemKind.MOE or candidate.system.instance.routed is None:
        return None
    return next(iter(candidate.system.instance.routed.routers.values())).source


def _over(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None
