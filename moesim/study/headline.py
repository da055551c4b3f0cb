"""The answer in a few sentences, generated from the numbers, and what the numbers leave out."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.cost import CalibratedOps
from moesim.specs.parallel import DpPrefill
from moesim.specs.scenario import Basis, Engine, FlipAxis, ScenarioSpec, SystemKind
from moesim.study.results import Comparison, FlipCurve, SystemResult
from moesim.study.stepping import stepping_of
from moesim.study.uncertainty import Basis as Basis90

__all__ = ["headline", "limits"]

AXES = {
    FlipAxis.CONCURRENCY: "requests in flight", FlipAxis.CONTEXT: "context length", FlipAxis.N_EXPERTS: "the number of experts",
    FlipAxis.TOP_K: "experts per token", FlipAxis.LINK_BANDWIDTH: "link bandwidth",
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def headline(
    systems: Sequence[SystemResult], comparisons: Sequence[Comparison], flips: Sequence[FlipCurve], at: int
) -> tuple[str, ...]:
    """Which is better and why, what makes the MoE cheap, how it stands against dense twins, and where the verdict flips."""
    now = [c for c in comparisons if c.concurrency == at]
    lines = [f"At {at} requests in flight: {c.verdict}. Why: {c.why}." for c in now if c.basis is Basis.NAMED]
    first_moe = next((s for s in systems if s.kind is SystemKind.MOE), None)
    if first_moe is not None:
        lines.append(_moe_idea(first_moe))
    twins = [c for c in now if c.basis is not Basis.NAMED]
    if twins:
        lines.append(f"Against dense twins of {twins[0].reference}: {'; '.join(_twin(c) for c in twins)}.")
    return tuple(lines + _flips(flips, {c.other for c in now if c.basis in (Basis.NAMED, Basis.EQUAL_QUALITY)}))


def _twin(c: Comparison) -> str:
    basis = c.basis.value.replace("_", " ")
    if c.usd_ratio is None:
        return f"{basis}: {c.verdict}"
    ends = c.intervals.get("usd_ratio")
    if ends is None:
        return f"{basis} costs {c.usd_ratio:.2f}x as much per token (assumption only)"
    close = ", too close to call" if ends[0] < 1.0 < ends[1] else ""
    return f"{basis} costs {c.usd_ratio:.2f}x [{ends[0]:.2f}, {ends[1]:.2f}] as much per token{close}"


def _flips(flips: Sequence[FlipCurve], others: set[str]) -> list[str]:
    """One sentence per axis, about the systems named and the twin of equal quality."""
    lines = []
    for axis in dict.fromkeys(flip.axis for flip in flips):
        crossing = [f for f in flips if f.axis is axis and f.crossings and f.other in others]
        if crossing:
            lines.append(f"Along {AXES[axis]}: {'; '.join(f.summary for f in crossing)}.")
    return lines


def _moe_idea(system: SystemResult) -> str:
    """The idea with this system's own numbers."""
    idle = 1.0 - system.n_active_params / system.n_params
    text = (
        f"{system.name} sounds like a {system.n_params / 1e9:.0f}B model, yet {idle:.0%} of it rests for any one token"
    )
    if system.paths is not None:
        text += (
            f": its router picks {system.top_k} of {system.n_experts} experts anew in each of {len(system.paths.layers)} layers, "
            f"so a token takes one of 10{f'{system.paths.n_possible_paths_log10:.0f}'.translate(_SUPERSCRIPT)} paths"
        )
    if system.expert_load is not None and system.n_experts:
        hit = sum(system.expert_load.experts_hit) / len(system.expert_load.experts_hit) / system.n_experts
        text += (
            f"; the batch of one decode step still wakes {hit:.0%} of the experts of a layer, and memory must hold all"
        )
    return text + "."


_BASIS = {
    Basis90.RUNS: (
        "Times are what a serving stack reaches: kernel tables with factors, launches and host times fitted to serving runs. "
        "Intervals are 90% bands of runs whose model and system no fit saw, wider for time outside measured shapes, on assumed "
        "links and for routing; they hold for systems like those that were measured."
    ),
    Basis90.LENT: (
        "Times are what a serving stack reaches, with parameters fitted on other GPUs or tables of a sibling; "
        "intervals are those of unseen runs, widened for that."
    ),
    Basis90.KERNELS: (
        "Times are of operators alone; scheduling and host overheads are not included. Intervals are 90% bands of operators that "
        "no fit saw, taken as fully correlated in a pass."
    ),
    Basis90.ASSUMPTION: (
        "Efficiencies are assumptions and scheduling and host overheads are not included: results have no interval."
    ),
}  # fmt: skip


_RULES = {
    DpPrefill.LOCKSTEP: "take prompts as they come, and all wait where one prefills; tensor-parallel attention, balancing "
    "(dp_prefill: balanced) or pools that prefill apart (moesim plan) may serve more",
    DpPrefill.BALANCED: "let prompts wait until all of them have some, then all prefill",
    DpPrefill.TOGETHER: "prefill at the same time, which is a bound that no engine reaches",
}


def _rules(scenario: ScenarioSpec, calibration: CalibratedOps | None) -> list[str]:
    """When attention-DP ranks that share experts take prompts."""
    rules: dict[DpPrefill, list[str]] = {}
    for system in scenario.systems:
        if system.kind is SystemKind.MOE and system.parallel.dp_size > 1:
            rules.setdefault(stepping_of(system.dp_prefill, calibration).rule, []).append(system.name)
    return [
        f"Attention-DP ranks of {', '.join(names)} step together and {_RULES[r]} (docs/serving.md)."
        for r, names in rules.items()
    ]


def limits(
    scenario: ScenarioSpec, engine: Engine, basis: Basis90, calibration: CalibratedOps | None = None
) -> tuple[str, ...]:
    """What the run assumes and leaves out."""
    notes = [
        "Requests are in steady state with a fixed number in flight; queueing for admission is not included.",
        "Energy is an estimate from published board power, not a measurement; dollars are list prices or assumptions, and "
        "intervals take them as given.",
        "A request's prefills interleave with decodes at full-pass efficiency.",
        _BASIS[basis],
    ]
    notes[3:3] = _rules(scenario, calibration)
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
