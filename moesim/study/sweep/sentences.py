"""Three sentences that a reader can act on, made from a sweep's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.specs.scenario import Basis
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import Question
from moesim.study.sweep.axes import Column
from moesim.study.sweep.findings import Effect, Swing, best_case, crossing_lines
from moesim.study.sweep.law_words import law_caution, served, wanted
from moesim.study.sweep.quality_words import quality_note
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
        return _with_note(_verdict(result), result), _boundary(result), _first(result, found, moved)
    if question is Question.TRAINING and np.isfinite(result.number("loss")).any():
        return wanted(result), served(result, _shape), law_caution(result)
    return _with_note(_build(result, best), result), _band(result, best), _first(result, found, moved)


def _with_note(sentence: str, result: SweepResult) -> str:
    """The advice, with what it leaves out where designs do not answer equally well."""
    return f"{sentence} {quality_note(result)}".rstrip()


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
        f"its 90% interval, from {result.columns['interval_basis'][best]}"
        if measured and "interval_basis" in result.columns
        else "the 90% interval of its measured operators"
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
    other = "the other"
    if isinstance(layout.against, Basis):
        other = f"a dense twin of {layout.against.value.replace('_', ' ')} parameters"
        if layout.against in (Basis.EQUAL_MEMORY, Basis.EQUAL_QUALITY):
            other = other.removesuffix(" parameters")
    elif layout.against is not None:
        other = layout.base.systems[layout.against].name
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
    text += f"{number_text(float(ratio[high]))}x{_ends(result, high)}, at {settings_words(result.configuration(high))}"
    if ratio[low] < 1:
        least = f"{number_text(float(1 / ratio[low]))}x{_ends(result, low, turned=True)}"
        return f"{text}; at {settings_words(result.configuration(low))} it costs {least} as much{_unsure(result)}."
    least = f"{number_text(float(ratio[low]))}x{_ends(result, low)}"
    return f"{text}, at least {least}, at {settings_words(result.configuration(low))}{_unsure(result)}."


def _ends(result: SweepResult, case: int, *, turned: bool = False) -> str:
    """The 90% interval of a case's ratio, of its inverse if `turned`."""
    ends = [float(result.number(f"usd_ratio_{end}")[case]) for end in ("low", "high")]
    if not np.isfinite(ends).all():
        return " (assumption only)"
    low, high = (1.0 / ends[1], 1.0 / ends[0]) if turned else ends
    return f" [{number_text(low)}, {number_text(high)}]"


def _unsure(result: SweepResult) -> str:
    """In how many cases the ratio's interval holds 1."""
    low, high = (np.where(result.ok, result.number(f"usd_ratio_{end}"), np.nan) for end in ("low", "high"))
    known = np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return ""
    close = float(((low < 1.0) & (high > 1.0))[known].mean())
    return f"; too close to call in {close:.0%} of those with measurements behind both" if close > 0 else ""


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


def heat_axes(result: SweepResult) -> tuple[Column, Column] | None:
    """The two axes of the heat map: those the sweep names, else the two with most values (at most 40 each)."""
    named = result.spec.report.heat
    by_path = {c.path: c for c in result.settings}
    if named is not None and all(path in by_path for path in named):
        return by_path[named[0]], by_path[named[1]]
    fits = sorted((c for c in result.settings if 2 <= len(c.values) <= 40), key=lambda c: -len(c.values))
    return (fits[0], fits[1]) if len(fits) >= 2 else None
