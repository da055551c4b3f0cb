"""The page of a sweep: its document, the cases as data beside it, and one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.report.cases import Case, Cases, Column, marked_cases
from moesim.report.document import Bullets, Callout, Document, Paragraph, Section
from moesim.report.host import HOST_TITLE, host_note
from moesim.report.page import TABLE, render_explorer
from moesim.report.sweep_figures import bars, heat, parallel, pareto
from moesim.report.text import TTFT_WORDS
from moesim.specs.sweep import Question
from moesim.study.sweep.findings import best_case, effects, front, swings
from moesim.study.sweep.law_words import law_notes
from moesim.study.sweep.quality_words import quality_note
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.sentences import conclusions
from moesim.study.sweep.words import COLUMN_WORDS, column_words, path_words, value_text

__all__ = ["MOST_ROWS", "build_sweep", "render_sweep", "rows_of"]

MOST_ROWS = 5000
_RESULTS = (
    "usd_per_million_output_tokens", "output_tokens_per_s_per_device", "output_tokens_per_s_per_user", "tpot_s", "ttft_s",
    "usd_ratio", "tpot_ratio", "loss", "train_tokens", "n_params", "n_active_params", "n_experts", "top_k", "expert_width",
    "concurrency", "memory_bytes", "exposed_comm_frac", "rank_imbalance_ratio", "energy_j_per_output_token", "error_frac",
    "ttft_p99_s", "tpot_p99_s", "goodput_requests_per_s", "good_frac",
)  # fmt: skip


_SAME = {
    "model.n_routed_experts": "n_experts", "model.num_experts_per_tok": "top_k", "model.moe_intermediate_size": "expert_width",
    "workload.concurrency": "concurrency",
}  # fmt: skip


def build_sweep(result: SweepResult) -> tuple[Document, tuple[str, str, str]]:
    """The report as values, and the three sentences it ends with."""
    found = effects(result)
    best = best_case(result)
    moved = [] if best is None else swings(result, best)
    sentences = conclusions(result, found, moved)
    figures = [f for f in (heat(result), pareto(result), parallel(result)) if f is not None]
    bar = bars(found, moved, result.spec.report.objective)
    sections = [Section("answer", "The answer", _answer(result, best, sentences[0]))]
    if figures:
        sections.append(Section("cases", "The cases", (*figures[:2],)))
        if figures[2:]:
            sections.append(Section("settings", "All settings at once", tuple(figures[2:])))
    sections.append(Section(TABLE, "Table of cases", ()))
    sections.append(Section("notes", "What this rests on", (Bullets(_notes(result)),)))
    if bar is not None:
        sections.append(Section("sensitivity", "What moves the answer", (bar,)))
    sections.append(
        Section("conclusions", "What to do", (Callout("verdict", "Three things to take along", "", sentences),))
    )
    banner = "This sweep rests on assumptions throughout." if result.spec.is_assumption else ""
    return Document(
        result.spec.title, result.spec.description, _facts(result), banner, tuple(sections), _footer(result)
    ), sentences


def _answer(result: SweepResult, best: int | None, first: str) -> tuple[Paragraph | Callout | Bullets, ...]:
    """What comes out in a sentence; where cases are not ranked by one number, the first of the closing three."""
    text = ""
    if best is not None:
        settings = ", ".join(f"{path_words(p)} {value_text(v)}" for p, v in result.configuration(best).items())
        name = result.spec.report.objective
        value = COLUMN_WORDS.get(name, (name, "", 1.0))[2] * float(result.number(name)[best])
        which = "Largest" if result.spec.report.maximise else "Smallest"
        if result.spec.report.question is not Question.BREAK_EVEN and result.condition is None:
            text = f"{which} {column_words(name)}: {_text(value)}, at {settings}."
    counts = [f"{n:,} {word}" for word, n in result.outcomes().items()]
    cases = f"{result.n_cases:,} cases: {', '.join(counts)}."
    note = quality_note(result)
    caveat = (Callout("note", "Cheapest is not best", note),) if note else ()
    lead = text or first.removesuffix(note).rstrip()
    return Paragraph(lead, lead=True), *caveat, *_host(result), Bullets((cases, *_reasons(result)))


def _host(result: SweepResult) -> tuple[Callout, ...]:
    """A warning where some of the cases that run leave the host out."""
    bases = result.columns.get("interval_basis")
    if bases is None:
        return ()
    out = [i for i in np.flatnonzero(result.ok) if host_note([str(bases[i])], "")]
    if not out:
        return ()
    swept = [c for c in result.settings if c.path == "hardware" and len(c.values) > 1]
    names = dict.fromkeys(str(swept[0].of(int(i))) for i in out) if swept else {}
    where = ", ".join(names) or "this hardware"
    count = f"{len(out):,} of {int(result.ok.sum()):,} cases that run"
    return (Callout("warning", f"{HOST_TITLE} in {count}", host_note(["assumption only"], where)),)


def _reasons(result: SweepResult) -> list[str]:
    """The first reason of every outcome but ok."""
    seen: dict[str, str] = {}
    for outcome, reason in zip(result.columns["outcome"], result.columns.get("reason", ()), strict=False):
        if outcome not in ("ok", None) and reason:
            seen.setdefault(str(outcome), str(reason))
    return [f"{outcome}, for example: {reason}." for outcome, reason in seen.items()]


def _facts(result: SweepResult) -> tuple[tuple[str, str], ...]:
    base = result.layout.base.title
    return (
        ("Base", base), ("Engine", result.engine), ("Cases", f"{result.n_cases:,}"),
        ("Axes", ", ".join(f"{path_words(c.path)} ({len(c.values)})" for c in result.settings)),
        ("Held equal", ", ".join(_constraint(c) for c in result.spec.constraints) or "nothing"),
    )  # fmt: skip


def _constraint(c: Any) -> str:
    words = c.kind.value.removeprefix("fixed_").replace("_", " ")
    by = (
        c.solved_by.value.replace("_", " ")
        .replace("moe intermediate size", "expert width")
        .replace("n routed experts", "experts")
    )
    return f"{words} ({by} gives way)"


def _notes(result: SweepResult) -> tuple[str, ...]:
    notes = [
        f"A fixed number of requests is in flight. {TTFT_WORDS}",
        "Dollars are list prices or assumptions of the hardware files; energy is an estimate from board power.",
        "Constraints are met by whole multiples, so parameters differ between cases by up to each constraint's tolerance.",
    ]
    origins = sorted({str(o) for o in result.columns.get("origin", ()) if o is not None and o == o})
    if origins:
        notes.append(f"The weakest origin among the inputs of the times: {', '.join(origins)}.")
    if result.spec.law is not None:
        notes += law_notes(result)
    if result.engine == "analytic":
        notes.append(
            "Times are closed forms under expected expert loads; drawn loads and contention are left to the flow engine."
        )
    return tuple(notes)


def _footer(result: SweepResult) -> str:
    return f"moesim {result.moesim_version}, sweep {result.name}, seed {result.spec.seed}"


def rows_of(result: SweepResult) -> list[int]:
    """Cases that the page holds: all, or those of the front and the best with evenly spaced ones of the rest."""
    if result.n_cases <= MOST_ROWS:
        return list(range(result.n_cases))
    keep = set(np.linspace(0, result.n_cases - 1, MOST_ROWS // 2).astype(int).tolist())
    objective = result.objective()
    keep |= set(
        np.argsort(np.where(np.isfinite(objective), objective, np.inf), kind="stable")[: MOST_ROWS // 4].tolist()
    )
    names = [n.removeprefix("-") for n in result.spec.report.pareto]
    if all(n in result.columns for n in names):
        signs = [-1.0 if n.startswith("-") else 1.0 for n in result.spec.report.pareto]
        x, y = (np.where(result.ok, result.number(n), np.nan) * s for n, s in zip(names, signs, strict=True))
        keep |= set(np.flatnonzero(front(x, y)).tolist())
    return sorted(keep)


def _cases(result: SweepResult, marks: Sequence[int]) -> Cases:
    """Cases with settings and results in the units shown; those that marks stand for are among them."""
    doubled = {
        _SAME[p]
        for p in (c.path.split(".", 2)[-1] if c.path.startswith("systems.") else c.path for c in result.settings)
        if p in _SAME
    }
    names = [
        n
        for n in _RESULTS
        if n in result.columns and n not in doubled and np.isfinite(np.asarray(result.columns[n], dtype=float)).any()
    ]
    columns = [Column(c.path, path_words(c.path), True) for c in result.settings]
    columns += [Column(n, column_words(n), False) for n in names]
    report = result.spec.report
    sort = names.index(report.objective) if report.objective in names else None
    return Cases(
        name=result.name, columns=tuple(columns), rows=tuple(_case(result, i, names) for i in sorted({*rows_of(result), *marks})),
        n_all=result.n_cases, sort=None if sort is None else len(result.settings) + sort, is_descending=report.maximise,
        rest="the best, the front and evenly spaced ones of the rest; results.csv beside this page holds all",
    )  # fmt: skip


def _case(result: SweepResult, i: int, names: Sequence[str]) -> Case:
    outcome, reason = result.columns["outcome"][i], result.columns["reason"][i]
    results: list[Any] = [float(result.columns[n][i]) * COLUMN_WORDS.get(n, (n, "", 1.0))[2] for n in names]
    why = "" if outcome == "ok" else f"{outcome}: {reason}" if reason else str(outcome)
    return Case(i, outcome == "ok", (*(c.of(i) for c in result.settings), *results), why)


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def render_sweep(result: SweepResult, document: Document) -> str:
    """HTML text of the whole report."""
    return render_explorer(document, _cases(result, marked_cases(document)), "moesim sweep")
