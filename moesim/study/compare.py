"""Verdicts: the reference system against the others, in numbers and a sentence that says why."""

from __future__ import annotations

import math

from moesim.specs.scenario import SystemKind
from moesim.study.results import Comparison, PhaseDetail, Point, SystemResult

__all__ = ["compare", "sentence"]

TOO_CLOSE = 1.05


def compare(reference: SystemResult, other: SystemResult, concurrency: int) -> Comparison:
    """One verdict. Ratios are other / reference for costs and reference / other for throughput: above 1, the reference wins."""
    a, b = _point(reference, concurrency), _point(other, concurrency)
    usd = _ratio(b.usd_per_million_output_tokens, a.usd_per_million_output_tokens)
    throughput = _ratio(a.output_tokens_per_s, b.output_tokens_per_s)
    return Comparison(
        reference=reference.name, other=other.name, basis=other.basis, concurrency=concurrency,
        ttft_ratio=_ratio(b.ttft_s, a.ttft_s), tpot_ratio=_ratio(b.tpot_s, a.tpot_s), throughput_ratio=throughput,
        energy_ratio=_ratio(b.energy_j_per_output_token, a.energy_j_per_output_token), usd_ratio=usd,
        memory_ratio=sum(other.memory.weights_bytes.values()) / sum(reference.memory.weights_bytes.values()),
        verdict=_verdict(reference, other, a, b, throughput), why=_why(reference, other, a, b),
    )  # fmt: skip


def _verdict(reference: SystemResult, other: SystemResult, a: Point, b: Point, ratio: float | None) -> str:
    if a.outcome != "ok" and b.outcome != "ok":
        return f"neither runs here: {reference.name} {a.outcome}, {other.name} {b.outcome}"
    if b.outcome != "ok":
        return f"only {reference.name} runs here: {other.name} {b.outcome}"
    if a.outcome != "ok":
        return f"only {other.name} runs here: {reference.name} {a.outcome}"
    return sentence(reference.name, other.name, ratio, a.error_frac, b.error_frac)


def sentence(reference: str, other: str, ratio: float | None, error_a: float | None, error_b: float | None) -> str:
    """Who is cheaper per token and by how much, with the interval that both errors give; or that it is too close to call."""
    if ratio is None:
        return "cannot be compared"
    better, worse, by = (reference, other, ratio) if ratio >= 1 else (other, reference, 1.0 / ratio)
    if error_a is None or error_b is None:
        if by < TOO_CLOSE:
            return f"too close to call ({reference} against {other}, ratio {ratio:.2f}; efficiencies assumed)"
        return f"{better} is cheaper than {worse}, {by:.2f}x (efficiencies assumed)"
    # independent errors of the two systems, in logarithms (assumption: shared causes would only narrow the ratio)
    half = math.hypot(math.log1p(error_a), math.log1p(error_b))
    low, high = by * math.exp(-half), by * math.exp(half)
    if low < 1.0:
        return f"too close to call ({reference} against {other}, ratio {by:.2f} [{low:.2f}, {high:.2f}])"
    return f"{better} is cheaper than {worse}, {by:.2f}x [{low:.2f}, {high:.2f}]"


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
