"""Where the verdict flips: cost ratios along one axis at a time, and the values at which they cross 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from moesim.errors import InputError
from moesim.specs.hardware import Hardware
from moesim.specs.model import LayerSpec, ModelSpec, MoeFfn
from moesim.specs.scenario import Engine, FlipAxis
from moesim.specs.workload import WorkloadSpec
from moesim.study.compare import ratio_spreads
from moesim.study.instance import build_instance
from moesim.study.links import scaled_cost
from moesim.study.points import System, measure_point
from moesim.study.results import FlipCurve, Point
from moesim.study.uncertainty import Kinship

__all__ = ["crossings", "flip_curves"]

UNITS = {
    FlipAxis.CONCURRENCY: "requests in flight", FlipAxis.CONTEXT: "input tokens", FlipAxis.N_EXPERTS: "routed experts",
    FlipAxis.TOP_K: "experts per token", FlipAxis.LINK_BANDWIDTH: "x link bandwidth",
}  # fmt: skip


def flip_curves(
    reference: System, others: Sequence[System], hardware: Hardware, workload: WorkloadSpec, concurrency: int, axis: FlipAxis,
    seed: int,
) -> list[FlipCurve]:  # fmt: skip
    """Ratios other / reference of dollars and of TPOT along `axis`, with everything else as in the scenario.

    Uses the closed form with expected loads. Changing the number of experts keeps their width, so the total grows with it;
    changing top-k changes the active parameters.
    """
    values = _values(axis, reference, workload)
    own = [_point_at(reference, hardware, workload, concurrency, axis, value, seed) for value in values]
    curves = []
    for other in others:
        theirs = [_point_at(other, hardware, workload, concurrency, axis, value, seed) for value in values]
        pairs = list(zip(theirs, own, strict=True))
        usd = [
            _ratio(b, a, lambda p: p.usd_per_million_output_tokens or _inverse(p.output_tokens_per_s)) for b, a in pairs
        ]
        tpot = [_ratio(b, a, lambda p: p.tpot_s) for b, a in pairs]
        found = crossings(values, usd)
        kinship = Kinship.MODEL if _model(other) == _model(reference) else Kinship.STRANGERS
        bands = {
            name: [_ends(ratio, b, a, name, kinship) for ratio, (b, a) in zip(ratios, pairs, strict=True)]
            for name, ratios in (("usd_ratio", usd), ("tpot_ratio", tpot))
        }
        curves.append(
            FlipCurve(
                reference=reference.name, other=other.name, axis=axis, unit=UNITS[axis], x=tuple(values),
                usd_ratio=tuple(usd), tpot_ratio=tuple(tpot), crossings=tuple(found),
                **{f"{name}_low": tuple(low for low, _ in ends) for name, ends in bands.items()},
                **{f"{name}_high": tuple(high for _, high in ends) for name, ends in bands.items()},
                summary=_summary(reference.name, other.name, axis, values, usd, found)
                + _unsure(axis, values, bands["usd_ratio"]),
            )
        )  # fmt: skip
    return curves


def crossings(x: Sequence[float], ratio: Sequence[float | None]) -> list[float]:
    """Axis values where the ratio crosses 1, interpolated linearly in the logarithms of both.

    >>> [round(v, 6) for v in crossings([1.0, 4.0], [0.5, 2.0])]
    [2.0]
    """
    found = []
    known = [(value, r) for value, r in zip(x, ratio, strict=True) if r is not None]
    # a point at exactly 1 belongs to neither side; a curve that touches 1 and turns back does not cross it
    sides = [(value, r) for value, r in known if r != 1.0]
    for (x0, r0), (x1, r1) in pairwise(sides):
        if (r0 > 1.0) == (r1 > 1.0):
            continue
        even = [value for value, r in known if r == 1.0 and x0 < value < x1]
        share = math.log(r0) / (math.log(r0) - math.log(r1))
        found.append(even[0] if even else math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0))))
    return found


def _values(axis: FlipAxis, reference: System, workload: WorkloadSpec) -> list[float]:
    if axis is FlipAxis.CONCURRENCY:
        return [float(2**i) for i in range(13)]
    if axis is FlipAxis.CONTEXT:
        limit = reference.instance.model.max_position_embeddings or 131072
        longest = limit - workload.output_tokens
        return [float(2**i) for i in range(7, 18) if 2**i <= longest and 2**i > workload.cached_prefix_tokens]
    if axis is FlipAxis.LINK_BANDWIDTH:
        return [2.0**i for i in range(-4, 5)]
    ffn = reference.instance.model.moe_ffn
    if ffn is None:
        return []
    if axis is FlipAxis.TOP_K:
        return [float(k) for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if k <= ffn.n_routed_experts]
    ep = reference.instance.parallel.ep_size
    grown = [ep * 2**i for i in range(11)]
    return [float(n) for n in grown if ffn.num_experts_per_tok <= n <= 1024]


def _point_at(
    system: System,
    hardware: Hardware,
    workload: WorkloadSpec,
    concurrency: int,
    axis: FlipAxis,
    value: float,
    seed: int,
) -> Point | None:
    rng = np.random.default_rng(seed)
    try:
        if axis is FlipAxis.CONCURRENCY:
            concurrency = round(value)
        elif axis is FlipAxis.CONTEXT:
            workload = workload.model_copy(update={"input_tokens": round(value)})
        elif axis is FlipAxis.LINK_BANDWIDTH:
            system = _with_links(system, value)
        elif system.instance.model.is_moe:
            system = _with_experts(system, axis, round(value), rng)
        return measure_point(system, hardware, workload, concurrency, Engine.ANALYTIC, rng, explain=False)
    except InputError:
        return None


def _with_links(system: System, factor: float) -> System:
    """All links of the hardware `factor` times as fast, latencies unchanged; measured collectives go with them."""
    cost = scaled_cost(system.instance.cost, factor, factor)
    return replace(system, instance=replace(system.instance, cost=cost))


def _with_experts(system: System, axis: FlipAxis, value: int, rng: np.random.Generator) -> System:
    old = system.instance
    field = "n_routed_experts" if axis is FlipAxis.N_EXPERTS else "num_experts_per_tok"
    model = _changed(old.model, field, value)
    spec = old.routed.spec if old.routed is not None else None
    parallel = old.parallel.model_copy(update={"redundant_experts": 0})
    instance = build_instance(
        model, parallel, old.hardware, spec, cost=old.cost, overlap=old.overlap, settings=old.settings, rng=rng
    )
    return replace(system, instance=instance)


def _changed(model: ModelSpec, field: str, value: int) -> ModelSpec:
    def change(layer: LayerSpec) -> LayerSpec:
        if not isinstance(layer.ffn, MoeFfn):
            return layer
        ffn = layer.ffn.model_copy(update={field: value, "n_group": 1, "topk_group": 1})
        return layer.model_copy(update={"ffn": ffn})

    layers = tuple(change(layer) for layer in model.layers)
    return ModelSpec.model_validate(model.model_copy(update={"layers": layers}).model_dump())


def _ratio(top: Point | None, bottom: Point | None, of: Callable[[Point], float | None]) -> float | None:
    if top is None or bottom is None:
        return None
    a, b = of(top), of(bottom)
    return a / b if a is not None and b else None


def _model(system: System) -> str:
    return system.instance.model.name


def _ends(
    ratio: float | None, top: Point | None, bottom: Point | None, name: str, kinship: Kinship
) -> tuple[float | None, float | None]:
    """Ends of the 90% interval of a ratio."""
    if ratio is None or top is None or bottom is None:
        return None, None
    spread = ratio_spreads(top, bottom, kinship).get(name)
    return (None, None) if spread is None else spread.interval(ratio) or (None, None)


def _unsure(axis: FlipAxis, x: Sequence[float], ends: Sequence[tuple[float | None, float | None]]) -> str:
    """Where the interval holds 1."""
    known = [(at, low, high) for at, (low, high) in zip(x, ends, strict=True) if low is not None and high is not None]
    runs: list[list[float]] = []
    for i, (at, low, high) in enumerate(known):
        if low < 1.0 < high:
            if not runs or i == 0 or not known[i - 1][1] < 1.0 < known[i - 1][2]:
                runs.append([])
            runs[-1].append(at)
    if not runs:
        return ""
    if len(runs[0]) == len(known):
        return "; too close to call throughout"
    words = [f"at {_number(r[0])}" if len(r) == 1 else f"from {_number(r[0])} to {_number(r[-1])}" for r in runs]
    return f"; too close to call {' and '.join(words)}"


def _inverse(x: float | None) -> float | None:
    return 1.0 / x if x else None


def _summary(
    reference: str,
    other: str,
    axis: FlipAxis,
    x: Sequence[float],
    ratio: Sequence[float | None],
    found: Sequence[float],
) -> str:
    known = [(a, r) for a, r in zip(x, ratio, strict=True) if r is not None]
    if not known:
        return f"{reference} and {other} never both run along {UNITS[axis]}"
    low, high = known[0], known[-1]
    first = reference if low[1] >= 1 else other
    if not found:
        span = f"from {_number(low[0])} to {_number(high[0])} {UNITS[axis]}"
        ratios = sorted(r if first == reference else 1.0 / r for _, r in known)
        return f"{first} is cheaper everywhere {span} ({ratios[0]:.2f}x to {ratios[-1]:.2f}x)"
    parts = [f"{first} is cheaper below {_number(found[0])} {UNITS[axis]}"]
    current = first
    for i, at in enumerate(found):
        current = other if current == reference else reference
        until = f" up to {_number(found[i + 1])}" if i + 1 < len(found) else ""
        parts.append(f"{current} above {_number(at)}{until}" if i or len(found) > 1 else f"{current} above it")
    return ", ".join(parts)


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
