"""The page of a plan: what to run, what it costs against what else was searched, what was simulated, and why others are out."""

from __future__ import annotations

from moesim.report.document import Block, Bullets, Callout, Cell, Code, Document, Paragraph, Section, Table
from moesim.report.host import HOST_TITLE, host_note
from moesim.report.page import TABLE, render_explorer
from moesim.report.plan_figures import first_token, throughput
from moesim.report.plan_rows import plan_cases, plan_rows
from moesim.report.text import multiple, number, percent, plural, time_text
from moesim.study.plan import Confirmation, HardwarePlan, NearMiss, PlanPoint, PlanResult, PlanSpec

__all__ = ["build_plan", "plan_name", "render_plan"]


def plan_name(result: PlanResult) -> str:
    """A name for the plan's files."""
    return "plan-" + "".join(c if c.isalnum() or c in "-._" else "-" for c in result.spec.model).strip("-.")


def build_plan(result: PlanResult) -> Document:
    """The report as values."""
    spec, rows = result.spec, plan_rows(result)
    figures = tuple(f for f in (throughput(result, rows), first_token(result, rows)) if f is not None)
    sections = [Section("answer", "The answer", _answer(result))]
    commands = _commands(result)
    if figures:
        sections.append(Section("tradeoff", "Throughput, latency and price", figures))
    sections.append(Section(TABLE, "Table of deployments", ()))
    if commands:
        sections.append(Section("commands", "How to start it", commands))
    sections.append(Section("simulated", "In the serving simulation", _simulated(result)))
    sections.append(Section("refused", "Why others are not in the plan", _refused(result)))
    sections.append(Section("assumptions", "What this rests on", (Bullets(_assumptions(result)),)))
    title = f"{spec.model} on up to {plural(spec.n_devices, 'device')}: which split, which batch, which hardware"
    return Document(
        title, _subtitle(spec), _facts(result), "", tuple(sections), f"moesim {result.moesim_version}, seed {spec.seed}"
    )


def render_plan(result: PlanResult, document: Document) -> str:
    """HTML text of the whole report."""
    return render_explorer(document, plan_cases(result, plan_rows(result), plan_name(result)), "moesim plan")


def _subtitle(spec: PlanSpec) -> str:
    rate = "" if spec.rate_per_s is None else f" {spec.rate_per_s:g} requests per second must be served."
    return f"{spec.input_tokens:,} tokens in and {spec.output_tokens:,} out per request.{rate}"


def _facts(result: PlanResult) -> tuple[tuple[str, str], ...]:
    spec = result.spec
    goals = [
        f"{name} {1e3 * value:g} ms"
        for name, value in (("TTFT", spec.ttft_s), ("TPOT", spec.tpot_s))
        if value is not None
    ]
    n_options, n_splits = sum(p.n_options for p in result.plans), sum(p.n_splits for p in result.plans)
    return (
        ("Hardware", ", ".join(p.hardware for p in result.plans)), ("Goals (means)", ", ".join(goals) or "none"),
        ("Searched", f"{n_options:,} deployments of {plural(n_splits, 'split')}"),
        ("Calibration", "; ".join(dict.fromkeys(p.calibration for p in result.plans))),
    )  # fmt: skip


def _answer(result: PlanResult) -> tuple[Block, ...]:
    """The choice between hardware first, where there is one; how the simulation ranks is told with it below."""
    rankings = {f"{p.hardware}: {p.ranking}" for p in result.plans if p.ranking}
    told = [s for s in result.sentences if s not in rankings]
    if len(result.plans) > 1 and result.cheapest is not None:
        told = [told[-1], *told[:-1]]
    lead, *rest = (
        f"{sentence[:1].upper()}{sentence[1:]}." if i == 0 else f"{sentence}." for i, sentence in enumerate(told)
    )
    blocks: list[Block] = [Paragraph(lead, lead=True)]
    refuted = [p.hardware for p in result.plans if p.is_met is False]
    if result.outcome != "ok":
        blocks = [Callout("warning", result.outcome.capitalize(), lead)]
    elif refuted:
        where = f" on {', '.join(refuted)}" if len(result.plans) > 1 else ""
        blocks = [Callout("warning", f"No simulated plan meets the goals{where}", lead)]
    if rest:
        blocks.append(Bullets(tuple(rest)))
    assumed = _without_stack(result)
    if assumed:
        blocks.append(Callout("warning", HOST_TITLE, host_note(["assumption only"], ", ".join(assumed))))
    chosen = [(p, kind, point) for p in result.plans for kind, point in p.shown if kind != "front"]
    if chosen:
        blocks.append(_chosen(result, chosen))
    return tuple(blocks)


def _without_stack(result: PlanResult) -> list[str]:
    """Hardware whose times leave the host out."""
    return [p.hardware for p in result.plans if any(point.error_frac is None for _, point in p.shown)]


_HEADINGS = (
    "", "Split", "Devices", "Batch", "TTFT (ms)", "TPOT (ms)", "Tokens/s per device", "$ per M tokens", "Requests/s", "Simulated",
    "Mostly", "Batch ends at",
)  # fmt: skip


def _chosen(result: PlanResult, chosen: list[tuple[HardwarePlan, str, PlanPoint]]) -> Table:
    rows = []
    for plan, kind, p in chosen:
        main, ttft, tpot = p.main, p.ttft_s * 1e3, p.tpot_s * 1e3
        words = kind.removesuffix(", front").replace("least", "fewest devices")
        share = f"{main.bottleneck.group}, {main.bottleneck.bound}, {main.bottleneck.share_frac:.0%}"
        rows.append((
            Cell(f"{words} on {plan.hardware}"), Cell(p.label), Cell(f"{p.n_devices}"), Cell(f"{main.batch}"),
            Cell(number(ttft), ends=_ends(ttft, p.ttft_error_frac)), Cell(number(tpot), ends=_ends(tpot, p.error_frac)),
            Cell(number(p.output_tokens_per_s_per_device)),
            Cell(number(p.usd_per_million_output_tokens)), Cell(number(p.requests_per_s)),
            Cell(_in_short(plan.simulated(p))), Cell(share), Cell(p.limited_by),
        ))  # fmt: skip
    assumed = any(p.error_frac is None for _, _, p in chosen)
    note = (
        "All but the column Simulated by the closed form. Below a time its 90% interval. TTFT holds queueing"
        + (" and the transfer of the cache" if _has_pools(chosen) else "")
        + ". TPOT of an instance that prefills too holds the prefills of other requests between two tokens. Batch: requests at "
        "most on one decoding instance."
    )  # fmt: skip
    basis = "; ".join(dict.fromkeys(f"{p.hardware}: costs from {p.calibration}" for p in result.plans))
    numeric = (False, False, *(True,) * 7, False, False, False)
    return Table(
        "chosen", "What to run", _HEADINGS, numeric, tuple(rows),
        f"{basis}{'; without an interval: assumption only, host time not counted' if assumed else ''}.", note,
    )  # fmt: skip


def _in_short(c: Confirmation | None) -> str:
    """What the simulation gives of a deployment in place of the closed form."""
    if c is None or c.output_tokens_per_s_per_device is None or c.ttft_s is None or c.tpot_s is None:
        return "no"
    met = "goals met" if c.meets_goals else "goals missed"
    times = f"TTFT {time_text(c.ttft_s)}, TPOT {time_text(c.tpot_s)}"
    return f"{number(c.output_tokens_per_s_per_device)} tokens/s per device, {times}: {met}"


def _has_pools(chosen: list[tuple[HardwarePlan, str, PlanPoint]]) -> bool:
    return any(len(p.pools) > 1 for _, _, p in chosen)


def _ends(value: float, error: float | None) -> str | None:
    return None if error is None else f"[{number(value * max(0.0, 1.0 - error))}, {number(value * (1.0 + error))}]"


def _commands(result: PlanResult) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for plan in result.plans:
        for kind, point in plan.shown:
            if kind == "front":
                continue
            for engine, flags in (("vLLM", point.vllm), ("SGLang", point.sglang)):
                note = () if flags.note is None else (f"# {flags.note}",)
                if flags.commands or note:
                    blocks.append(Code(f"{plan.hardware}, {point.label}: {engine}", (*note, *flags.commands)))
    return tuple(blocks)


def _simulated(result: PlanResult) -> tuple[Block, ...]:
    found = [(p, c) for p in result.plans for c in p.confirmations]
    if not found:
        return (Paragraph("Nothing was simulated: no deployment meets the goals, or --confirm was 0."),)
    load = (
        "a closed loop that keeps the planned requests in flight"
        if result.spec.rate_per_s is None
        else "Poisson arrivals at the rate that is asked for"
    )
    text = (
        f"The best few were simulated request by request with the same costs: {load}, lengths up to a fifth about the mean, "
        "continuous batching. What differs from the closed form is queueing, chunks and the scheduler."
    )
    lighter = "" if result.spec.rate_per_s is None else ", whose batches are full while the asked rate may leave room"
    rows = tuple(_confirmed(p, c) for p, c in found)
    headings = ("Split", "Load", "Tokens/s per device", "TTFT", "TPOT", "Good requests", "Goals")
    table = Table(
        "simulated-table", "Simulated, and over the closed form", headings, (False, False, True, True, True, True, False), rows,
        "The same costs as the closed form's; an error of theirs is in both.",
        f"In brackets: simulated over closed form{lighter}. Good requests meet both goals each for itself; the goals are for "
        "means.",
    )  # fmt: skip
    ranking = tuple(f"{p.hardware}: {p.ranking}." for p in result.plans if p.ranking)
    return (Paragraph(text), table, *((Bullets(ranking),) if ranking else ()))


def _confirmed(plan: HardwarePlan, c: Confirmation) -> tuple[Cell, ...]:
    name = Cell(f"{c.split} at {c.batch} on {plan.hardware}")
    if c.output_tokens_per_s_per_device is None:
        return (name, Cell(c.note or "not simulated", span=6))
    met = "met" if c.meets_goals else "missed"
    return (
        name, Cell(c.load), Cell(f"{number(c.output_tokens_per_s_per_device)} ({multiple(c.throughput_ratio)})"),
        _timed(c.ttft_s, c.ttft_ratio), _timed(c.tpot_s, c.tpot_ratio), Cell(percent(c.good_frac)),
        Cell(met if c.note is None else f"{met}: {c.note}"),
    )  # fmt: skip


def _timed(seconds: float | None, ratio: float | None) -> Cell:
    return Cell("–" if seconds is None else f"{time_text(seconds)} ({multiple(ratio)})")


def _refused(result: PlanResult) -> tuple[Block, ...]:
    counts = []
    for p in result.plans:
        large = f"; {plural(p.n_too_large, 'other lacks', 'others lack')} room for even one sequence per rank"
        fits = f"{plural(p.n_splits, 'split fits', 'splits fit')} into memory"
        counts.append(f"{p.hardware}: {fits}{large if p.n_too_large else ', all that the model divides by'}.")
    misses = [m for p in result.plans for m in p.near_misses]
    if not misses:
        return (Bullets(tuple(counts)), Paragraph("Every split that fits meets the goals at some batch."))
    table = Table(
        "misses", "Nearest misses", ("Split", "Devices", "What it misses", "It has or needs", "Limit", "Over by"),
        (False, True, False, True, True, True), tuple(_miss(m) for m in misses),
        "Memory is counted; times are the search's closed forms.",
        "Of splits that meet the goals at no batch those that come nearest, and those that lack the least memory. In separate "
        "pools the one that misses is counted.",
    )  # fmt: skip
    return (Bullets(tuple(counts)), table)


def _miss(m: NearMiss) -> tuple[Cell, ...]:
    is_memory = m.missed == "memory"
    value, limit = (
        (f"{number(m.value / 1e9)} GB per rank", f"{number(m.limit / 1e9)} GB")
        if is_memory
        else (time_text(m.value), time_text(m.limit))
    )
    what = "memory" if is_memory else m.missed.upper()
    cells = (f"{m.split} on {m.hardware}", f"{m.n_devices}", what, value, limit, f"{m.by_frac:.0%}")
    return tuple(Cell(text) for text in cells)


def _assumptions(result: PlanResult) -> tuple[str, ...]:
    spec = result.spec
    notes = [
        "Goals are means per request. TTFT: a request's own prefill and the wait for its turn (renewal and M/D/1 formulas). "
        "TPOT in place: a decode pass and its share of other requests' prefills; in separate pools the decode pass alone.",
        f"At most {spec.max_batch:,} sequences and {spec.max_pass_tokens:,} new tokens of a pass on each attention-DP rank; "
        f"every request has {spec.input_tokens:,} tokens in and {spec.output_tokens:,} out, none shared with another.",
        f"{spec.headroom_frac:.0%} of the capacity is kept free for bursts where devices are counted for a rate and in prefill "
        "pools (assumption).",
        "Experts are loaded as "
        + ("expected under uniform routing." if spec.routing is None else f"expected under {spec.routing.family.value} routing."),
        "The search interpolates between batches; best, fewest devices and front are costed again pass by pass, and a batch is "
        "lowered where the goals then fail.",
    ]  # fmt: skip
    prices = [
        f"{p.hardware} ${p.price_usd_per_device_h:.2f}" for p in result.plans if p.price_usd_per_device_h is not None
    ]
    notes.append(
        f"Dollars per device-hour are list prices or assumptions: {', '.join(prices)}."
        if prices
        else "No price is known."
    )
    points = [point for p in result.plans for _, point in p.shown]
    outside = max((point.extrapolated_frac for point in points), default=0.0)
    if outside > 0.005:
        notes.append(f"Up to {outside:.0%} of a deployment's time lies outside what was measured.")
    return tuple(notes)
