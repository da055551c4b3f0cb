"""Three sentences that a reader can act on, made from a sweep's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import Question
from moesim.study.sweep.axes import Column
from moesim.study.sweep.findings import Effect, Swing, best_case, crossing_lines
from moesim.study.sweep.laws import LAW_SOURCES
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.words import COLUMN_WORDS, number_text, path_words, settings_words, value_text

__all__ = ["conclusions", "heat_axes"]

#: Designs this close count as equal where no measurement gives an interval. Assumption.
ASSUMED_BAND = 0.25
#: Part of the least loss that one would give up for fewer experts. Assumption.
ENOUGH = 0.01


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


def _by_condition(result: SweepResult) -> str:
    """The best case at the first, middle and last value of the condition."""
    condition, objective, name = result.condition, result.objective(), result.spec.report.objective
    values: Any = () if condition is None else condition.values
    found = []
    for code in range(len(values)):
        own = np.where(condition.codes == code, objective, np.nan) if condition is not None else objective
        if np.isfinite(own).any():
            found.append((int(np.nanargmin(own)), float(np.nanmax(own))))
    chosen = [found[i] for i in dict.fromkeys((0, len(found) // 2, len(found) - 1))]
    parts = []
    for case, worst in chosen:
        settings = {p: v for p, v in result.configuration(case).items() if p not in result.condition_paths}
        what = amount(name, float(result.number(name)[case]))
        parts.append(
            f"at {result.named_condition(case)}: {settings_words(settings)} ({what}; the worst is {number_text(worst)}x worse)"
        )
    return f"Choose {'; '.join(parts)}."


def _build(result: SweepResult, best: int) -> str:
    if result.condition is not None:
        return _by_condition(result)
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
    """How firmly the best case stands among those of its condition."""
    objective, errors = np.abs(result.objective()), result.number("error_frac")
    bands = np.where(np.isfinite(errors), errors, ASSUMED_BAND)
    measured, band = bool(np.isfinite(errors[best])), float(bands[best])
    inside, where = result.ok, ""
    if result.condition is not None:
        inside = inside & (result.condition.codes == result.condition.codes[best])
        where = f" at {result.named_condition(best)}"
    apart = np.abs(objective / objective[best] - 1.0)
    near = np.flatnonzero(inside & (apart <= np.hypot(bands, band)))
    basis = (
        "the 90% interval of its measured operators"
        if measured
        else "an assumption: no measurement stands behind most of it"
    )
    text = f"The best{where} is known to about ±{band:.0%} ({basis})"
    if not measured and np.isfinite(errors[inside]).any():
        known = np.where(inside & np.isfinite(errors), objective, np.nan)
        other = int(np.nanargmin(known))
        ratio = number_text(float(known[other] / objective[best]))
        return f"{text}, so measure before you commit: the best with measurements behind it is {_shape(result, other)}, {ratio}x."
    others = near[near != best]
    if not len(others):
        return f"{text}, and no other case lies that close: the choice is clear."
    text += f", and {len(others):,} other{' case lies' if len(others) == 1 else ' cases lie'} within both intervals"
    memory = result.number("memory_bytes")
    light = others[int(np.nanargmin(memory[others]))] if np.isfinite(memory[others]).any() else others[0]
    if memory[light] < 0.98 * memory[best]:
        saved = (memory[best] - memory[light]) / 1e9
        lighter = f"{_shape(result, int(light))}, which takes {saved:.1f} GB per rank less"
        return f"{text}: choose among them by other needs, such as {lighter}."
    return f"{text}: choose among them by other needs, such as {_shape(result, int(others[0]))}."


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
    layout = result.layout
    if isinstance(layout.base, ServeScenarioSpec):
        return layout.base.system.name, "the other"
    other = layout.base.systems[layout.against].name if layout.against is not None else "the other"
    return layout.base.systems[layout.system].name, other


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
    return f"The verdict flips {', '.join(parts)}{f'; for {never} of its {len(lines)} values it never does' if never else ''}."


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


def _enough(result: SweepResult, rows: Any) -> int | None:
    """Of some cases the one with fewest experts, then least loss, that gives up at most `ENOUGH` of the best loss."""
    loss, experts = result.number("loss"), result.number("n_experts")
    best = _least(loss, rows)
    if best is None:
        return None
    near = np.flatnonzero(rows & (loss <= (1.0 + ENOUGH) * loss[best]))
    return int(near[np.lexsort((loss[near], experts[near]))[0]])


def _wanted(result: SweepResult) -> str:
    loss, experts, parts = result.number("loss"), result.number("n_experts"), []
    for budget, rows in _budgets(result):
        case, best = _enough(result, rows), _least(loss, rows)
        if case is None or best is None:
            continue
        what = f"at {budget:.0e} FLOP" if budget is not None else "for this budget"
        active, tokens = result.number("n_active_params")[case] / 1e9, result.number("train_tokens")[case] / 1e12
        parts.append(
            f"{what} {experts[case]:,.0f} experts on {number_text(active)}B active parameters and {number_text(tokens)}T tokens "
            f"(loss {loss[case]:.3f}; {loss[best]:.3f} with {experts[best]:,.0f})"
        )
    return (
        f"Fewest experts within {ENOUGH:.0%} of the least loss: {'; '.join(parts)}."
        if parts
        else "No case has a loss and times."
    )


def _served(result: SweepResult) -> str:
    """Serving cost of the largest budget's least loss, and of the cheapest that gives up a hundredth of it."""
    loss, usd = result.number("loss"), result.number("usd_per_million_output_tokens")
    rows = [(budget, r) for budget, r in _budgets(result) if _least(loss, r) is not None]
    budget, inside = rows[-1] if rows else (None, result.ok)
    best = _least(loss, inside)
    near = None if best is None else _least(usd, inside & (loss <= (1.0 + ENOUGH) * loss[best]))
    if best is None or near is None:
        return "Nothing can be served."
    where = f"At {budget:.0e} FLOP s" if budget is not None else "S"
    text = f"{where}erving the design of least loss ({_shape(result, best)}) costs ${number_text(float(usd[best]))} per million "
    text += "output tokens; "
    if near == best:
        return f"{text}nothing within {ENOUGH:.0%} of its loss is cheaper to serve, so take it."
    cheaper = f"{_shape(result, near)} (loss {loss[near]:.3f}) costs ${number_text(float(usd[near]))}"
    cheaper += f", {1 - usd[near] / usd[best]:.0%} less"
    return f"{text}giving up at most {ENOUGH:.0%} of loss, {cheaper}."


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
