"""The report's tables. Each says how well founded its numbers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from moesim.report.colours import system_colour
from moesim.report.document import Cell, Table
from moesim.report.figures_flip import AXIS_WORDS, axis_label, axis_value
from moesim.report.text import (
    BASIS_WORDS,
    KIND_WORDS,
    ORIGIN_WORDS,
    TTFT_WORDS,
    bytes_text,
    group_label,
    multiple,
    number,
    parameters,
    percent,
    plural,
    time_text,
)
from moesim.specs.base import Origin, weakest
from moesim.study.results import Comparison, FlipCurve, InputOrigin, OperatorRow, Point, RunResult, SystemResult

__all__ = [
    "comparison_table",
    "flip_table",
    "focus_concurrency",
    "inputs_table",
    "memory_table",
    "operator_tables",
    "peak_of",
    "point_of",
    "quality_table",
    "results_table",
    "shown_concurrencies",
    "systems_table",
]

N_OPERATORS = 8


def focus_concurrency(result: RunResult) -> int:
    """The concurrency that the answer speaks of: that of the passes in detail, else the largest at which most systems run."""
    explained = Counter(d.concurrency for s in result.systems for d in s.details)
    if explained:
        return explained.most_common(1)[0][0]
    n_ok = Counter(p.concurrency for s in result.systems for p in s.points if p.outcome == "ok")
    if not n_ok:
        return max(result.scenario.workload.concurrency)
    return max(c for c, n in n_ok.items() if n == max(n_ok.values()))


def shown_concurrencies(result: RunResult) -> list[int]:
    """Smallest, focus and largest."""
    there = sorted({p.concurrency for s in result.systems for p in s.points})
    return [c for c in there if c in (there[0], focus_concurrency(result), there[-1])]


def point_of(system: SystemResult, concurrency: int) -> Point | None:
    """The system's point at a concurrency."""
    return next((p for p in system.points if p.concurrency == concurrency), None)


def name_cell(result: RunResult, name: str) -> Cell:
    """A system's name with its colour."""
    index = next((i for i, s in enumerate(result.systems) if s.name == name), None)
    return Cell(name, colour=None if index is None else system_colour(index))


#: Heading, result, its factor, and which end is best.
_COSTS = (
    ("TTFT (ms)", "ttft_s", 1e3, min),
    ("TPOT (ms)", "tpot_s", 1e3, min),
    ("Tokens/s, all", "output_tokens_per_s", 1.0, max),
    ("Tokens/s per device", "output_tokens_per_s_per_device", 1.0, max),
    ("J per token", "energy_j_per_output_token", 1.0, min),
    ("$ per M tokens", "usd_per_million_output_tokens", 1.0, min),
)


def results_table(result: RunResult, concurrencies: Sequence[int], key: str, caption: str) -> Table:
    """What each system costs; the best of each column and concurrency is marked."""
    several = len(concurrencies) > 1
    headings = (
        *(("In flight",) if several else ()),
        "System",
        *(c[0] for c in _COSTS),
        "Weights (GB per device)",
        "Weakest input",
    )
    rows = []
    for concurrency in concurrencies:
        there = [(s, p) for s in result.systems if (p := point_of(s, concurrency)) is not None]
        best = _best([p for _, p in there])
        for system, point in there:
            first = (Cell(f"{concurrency:,}"),) if several else ()
            rows.append(first + _cost_row(result, system, point, best))
    numeric = (*((True,) if several else ()), False, *(True for _ in _COSTS), True, False)
    points = [p for c in concurrencies for s in result.systems if (p := point_of(s, c)) is not None]
    return Table(
        key, caption, headings, numeric, tuple(rows), _times_note(result, points),
        f"Below each number its 90% interval. {TTFT_WORDS} TPOT is the mean gap between output tokens. Dollars and energy "
        "are for output tokens, prefill included. Bold is best, whatever the intervals.",
    )  # fmt: skip


def systems_table(result: RunResult) -> Table:
    """What each system is."""
    rows = []
    for s in result.systems:
        experts = f"{s.top_k} of {s.n_experts}" if s.n_experts else "–"
        dtypes = ", ".join(sorted(set(s.weight_dtypes.values())))
        size = bytes_text(sum(s.memory.weights_bytes.values()))
        rows.append((
            name_cell(result, s.name), Cell(KIND_WORDS[s.kind.value]), Cell(s.hf_id or s.model),
            Cell(parameters(s.n_params)), Cell(parameters(s.n_active_params)), Cell(experts),
            Cell(s.parallel if s.n_instances == 1 else f"{s.parallel}, {s.n_instances} copies"), Cell(dtypes), Cell(size),
        ))  # fmt: skip
    headings = (
        "System", "Kind", "Model", "Parameters", "Active per token", "Experts", "Split", "Weights in", "Per device",
    )  # fmt: skip
    numeric = (False, False, False, True, True, True, False, False, True)
    note = "Quoted model configurations; dense twins are made for the comparison and exist nowhere else."
    return Table("systems", "The systems", headings, numeric, tuple(rows), note)


def comparison_table(result: RunResult, concurrency: int | None, key: str) -> Table | None:
    """Ratios of the reference against every other system, at one concurrency or at all."""
    chosen = [c for c in result.comparisons if concurrency in (None, c.concurrency)]
    if not chosen:
        return None
    several = concurrency is None
    headings = (*(("In flight",) if several else ()), "Other", "Held equal", "TTFT", "TPOT", "Throughput", "Energy", "Dollars",
                "Weights")  # fmt: skip
    numeric = (*((True,) if several else ()), False, False, *(True,) * 6)
    rows = []
    for c in sorted(chosen, key=lambda c: c.concurrency):
        first = (Cell(f"{c.concurrency:,}"),) if several else ()
        costs, memory = _ratios(c)[:-1], _ratios(c)[-1]
        ratios = tuple(_ratio_cell(r, c.intervals.get(name)) for r, name in zip(costs, _RATIO_NAMES, strict=True))
        if all(r is None for r in costs):
            ratios = (Cell(c.verdict, span=len(costs)),)
        held = Cell(BASIS_WORDS.get(c.basis.value, c.basis.value))
        rows.append((*first, name_cell(result, c.other), held, *ratios, _ratio_cell(memory)))
    reference = chosen[0].reference
    points = [p for s in result.systems for p in s.points if concurrency in (None, p.concurrency)]
    return Table(
        key, f"{reference} against the others", headings, numeric, tuple(rows), _times_note(result, points),
        f"How many times better {reference} is, with the 90% interval; below 1 the other is better. Bold where the whole "
        "interval is above 1.",
    )  # fmt: skip


def flip_table(result: RunResult) -> Table | None:
    """Where the cheaper system changes, per axis and other system."""
    if not result.flips:
        return None
    axes = list(dict.fromkeys(f.axis.value for f in result.flips))
    others = list(dict.fromkeys((f.reference, f.other) for f in result.flips))
    curves = {(f.reference, f.other, f.axis.value): f for f in result.flips}
    rows = tuple(
        (name_cell(result, other), *(_flip_cell(curves.get((reference, other, axis))) for axis in axes))
        for reference, other in others
    )
    units = {f.axis.value: f.unit for f in result.flips}
    headings = ("Against", *(axis_label(AXIS_WORDS.get(a, a), units[a]) for a in axes))
    reference = others[0][0]
    return Table(
        "flip-map", f"Where the cheaper of {reference} and the other changes", headings, (False,) * len(headings), rows,
        f"Closed forms under expected loads. {input_counts(result.inputs)}",
        "Numbers are values of the axis at which the verdict in dollars per token flips; otherwise who is cheaper throughout.",
    )  # fmt: skip


def memory_table(result: RunResult) -> Table:
    """Memory by purpose, and what is left for the cache."""
    rows = []
    for s in result.systems:
        m = s.memory
        parts = (sum(m.weights_bytes.values()), m.kv_cache_bytes, m.activation_bytes, m.comm_buffer_bytes,
                 m.runtime_reserve_bytes, m.total_bytes, m.capacity_bytes)  # fmt: skip
        rows.append((
            name_cell(result, s.name), Cell(f"{m.at_concurrency:,}"), *(Cell(number(b / 1e9)) for b in parts),
            Cell(bytes_text(m.kv_bytes_per_token)), Cell(f"{m.max_sequences:,}"), Cell(m.outcome),
        ))  # fmt: skip
    headings = (
        "System", "In flight", "Weights (GB)", "KV cache (GB)", "Activations (GB)", "Buffers (GB)", "Reserve (GB)", "Sum (GB)",
        "Capacity (GB)", "KV per token", "Requests that fit", "Outcome",
    )  # fmt: skip
    return Table(
        "memory", "Memory of the fullest device", headings, (False, *(True,) * 10, False), tuple(rows),
        "Counted from quoted configurations and a quoted capacity; the runtime reserve and activation buffers are assumed.",
    )  # fmt: skip


def operator_tables(result: RunResult) -> list[Table]:
    """The operators that take longest, per system and phase."""
    tables = []
    for index, system in enumerate(result.systems):
        for detail in system.details:
            rows = sorted(detail.operators, key=lambda r: -r.time_s)[:N_OPERATORS]
            origins = weakest(*(r.origin for r in detail.operators)) if detail.operators else Origin.ASSUMPTION
            caption = (
                f"{system.name}, {detail.phase}: {time_text(detail.time_s)} for {plural(detail.n_tokens, 'token')}, "
                f"MFU {percent(detail.mfu)}, MBU {percent(detail.mbu)}"
            )
            extrapolated = " † outside the range of the calibration." if any(r.is_extrapolated for r in rows) else ""
            tables.append(Table(
                f"operators-{index}-{detail.phase}", caption,
                ("Operator", "Part", "Bound by", "Time (ms)", "Share", "GFLOP run", "GB moved", "Of peak", "±", "Efficiency"),
                (False, False, False, True, True, True, True, True, True, False),
                tuple(_operator_row(result, r, detail.time_s) for r in rows),
                f"Weakest input: {ORIGIN_WORDS[origins][0]}.{extrapolated}", _RUN if system.n_experts else "",
            ))  # fmt: skip
    return tables


_RUN = (
    'GFLOP run, and MFU from it: what kernels execute, experts\' rows padded to their tiles. MFU and "of peak" are of the '
    "arithmetic that each operator runs in."
)


_RULE_WORDS = {"geometric_mean": "geometric mean of active and total", "scaling_law": "scaling law of loss"}


def quality_table(result: RunResult) -> Table | None:
    """The verdict under each rule for equal quality."""
    if not result.quality:
        return None
    rows = tuple(
        (
            Cell(_RULE_WORDS.get(q.rule, q.rule)),
            Cell(parameters(q.dense_params)),
            _ratio_cell(q.usd_ratio),
            _ratio_cell(q.tpot_ratio),
            Cell(q.verdict),
        )
        for q in result.quality
    )
    headings = ("Rule", "Dense parameters said to be as good", "Dollars", "TPOT", "Verdict")
    return Table(
        "quality", "Which dense model is as good?", headings, (False, True, True, True, False), rows,
        "Every rule is an assumption or a published law outside its own data; times as in the results.",
        "Ratios are dense over MoE: above 1 the MoE is better.",
    )  # fmt: skip


def inputs_table(result: RunResult) -> Table:
    """Every input with its origin, weakest first."""
    order = list(Origin)
    rows = sorted(result.inputs, key=lambda i: (-order.index(i.origin), i.what))
    return Table(
        "inputs", "Inputs and where they come from", ("Input", "Value", "Origin", "Source"), (False, False, False, False),
        tuple((Cell(i.what), Cell(i.value), _badge(i.origin), Cell(i.source)) for i in rows), input_counts(result.inputs),
    )  # fmt: skip


def input_counts(inputs: Sequence[InputOrigin]) -> str:
    """How many inputs there are of each origin."""
    counts = Counter("quoted" if "quoted" in ORIGIN_WORDS[i.origin][0] else ORIGIN_WORDS[i.origin][0] for i in inputs)
    return "Inputs: " + ", ".join(f"{counts.get(w, 0)} {w}" for w in ("measured", "fitted", "quoted", "assumed")) + "."


def _cost_row(result: RunResult, system: SystemResult, point: Point, best: Sequence[float | None]) -> tuple[Cell, ...]:
    name = name_cell(result, system.name)
    if point.outcome != "ok":
        return (name, Cell(f"{point.outcome}: {point.reason or ''}".rstrip(": "), span=len(_COSTS) + 2))
    costs = []
    for (_, field, factor, _), b in zip(_COSTS, best, strict=True):
        value = _scaled(getattr(point, field), factor)
        costs.append(
            Cell(
                number(value), best=value is not None and value == b, ends=ends_text(point.intervals.get(field), factor)
            )
        )
    weights = Cell(number(sum(system.memory.weights_bytes.values()) / 1e9))
    return (name, *costs, weights, _error_cell(point))


def _flip_cell(curve: FlipCurve | None) -> Cell:
    if curve is None:
        return Cell("–")
    if curve.crossings:
        unit = curve.unit if curve.unit == "B/s" else ""
        return Cell("flips at " + " and ".join(axis_value(x, unit) for x in curve.crossings), best=True)
    known = [r for r in curve.usd_ratio if r is not None]
    if not known:
        return Cell("not both run")
    if min(known) >= 1.0:
        return Cell(f"{curve.reference} throughout")
    return Cell("other throughout" if max(known) < 1.0 else "too close to call", tip=curve.other)


def _best(points: Sequence[Point]) -> list[float | None]:
    found: list[float | None] = []
    for _, field, factor, pick in _COSTS:
        values = [v for p in points if (v := _scaled(getattr(p, field), factor)) is not None]
        found.append(pick(values) if len(values) > 1 else None)
    return found


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


_RATIO_NAMES = ("ttft_ratio", "tpot_ratio", "throughput_ratio", "energy_ratio", "usd_ratio")


def _ratios(c: Comparison) -> tuple[float | None, ...]:
    return c.ttft_ratio, c.tpot_ratio, c.throughput_ratio, c.energy_ratio, c.usd_ratio, c.memory_ratio


def ends_text(ends: tuple[float, float] | None, factor: float = 1.0) -> str | None:
    """An interval as a short text.

    >>> ends_text((0.0101, 0.0152), 1e3)
    '[10.1, 15.2]'
    """
    return None if ends is None else f"[{number(ends[0] * factor)}, {number(ends[1] * factor)}]"


def _ratio_cell(ratio: float | None, ends: tuple[float, float] | None = None) -> Cell:
    """Bold where the reference is better whatever the interval."""
    sure = ratio is not None and (ends[0] if ends is not None else ratio) > 1
    return Cell(multiple(ratio), best=sure, ends=ends_text(ends))


def _error_cell(point: Point) -> Cell:
    if point.error_frac is None:
        return Cell("assumption only", tip="no interval: nothing was measured that could give one", badge=point.origin)
    return Cell("", tip=f"90% intervals from {point.interval_basis}", badge=point.origin)


def _badge(origin: Origin) -> Cell:
    return Cell("", badge=origin)


def _operator_row(result: RunResult, r: OperatorRow, pass_s: float) -> tuple[Cell, ...]:
    return (
        Cell(r.name.replace("_", " ") + (" †" if r.is_extrapolated else "")), Cell(group_label(r.group)), Cell(r.bound),
        Cell(number(r.time_s * 1e3)), Cell(percent(r.time_s / pass_s)), Cell(number(r.flops / 1e9)),
        Cell(number(r.moved_bytes / 1e9)), Cell(_of_peak(result, r)),
        Cell("none" if r.error_frac is None else f"±{r.error_frac:.0%}" if r.error_frac else "–"), _badge(r.origin),
    )  # fmt: skip


def peak_of(result: RunResult, r: OperatorRow) -> tuple[str, float]:
    """Name and flop/s of the peak of the arithmetic that an operator runs in; results of old do not say which."""
    name = r.arithmetic or ("bf16" if "bf16" in result.peak_flop_per_s else "fp32")
    return name, result.peak_flop_per_s.get(name, max(result.peak_flop_per_s.values()))


def _of_peak(result: RunResult, r: OperatorRow) -> str:
    if r.time_s <= 0 or r.bound in ("link", "latency"):
        return "–"
    if r.bound == "memory":
        return f"{r.moved_bytes / r.time_s / result.memory_bytes_per_s:.0%} of bandwidth"
    name, peak = peak_of(result, r)
    return f"{r.flops / r.time_s / peak:.0%} of {name}"


def _times_note(result: RunResult, points: Sequence[Point]) -> str:
    ok = [p for p in points if p.outcome == "ok"]
    if not ok:
        return input_counts(result.inputs)
    origin = weakest(*(p.origin for p in ok))
    based = sorted({p.interval_basis for p in ok if p.error_frac is not None})
    if not based:
        interval = "assumption only, no interval"
    else:
        missing = "" if all(p.error_frac is not None for p in ok) else "; rows without one are assumption only"
        interval = f"90% intervals from {' and '.join(based)}{missing}"
    return f"Weakest input: {ORIGIN_WORDS[origin][0]}; {interval}. {input_counts(result.inputs)}"
