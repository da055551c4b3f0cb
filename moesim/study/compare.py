"""Verdicts: the reference system against the others, in numbers and a sentence that says why."""

from __future__ import annotations

from moesim.specs.scenario import SystemKind
from moesim.study.results import Comparison, PhaseDetail, Point, SystemResult
from moesim.study.uncertainty import Kinship, Spread, quotient, verdict

__all__ = ["compare", "ratio_spreads"]

#: The result that each ratio is of. Energy takes the times' intervals: what is not known of the power, both sides share.
_OF = {
    "ttft_ratio": "ttft_s", "tpot_ratio": "tpot_s", "throughput_ratio": "tpot_s", "energy_ratio": "tpot_s", "usd_ratio": "tpot_s",
}  # fmt: skip


def compare(reference: SystemResult, other: SystemResult, concurrency: int) -> Comparison:
    """One verdict. Ratios are other / reference for costs and reference / other for throughput: above 1, the reference wins."""
    a, b = _point(reference, concurrency), _point(other, concurrency)
    usd = _ratio(b.usd_per_million_output_tokens, a.usd_per_million_output_tokens)
    throughput = _ratio(a.output_tokens_per_s, b.output_tokens_per_s)
    kinship = Kinship.MODEL if reference.model == other.model else Kinship.STRANGERS
    if kinship is Kinship.MODEL and reference.n_members == other.n_members and reference.parallel == other.parallel:
        kinship = Kinship.TWINS
    spreads = ratio_spreads(b, a, kinship)
    ratios = {
        "ttft_ratio": _ratio(b.ttft_s, a.ttft_s), "tpot_ratio": _ratio(b.tpot_s, a.tpot_s), "throughput_ratio": throughput,
        "energy_ratio": _ratio(b.energy_j_per_output_token, a.energy_j_per_output_token), "usd_ratio": usd,
    }  # fmt: skip
    intervals = {name: ends for name, ratio in ratios.items() if (ends := _ends(spreads.get(name), ratio)) is not None}
    return Comparison(
        reference=reference.name, other=other.name, basis=other.basis, concurrency=concurrency,
        **ratios, intervals=intervals,
        memory_ratio=sum(other.memory.weights_bytes.values()) / sum(reference.memory.weights_bytes.values()),
        verdict=_verdict(reference, other, a, b, throughput, spreads.get("throughput_ratio")), why=_why(reference, other, a, b),
    )  # fmt: skip


def _verdict(
    reference: SystemResult, other: SystemResult, a: Point, b: Point, ratio: float | None, spread: Spread | None
) -> str:
    if a.outcome != "ok" and b.outcome != "ok":
        return f"neither runs here: {reference.name} {a.outcome}, {other.name} {b.outcome}"
    if b.outcome != "ok":
        return f"only {reference.name} runs here: {other.name} {b.outcome}"
    if a.outcome != "ok":
        return f"only {other.name} runs here: {reference.name} {a.outcome}"
    return verdict(reference.name, other.name, ratio, spread)


def ratio_spreads(other: Point, reference: Point, kinship: Kinship = Kinship.STRANGERS) -> dict[str, Spread]:
    """Intervals of the ratios other / reference by their names (throughput: reference / other), where both sides have one."""
    found = {}
    for name, of in _OF.items():
        top, bottom = other.spread(of), reference.spread(of)
        if top is not None and bottom is not None:
            found[name] = quotient(top, bottom, kinship)
    return found


def _ends(spread: Spread | None, ratio: float | None) -> tuple[float, float] | None:
    return None if spread is None else spread.interval(ratio)


def _why(reference: SystemResult, other: SystemResult, a: Point, b: Point) -> str:
    if a.outcome != "ok" or b.outcome != "ok":
        return "; ".join(p.reason for p in (a, b) if p.reason) or "one of the two does not run"
    parts = [
        f"per token {reference.n_active_params / 1e9:.1f}B parameters work in {reference.name} and "
        f"{other.n_active_params / 1e9:.1f}B in {other.name}"
    ]
    if a.weight_bytes_read_per_step and b.weight_bytes_read_per_step:
        parts.append(
            f"a decode step reads {a.weight_bytes_read_per_step / 1e9:.0f} GB of weights against "
            f"{b.weight_bytes_read_per_step / 1e9:.0f} GB per instance"
        )
    parts += [f"{system.name} is mostly {_dominant(system)}" for system in (reference, other) if system.details]
    if other.kind is SystemKind.ENSEMBLE:
        parts.append(
            f"each of the {other.n_members} models gets only its own requests, so its weights serve a smaller batch"
        )
    return "; ".join(parts)


def _dominant(system: SystemResult) -> str:
    detail: PhaseDetail = system.details[0]
    by_group: dict[str, float] = {}
    by_bound: dict[str, float] = {}
    for row in detail.operators:
        by_group[row.group] = by_group.get(row.group, 0.0) + row.time_s
        by_bound[row.bound] = by_bound.get(row.bound, 0.0) + row.time_s
    group, bound = max(by_group, key=by_group.__getitem__), max(by_bound, key=by_bound.__getitem__)
    share = by_group[group] / sum(by_group.values())
    return f"{group.replace('_', ' ').replace('ffn', 'FFN')} in {detail.phase} ({share:.0%} of the step, {bound} bound overall)"


def _point(system: SystemResult, concurrency: int) -> Point:
    return next(point for point in system.points if point.concurrency == concurrency)


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None
