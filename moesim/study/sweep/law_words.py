"""What scaling laws say of a sweep: how many experts a training budget wants, and where the laws are stretched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moesim.study.sweep.laws import law_of, outside_words
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.words import number_text

__all__ = ["law_caution", "law_notes", "served", "wanted"]

#: Part of the least loss that one would give up for fewer experts. Assumption.
ENOUGH = 0.01


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


def _enough(result: SweepResult, rows: Any, column: str = "loss") -> int | None:
    """Of some cases the one with fewest experts, then least loss, that gives up at most `ENOUGH` of the best loss."""
    loss, experts = result.number(column), result.number("n_experts")
    best = _least(loss, rows)
    if best is None:
        return None
    near = np.flatnonzero(rows & (loss <= (1.0 + ENOUGH) * loss[best]))
    return int(near[np.lexsort((loss[near], experts[near]))[0]])


def wanted(result: SweepResult) -> str:
    """The fewest experts that give up at most `ENOUGH` of the least loss, at each budget, by one law and by the other."""
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
    if not parts:
        return "No case has a loss and times."
    return f"Fewest experts within {ENOUGH:.0%} of the least loss{_by(result)}: {'; '.join(parts)}{_otherwise(result)}."


def _by(result: SweepResult) -> str:
    """Whose loss it is, where two laws are asked."""
    law = result.spec.law
    return f" by {law_of(law.name).words}" if law is not None and law.other is not None else ""


def _otherwise(result: SweepResult) -> str:
    """How many experts the other law wants at the same budgets."""
    law = result.spec.law
    if law is None or law.other is None:
        return ""
    parts = []
    for budget, rows in _budgets(result):
        case = _enough(result, rows, "other_loss")
        if case is not None:
            where = f"{budget:.0e} FLOP " if budget is not None else ""
            active = number_text(result.number("n_active_params")[case] / 1e9)
            parts.append(f"{where}{result.number('n_experts')[case]:,.0f} on {active}B")
    return f"; by {law_of(law.other).words}: {', '.join(parts)}" if parts else ""


def served(result: SweepResult, shape: Callable[[SweepResult, int], str]) -> str:
    """Serving cost of the largest budget's least loss, and of the cheapest that gives up `ENOUGH` of it."""
    loss, usd = result.number("loss"), result.number("usd_per_million_output_tokens")
    rows = [(budget, r) for budget, r in _budgets(result) if _least(loss, r) is not None]
    budget, inside = rows[-1] if rows else (None, result.ok)
    best = _least(loss, inside)
    near = None if best is None else _least(usd, inside & (loss <= (1.0 + ENOUGH) * loss[best]))
    if best is None or near is None:
        return "Nothing can be served."
    where = f"At {budget:.0e} FLOP s" if budget is not None else "S"
    text = f"{where}erving the design of least loss ({shape(result, best)}) costs ${number_text(float(usd[best]))} per million "
    text += "output tokens; "
    if near == best:
        return f"{text}nothing within {ENOUGH:.0%} of its loss is cheaper to serve, so take it."
    cheaper = f"{shape(result, near)} (loss {loss[near]:.3f}) costs ${number_text(float(usd[near]))}"
    cheaper += f", {1 - usd[near] / usd[best]:.0%} less"
    return f"{text}giving up at most {ENOUGH:.0%} of loss, {cheaper}."


def law_caution(result: SweepResult) -> str:
    """What the laws are and where they are stretched."""
    text = "Take the order of designs from this, not the third digit of a loss"
    return f"{text}: {'; '.join(_sources(result))}."


def law_notes(result: SweepResult) -> list[str]:
    """A note for each law."""
    return [f"Losses: {text}." for text in _sources(result)]


def _sources(result: SweepResult) -> list[str]:
    spec, found = result.spec.law, []
    for name in () if spec is None else (spec.name, spec.other):
        if name is not None:
            law, rows = law_of(name), result.ok
            active, tokens = result.number("n_active_params")[rows], result.number("train_tokens")[rows]
            ratio = (result.number("n_experts") / result.number("top_k"))[rows]
            beyond = outside_words(law, active, ratio, tokens)
            found.append(law.source + (f" ({beyond})" if beyond else ""))
    return found
