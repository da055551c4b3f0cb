"""The answer in a few sentences, generated from the numbers, and what the numbers leave out."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.specs.scenario import Basis, Engine, ScenarioSpec, SystemKind
from moesim.study.results import Comparison, FlipCurve, Point, SystemResult

__all__ = ["headline", "limits"]


def headline(
    systems: Sequence[SystemResult], comparisons: Sequence[Comparison], flips: Sequence[FlipCurve], at: int
) -> tuple[str, ...]:
    """What each costs, which is better and why, and where that flips."""
    lines = [_cost(system, at) for system in systems if system.basis is Basis.NAMED]
    lines += [_moe_idea(system, at) for system in systems if system.kind is SystemKind.MOE]
    named = [c for c in comparisons if c.concurrency == at and c.basis is Basis.NAMED]
    lines += [f"At {at} requests in flight: {c.verdict}. Why: {c.why}." for c in named]
    twins = [c for c in comparisons if c.concurrency == at and c.basis is not Basis.NAMED]
    lines += [f"Against its dense twin of {c.basis.value.replace('_', ' ')}: {c.verdict}." for c in twins]
    lines += [f"Along {flip.axis.value.replace('_', ' ')}, {flip.summary}." for flip in flips if flip.crossings]
    return tuple(lines)


def _cost(system: SystemResult, at: int) -> str:
    point = _at(system, at)
    size = f"{system.name} ({_size(system)}, {system.parallel} x {system.n_instances})"
    if point.outcome != "ok" or point.tpot_s is None or point.ttft_s is None or point.output_tokens_per_s is None:
        return f"{size} does not run with {at} requests in flight: {point.outcome}; {point.reason}."
    parts = [
        f"TTFT {point.ttft_s * 1e3:.0f} ms, TPOT {point.tpot_s * 1e3:.1f} ms",
        f"{point.output_tokens_per_s:,.0f} output tokens/s",
        f"{sum(system.memory.weights_bytes.values()) / 1e9:.1f} GB of weights per rank",
    ]
    if point.energy_j_per_output_token is not None:
        parts.append(f"{point.energy_j_per_output_token:.2g} J per output token")
    if point.usd_per_million_output_tokens is not None:
        parts.append(f"${point.usd_per_million_output_tokens:.2f} per million output tokens")
    return f"{size} with {at} requests in flight: {', '.join(parts)}."


def _size(system: SystemResult) -> str:
    total, active = system.n_params / 1e9, system.n_active_params / 1e9
    if system.kind is SystemKind.DENSE:
        return f"{total:.1f}B parameters, all at work"
    if system.kind is SystemKind.ENSEMBLE:
        return f"{system.n_members} whole models, {total:.1f}B parameters stored, {active:.1f}B per request"
    return f"{total:.1f}B parameters, {active:.1f}B at work per token"


def _moe_idea(system: SystemResult, at: int) -> str:
    """The idea with this system's own numbers."""
    idle = 1.0 - system.n_active_params / system.n_params
    text = (
        f"{system.name} sounds like a {system.n_params / 1e9:.0f}B model, yet {idle:.0%} of it rests for any one token"
    )
    if system.paths is not None:
        text += (
            f": its router picks {system.top_k} of {system.n_experts} experts anew in each of {len(system.paths.layers)} layers, "
            f"so a token takes one of 10^{system.paths.n_possible_paths_log10:.0f} paths"
        )
    if system.expert_load is not None and system.n_experts:
        hit = sum(system.expert_load.experts_hit) / len(system.expert_load.experts_hit) / system.n_experts
        text += (
            f"; the batch of one decode step still wakes {hit:.0%} of the experts of a layer, and memory must hold all"
        )
    return text + "."


def limits(scenario: ScenarioSpec, engine: Engine) -> tuple[str, ...]:
    """What the run assumes and leaves out."""
    notes = [
        "Requests are in steady state with a fixed number in flight; queueing for admission is not included, TTFT is unloaded.",
        "Energy is an estimate from published board power, not a measurement; dollars are list prices or assumptions.",
        "A request's prefills interleave with decodes at full-pass efficiency; scheduling and host overheads are not included.",
    ]
    if engine is Engine.ANALYTIC:
        notes.append(
            "Passes are closed forms under expected loads; the flow engine adds drawn loads, waiting and contention."
        )
    else:
        notes.append("Break-even curves are closed forms under expected loads; points and details are simulated.")
    if scenario.is_assumption:
        notes.insert(
            0, "This scenario rests on rumours: its model is an assumption throughout, and so is every result."
        )
    return tuple(notes)


def _at(system: SystemResult, concurrency: int) -> Point:
    return next(p for p in system.points if p.concurrency == concurrency)
