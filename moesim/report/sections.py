"""What the report says, section by section."""

from __future__ import annotations

from moesim.report.colours import system_colour
from moesim.report.document import (
    Block,
    Bullets,
    Callout,
    Card,
    Cards,
    Document,
    Fold,
    Paragraph,
    Section,
    Table,
)
from moesim.report.figures import Figures, draw
from moesim.report.figures_ranks import what_if_table
from moesim.report.figures_waits import most_awaited
from moesim.report.host import HOST_TITLE, run_host_note
from moesim.report.seen import seen_passes
from moesim.report.tables import (
    comparison_table,
    flip_table,
    focus_concurrency,
    inputs_table,
    memory_table,
    operator_tables,
    quality_table,
    results_table,
    shown_concurrencies,
    systems_table,
)
from moesim.report.text import ORIGIN_WORDS, number, parameters, plural, power_of_ten
from moesim.specs.base import Origin
from moesim.specs.scenario import Basis, SystemKind
from moesim.study.results import RunResult, SystemResult

__all__ = ["build"]

N_LEADS = 3


def build(result: RunResult) -> Document:
    """The document of a result, figures drawn."""
    figures = draw(result)
    w = result.scenario.workload
    sections = (
        _answer(result),
        _systems(result, figures),
        _results(result, figures),
        _why(result, figures),
        _ranks(result, figures),
        _routing(result, figures),
        _flips(result, figures),
        _operators(result),
        _quality(result),
        _inputs(result),
        _limits(result),
    )
    facts = (
        ("Hardware", f"{plural(result.n_devices, 'device')} {result.device_name} ({result.hardware_name})"),
        ("Requests", f"{w.input_tokens:,} tokens in, {w.output_tokens:,} out"),
        ("Price", _price(result)),
        ("Engine", f"{result.engine}, seed {result.seed}"),
        ("Calibration", result.calibration),
    )
    banner = (
        "Everything in this scenario rests on assumption: parts of it are rumours, and no number here was confirmed."
        if result.scenario.is_assumption
        else ""
    )
    footer = f"Made by moesim {result.moesim_version} from scenario {result.scenario_name}, seed {result.seed}."
    return Document(
        result.scenario.title,
        result.scenario.description,
        facts,
        banner,
        tuple(s for s in sections if s is not None),
        footer,
    )


def _price(result: RunResult) -> str:
    return (
        "unknown" if result.price_usd_per_device_h is None else f"${result.price_usd_per_device_h:.2f} per device-hour"
    )


def _answer(result: RunResult) -> Section:
    """What it costs, which is better and why, where that flips; every sentence of the headline once."""
    at = focus_concurrency(result)
    compared = [c.verdict for c in result.comparisons if c.verdict]
    verdicts = [s for s in result.headline if s.startswith("Against ") or any(v in s for v in compared)]
    flips = [line for line in result.headline if line not in verdicts and any(f.summary in line for f in result.flips)]
    costs = [line for line in result.headline if line not in verdicts and line not in flips]
    named = [c.verdict for c in result.comparisons if c.basis is Basis.NAMED and c.concurrency == at]
    leads = ([line for line in verdicts if any(v in line for v in named)] or verdicts or costs)[:N_LEADS]
    blocks: list[Block] = [Paragraph(line.split(" Why: ")[0], lead=True) for line in leads]
    note = run_host_note(result)
    blocks += [Callout("warning", HOST_TITLE, note)] if note else []
    blocks.append(results_table(result, [at], "answer", f"What each costs with {plural(at, 'request')} in flight"))
    reasons = [_reason(result, line, at, line in leads) for line in verdicts]
    if reasons:
        blocks.append(Callout("verdict", "Which is better, and why", "", tuple(reasons)))
    blocks += _there(comparison_table(result, at, "comparisons"))
    if flips:
        blocks.append(Callout("note", "Where it flips", "", tuple(flips)))
    blocks += _there(flip_table(result))
    words = tuple(line for line in costs if line not in leads)
    if words:
        blocks.append(Callout("note", "In words", "", words))
    return Section("answer", "The answer", tuple(blocks))


def _reason(result: RunResult, line: str, concurrency: int, is_lead: bool) -> str:
    """The verdict with its reason; where the verdict stands above already, against whom and the reason."""
    match = next((c for c in result.comparisons if c.concurrency == concurrency and c.verdict in line), None)
    if match is None or not is_lead or not match.why:
        return line
    return f"Against {match.other}. Why: {match.why}."


def _there(*blocks: Block | None) -> list[Block]:
    return [b for b in blocks if b is not None]


def _systems(result: RunResult, figures: Figures) -> Section:
    return Section(
        "systems", "Three ways to spend parameters", (_kind_cards(result), figures.sketch, systems_table(result))
    )


def _kind_cards(result: RunResult) -> Cards:
    first = {kind: next((s for s in result.systems if s.kind is kind), None) for kind in SystemKind}
    index = {s.name: i for i, s in enumerate(result.systems)}
    cards = []
    for kind, title, about in (
        (SystemKind.DENSE, "Dense", _dense_text), (SystemKind.ENSEMBLE, "Ensemble", _ensemble_text),
        (SystemKind.MOE, "Mixture of Experts", _moe_text),
    ):  # fmt: skip
        system = first[kind]
        colour = None if system is None else system_colour(index[system.name])
        cards.append(Card(title, "not in this scenario" if system is None else system.name, about(system), colour))
    return Cards(tuple(cards))


def _dense_text(s: SystemResult | None) -> str:
    text = "Every token goes through every weight."
    return (
        text if s is None else f"{text} Here that is all {parameters(s.n_params)} parameters for each token; one path."
    )


def _ensemble_text(s: SystemResult | None) -> str:
    text = "Whole models side by side; a request router picks one for each request, and all of its tokens stay in it."
    end = "This is not an MoE: each model gets only its own requests, so its weights are read for fewer tokens."
    if s is None:
        return f"{text} {end}"
    return (
        f"{text} Here {s.n_members} models are stored, {parameters(s.n_params)} parameters in all, and one with "
        f"{parameters(s.n_active_params)} works for a request: {s.n_members} possible paths. {end}"
    )


def _moe_text(s: SystemResult | None) -> str:
    text = "Experts sit inside the layers. In each of them a router picks a few experts for each token, token by token."
    if s is None or s.n_experts is None or s.top_k is None:
        return text
    n_layers = len(s.paths.layers) if s.paths else len(s.expert_load.layers) if s.expert_load else None
    layers = f" in each of {n_layers} MoE layers" if n_layers else ""
    paths = (
        f", so a token takes one of {power_of_ten(s.paths.n_possible_paths_log10)} possible paths" if s.paths else ""
    )
    return (
        f"{text} Here {s.top_k} of {s.n_experts} experts{layers}{paths}. {parameters(s.n_params)} parameters are stored and "
        f"{parameters(s.n_active_params)} work for a token."
    )


def _results(result: RunResult, figures: Figures) -> Section:
    few = shown_concurrencies(result)
    everything = sorted({p.concurrency for s in result.systems for p in s.points})
    blocks: list[Block] = [results_table(result, few, "results", "Cost by requests in flight"), *figures.cost]
    blocks += _infeasible(result)
    if len(everything) > len(few):
        table = results_table(result, everything, "results-all", "Cost at every concurrency")
        blocks.append(Fold("All concurrencies", (table,)))
        ratios = comparison_table(result, None, "comparisons-all")
        if ratios is not None:
            blocks.append(Fold("All comparisons", (ratios,)))
    blocks.append(Fold("Memory in numbers", (memory_table(result),)))
    return Section("results", "What each costs", tuple(blocks))


def _infeasible(result: RunResult) -> list[Block]:
    found: list[Block] = []
    for s in result.systems:
        m = s.memory
        if m.outcome == "ok":
            continue
        gap = max(0.0, m.total_bytes - m.capacity_bytes)
        numbers = (
            f"Demand {number(m.total_bytes / 1e9)} GB per device, bound {number(m.capacity_bytes / 1e9)} GB, "
            f"gap {number(gap / 1e9)} GB."
        )
        remedies = tuple(f"Would fit: {r}." for r in m.remedies)
        title = f"{s.name}: {m.outcome} with {plural(m.at_concurrency, 'request')} in flight"
        found.append(Callout("warning", title, numbers, remedies))
    return found


def _why(result: RunResult, figures: Figures) -> Section | None:
    return Section("why", "Why: where the time goes", figures.time) if figures.time else None


def _ranks(result: RunResult, figures: Figures) -> Section | None:
    """Who waits in the simulated pass of the reference system, and what would help."""
    seen = seen_passes(result)
    blocks: list[Block] = [*figures.what_if, *_there(*(what_if_table(result, name) for name in seen))]
    tables = (most_awaited(result, name) for name in seen)
    awaited = {table.key.replace("awaited", "waits"): table for table in tables if table is not None}
    for drawn in figures.ranks:
        blocks += [drawn, *([awaited[drawn.key]] if drawn.key in awaited else [])]
    if not blocks:
        return None
    waits = any(f.key.startswith("waits") for f in figures.ranks)
    text = (
        "Every rank's pass was simulated. First what one change would bring; then "
        + ("who waits for whom, and " if waits else "")
        + "how much of the pass ports and engines are in use."
        + ("" if waits else " No rank waits for another: all have the same work.")
        + _trace_note(result)
    )
    return Section("ranks", "Who waits, and what would help", (Paragraph(text), *blocks))


def _trace_note(result: RunResult) -> str:
    """How to look at the traces, and which ranks are in them."""
    ranks = next((d.ranks for s in result.systems for _, d in s.passes if d.ranks is not None), None)
    some = ""
    if ranks is not None and ranks.trace_ranks:
        some = (
            f" Of the {ranks.n_ranks} ranks it holds {len(ranks.trace_ranks)}: homes of sampled tokens, the most waited for, "
            "those that work most and least and wait most, and ranks of the tokens' experts."
        )
    full = any(s.full_prefill is not None for s in result.systems)
    absent = next((s.no_full_prefill for s in result.systems if s.no_full_prefill is not None), None)
    return (
        f" Where trace.perfetto-trace lies beside this page{' (trace-prefill for the full prefill)' * full}, open it at "
        "ui.perfetto.dev: waits there name the rank they are for (waits_for_rank), and arrows follow sampled tokens "
        "(token) to experts and back."
        + some
        + (f" The full prefill, with prompts on all attention-DP ranks, is not shown: {absent}." if absent else "")
    )


def _routing(result: RunResult, figures: Figures) -> Section | None:
    if not figures.routing:
        return None
    text = (
        "A token's path decides which weights are read and which ranks wait. The heat map shows how unevenly a pass loads the "
        "experts; the paths show where single tokens go."
    )
    return Section("routing", "Where tokens go", (Paragraph(text), *figures.routing))


def _flips(result: RunResult, figures: Figures) -> Section | None:
    if not figures.flips:
        return None
    text = "Each line is the cost of the other system over that of the reference. Where it crosses 1 the verdict flips."
    groups: dict[tuple[str, str], list[str]] = {}
    for f in result.flips:
        sentence = f"Against {f.other}: {f.summary.rstrip('.')}."
        groups.setdefault((f.axis.value, f.reference), []).append(sentence)
    blocks: list[Block] = [Paragraph(text)]
    for figure, sentences in zip(figures.flips, groups.values(), strict=True):
        blocks += [figure, Fold("Each of them in words", (Bullets(tuple(sentences)),))]
    return Section("flips", "Where the verdict flips", tuple(blocks))


def _operators(result: RunResult) -> Section | None:
    tables = operator_tables(result)
    if not tables:
        return None
    reference = result.scenario.reference.name
    indices = {
        f"operators-{i}-{d.phase}" for i, s in enumerate(result.systems) for d in s.details if s.name == reference
    }
    shown: list[Block] = [t for t in tables if t.key in indices]
    rest: tuple[Table, ...] = tuple(t for t in tables if t.key not in indices)
    if rest:
        shown.append(Fold("Operators of the other systems", rest))
    return Section("operators", "Operators", tuple(shown))


def _quality(result: RunResult) -> Section | None:
    table = quality_table(result)
    if table is None:
        return None
    text = (
        "A cheaper model that answers worse is no bargain. What counts as equal is a choice, so here is the verdict under "
        "each rule."
    )
    return Section("quality", "If quality must be equal", (Paragraph(text), table))


def _inputs(result: RunResult) -> Section:
    there = {i.origin for i in result.inputs}
    legend = Bullets(tuple(f"{ORIGIN_WORDS[o][0]}: {ORIGIN_WORDS[o][1]}" for o in Origin if o in there))
    return Section("inputs", "Inputs", (legend, inputs_table(result)))


def _limits(result: RunResult) -> Section | None:
    notes = [*result.notes, *(f"{s.name}: {n}" for s in result.systems for n in s.notes)]
    return Section("limits", "Limits", (Bullets(tuple(notes)),)) if notes else None
