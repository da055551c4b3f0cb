"""Three sentences that a reader can act on, made from a sweep's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.specs.sweep import Question
from moesim.study.sweep.axes import Column
from moesim.study.sweep.findings import Effect, Swing, best_case, crossing_lines
from moesim.study.sweep.laws import LAW_SOURCES
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.words import COLUMN_WORDS, number_text, path_words, settings_words, value_text

__all__ = ["conclusions", "heat_axes"]

#: Designs this close count as equal where no measurement gives an interval. Assumption.
ASSUMED_BAND = 0.25


def conclusions(result: SweepResult, found: Sequence[Effect], moved: Sequence[Swing]) -> tuple[str, str, str]:
    """What to do, how firmly that stands, and what to settle first."""
    best = best_case(result)
    if best is None:
        return _nothing_runs(result)
    question = result.spec.report.question
    if question is Question.BREAK_EVEN and "usd_ratio" in result.columns:
        return _verdict(result), _boundary(result), _first(result, found, moved)
    if question is Question.TRAINING and np.isfinite(result.number("loss")).any():
        return _wanted(result), _served(result), _law_caution(result)
    return _build(result, best), _band(result, best), _first(result, found, moved)


def _nothing_runs(result: SweepResult) -> tuple[str, str, str]:
    outcomes = result.outcomes()
    return (
        f"None of the {result.n_cases:,} cases runs.",
        f"They end as: {', '.join(f'{n:,} {word}' for word, n in outcomes.items())}.",
        f"The first reason: {next((r for r in result.columns.get('reason', ()) if r), 'none known')}.",
    )


def amount(name: str, value: float) -> str:
    """A result with its unit, as in a sentence."""
    words, unit, factor = COLUMN_WORDS.get(name, (name, "", 1.0))
    if name.endswith("usd_per_million_output_tokens"):
        return f"${number_text(value)} per million output tokens"
    return f"{words} {number_text(value * factor)}{' ' + unit if unit and unit != 'x' else ''}"


def _shape(result: SweepResult, case: int) -> str:
    """Settings of a case, and sizes that constraints solved."""
    text = settings_words(result.configuration(case))
    varied = {path_words(c.path) for c in result.settings}
    solved = [
        f"{COLUMN_WORDS[name][0]} {result.number(name)[case]:,.0f}"
        for name in ("n_experts", "top_k", "expert_width", "concurrency")
        if result.spec.constraints and COLUMN_WORDS[name][0] not in varied and np.isfinite(result.number(name)[case])
    ]
    return f"{text} ({', '.join(solved)})" if solved else text


def _build(result: SweepResult, best: int) -> str:
    objective, name = result.objective(), result.spec.report.objective
    worst = float(np.nanmax(np.abs(objective)) if not result.spec.report.maximise else np.nanmin(np.abs(objective)))
    own = float(abs(objective[best]))
    gain = max(worst, own) / max(min(worst, own), 1e-300)
    fleet = float(np.nanmedian(np.abs(objective)))
    return (
        f"Choose {_shape(result, best)}: {amount(name, own)}, against {amount(name, fleet)} for the middle one of the "
        f"{int(result.ok.sum()):,} cases that run and {number_text(gain)}x between best and worst."
    )


def _band(result: SweepResult, best: int) -> str:
    objective, errors = np.abs(result.objective()), result.number("error_frac")
    measured = bool(np.isfinite(errors[best]))
    band = float(errors[best]) if measured else ASSUMED_BAND
    near = np.flatnonzero(np.abs(objective / objective[best] - 1.0) <= band)
    basis = (
        "the 90% interval of its measured operators"
        if measured
        else "assumed, since no measurement stands behind most of it"
    )
    text = f"The prediction holds within about ±{band:.0%} ({basis}), and {len(near):,} cases lie that close"
    others = near[near != best]
    if not len(others):
        return f"{text}: the choice is clear."
    memory = result.number("memory_bytes")
    if np.isfinite(memory[others]).any():
        light = others[int(np.nanargmin(memory[others]))]
        if memory[light] < 0.98 * memory[best]:
            saved = (memory[best] - memory[light]) / 1e9
            return f"{text}; of these {_shape(result, light)} needs {saved:.1f} GB per rank less, so choose among them by other needs."
    return f"{text}, so choose among them by other needs, such as {_shape(result, int(others[0]))}."


def _first(result: SweepResult, found: Sequence[Effect], moved: Sequence[Swing]) -> str:
    parts = []
    if found:
        text = (
            f"Settle {path_words(found[0].path)} first: its worst value costs {number_text(found[0].ratio)}x its best"
        )
        if len(found) > 1:
            text += f", while {path_words(found[-1].path)} moves the answer {number_text(found[-1].ratio)}x"
        parts.append(text)
    if moved and moved[0].size > 1.005:
        parts.append(
            f"of the inputs not swept, {moved[0].what} off by a quarter change it {number_text(moved[0].size)}x"
        )
    n_bad = int((~result.ok & result.done).sum())
    if n_bad:
        word = next(w for w in result.outcomes() if w != "ok")
        parts.append(f"{n_bad:,} of {result.n_cases:,} cases do not run, most often: {word}")
    return "; ".join(parts or ["Nothing in the sweep moves the answer"]) + "."


def _systems(result: SweepResult) -> tuple[str, str]:
    plan = result.plan
    other = plan.base.systems[plan.against].name if plan.against is not None else "the other"
    return plan.base.systems[plan.system].name, other


def _verdict(result: SweepResult) -> str:
    this, other = _systems(result)
    ratio = np.where(result.ok, result.number("usd_ratio"), np.nan)
    known = np.isfinite(ratio)
    if not known.any():
        return f"{this} and {other} never both run in the {result.n_cases:,} cases."
    high, low = int(np.nanargmax(ratio)), int(np.nanargmin(ratio))
    share = float((ratio[known] > 1).mean())
    text = f"{this} is cheaper than {other} in {share:.0%} of the {int(known.sum()):,} cases where both run: at most "
    text += f"{number_text(float(ratio[high]))}x, at {settings_words(result.configuration(high))}"
    if ratio[low] < 1:
        return f"{text}; at {settings_words(result.configuration(low))} it costs {number_text(float(1 / ratio[low]))}x as much."
    return f"{text}, at least {number_text(float(ratio[low]))}x, at {settings_words(result.configuration(low))}."


def _boundary(result: SweepResult) -> str:
    axes = heat_axes(result)
    this, other = _systems(result)
    if axes is None:
        return f"Where the verdict between {this} and {other} flips cannot be drawn from one axis."
    x, y = axes
    lines = crossing_lines(result, x, y, "usd_ratio")
    crossing = {value: at for value, at in lines.items() if at}
    if not crossing:
        return (
            f"No {path_words(x.path)} from {value_text(x.values[0])} to {value_text(x.values[-1])} flips the verdict."
        )
    keys = list(crossing)
    parts = [
        f"at {path_words(y.path)} {value_text(v)} near {number_text(crossing[v][0])} {path_words(x.path)}"
        for v in dict.fromkeys((keys[0], keys[len(keys) // 2], keys[-1]))
    ]
    never = len(lines) - len(crossing)
    return f"The verdict flips {', '.join(parts)}{f'; it never does for {never} other values' if never else ''}."


def _budgets(result: SweepResult) -> list[tuple[float | None, Any]]:
    """Training budgets with the rows that have each."""
    column = next((c for c in result.settings if c.path == "training.compute_flop"), None)
    if column is None:
        return [(None, result.ok)]
    order = np.argsort(np.asarray(column.values, dtype=float))
    return [(float(column.values[i]), result.ok & (column.codes == i)) for i in order]


def _least(values: Any, rows: Any) -> int | None:
    inside = np.where(rows, values, np.nan)
    return int(np.nanargmin(inside)) if np.isfinite(inside).any() else None


def _wanted(result: SweepResult) -> str:
    loss, parts = result.number("loss"), []
    for budget, rows in _budgets(result):
        best = _least(loss, rows)
        if best is None:
            continue
        what = f"{budget:.0e} FLOP want" if budget is not None else "the budget wants"
        n = (
            result.number("n_experts")[best],
            result.number("n_active_params")[best],
            result.number("train_tokens")[best],
        )
        parts.append(
            f"{what} {n[0]:,.0f} experts on {number_text(n[1] / 1e9)}B active parameters and {number_text(n[2] / 1e12)}T tokens "
            f"(loss {loss[best]:.3f})"
        )
    return f"By the law, {'; '.join(parts)}." if parts else "No case has both a loss and times."


def _served(result: SweepResult) -> str:
    """The largest budget's best design in serving, and the cheapest of those that give up a hundredth of the loss."""
    loss, usd = result.number("loss"), result.number("usd_per_million_output_tokens")
    rows = [(budget, r) for budget, r in _budgets(result) if _least(loss, r) is not None]
    if not rows:
        return "Nothing can be served."
    budget, inside = rows[-1]
    best = _least(loss, inside)
    near = _least(usd, inside & (loss <= 1.01 * loss[best])) if best is not None else None
    if best is None or near is None:
        return "Nothing can be served."
    where = f"At {budget:.0e} FLOP s" if budget is not None else "S"
    text = f"{where}erving that model costs ${number_text(float(usd[best]))} per million output tokens; giving up at most 1% of loss, "
    if near == best:
        return text + "nothing that was swept is cheaper to serve, so take it."
    return text + (
        f"{_shape(result, near)} ({result.number('n_experts')[near]:,.0f} experts, loss {loss[near]:.3f}) costs "
        f"${number_text(float(usd[near]))}, {1 - usd[near] / usd[best]:.0%} less."
    )


def _law_caution(result: SweepResult) -> str:
    law = result.spec.law.name if result.spec.law is not None else ""
    return f"Take the order of designs from this, not the third digit of a loss: the law is {LAW_SOURCES.get(law, 'unknown')}."


def heat_axes(result: SweepResult) -> tuple[Column, Column] | None:
    """The two axes of the heat map: those the sweep names, else the two with most values (at most 40 each)."""
    named = result.spec.report.heat
    by_path = {c.path: c for c in result.settings}
    if named is not None and all(path in by_path for path in named):
        return by_path[named[0]], by_path[named[1]]
    fits = sorted((c for c in result.settings if 2 <= len(c.values) <= 40), key=lambda c: -len(c.values))
    return (fits[0], fits[1]) if len(fits) >= 2 else None
