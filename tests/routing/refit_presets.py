"""Fit the shipped router presets again from the measured counts; run by hand: python tests/routing/refit_presets.py.

Reads ../shared/data beside the checkout and writes scenarios/routing/olmoe-1b-7b.yaml and mixtral-8x7b.yaml. Fitted: sorted load
curves (knots), correlation of experts between domains, copy probabilities over layers (mutual information of the first
choice, and of choices of equal rank) and over tokens (Mixtral's Table 5).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from moesim.routing.router import RouterModel

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
OLMOE, MIXTRAL = "OLMoE-1B-7B-0924", "Mixtral-8x7B-v0.1"


def loads(model: str, view: str = "topk") -> dict[str, np.ndarray]:
    """Assignments per expert by domain: [3 layers, E]."""
    found: dict = defaultdict(lambda: defaultdict(dict))
    with (DATA / "routing_expert_counts.csv").open() as file:
        for row in csv.DictReader(file):
            if row["model"] == model and row["view"] == view:
                found[row["domain"]][int(row["layer"])][int(row["expert_id"])] = float(row["assignments"])
    return {
        d: np.array([[layers[i].get(e, 0.0) for e in range(int(max(layers[i])) + 1)] for i in sorted(layers)])
        for d, layers in sorted(found.items())
    }


def transitions(model: str, view: str, n_experts: int) -> dict[tuple[str, int], np.ndarray]:
    """Counts [E, E] of which expert follows which, by (domain, first layer)."""
    found: dict = defaultdict(lambda: np.zeros((n_experts, n_experts)))
    with (DATA / "routing_crosslayer_counts.csv").open() as file:
        for row in csv.DictReader(file):
            if row["model"] == model and row["view"] == view:
                at = int(row["expert_a"]), int(row["expert_b"])
                found[row["domain"], int(row["layer_a"])][at] += float(row["count"])
    return dict(found)


def mutual_information(counts: np.ndarray) -> float:
    """Nats, less the bias of a finite sample."""
    p = counts / counts.sum()
    q = np.outer(p.sum(1), p.sum(0))
    k = p > 0
    rows, columns = (p.sum(1) > 0).sum(), (p.sum(0) > 0).sum()
    bias = (rows - 1) * (columns - 1) / (2 * counts.sum())
    return float((p[k] * np.log(p[k] / q[k])).sum() - bias)


def pair_counts(a: np.ndarray, b: np.ndarray, n_experts: int) -> np.ndarray:
    return np.bincount(a.ravel().astype(int) * n_experts + b.ravel(), minlength=n_experts**2).reshape(n_experts, -1)


def knots(load: np.ndarray, ranks: list[int]) -> np.ndarray:
    """Sorted load over mean at the knots, with the mean around a knot inside the curve in place of the single value."""
    ordered = np.sort(load)[::-1] / load.mean()
    return np.maximum(ordered[np.array(ranks) - 1], 1e-3)


def correlation(table: np.ndarray) -> np.ndarray:
    """Lower triangle of the correlation of log loads [domains, E] between domains."""
    pearson = np.corrcoef(np.log(np.maximum(table / table.mean(axis=1, keepdims=True), 1e-3)))
    return pearson[np.tril_indices(len(table), -1)]


def solve(f, goal: float, low: float, high: float) -> float:
    """x with f(x) = goal for rising f, clipped to the ends."""
    for _ in range(12):
        mid = (low + high) / 2
        low, high = (mid, high) if f(mid) < goal else (low, mid)
    return (low + high) / 2


def two_layers(base: RouterModel, domain: int, layers: tuple[int, int], first: float, rest: float) -> np.ndarray:
    coupling = np.full((2, base.top_k), rest)
    coupling[:, 0] = first
    pair = RouterModel(
        n_layers=2, n_experts=base.n_experts, top_k=base.top_k, weights=base.weights[[domain]][:, list(layers)].copy(),
        domain_shares=np.ones(1), layer_coupling=coupling,
    )  # fmt: skip
    return pair.sample_tokens(60_000, np.random.default_rng(1))


def fit_coupling(base: RouterModel, model: str, names: list[str], gap: int) -> tuple[float, float]:
    """Copy probabilities over a gap that give the mean mutual information over domains."""
    e, layers, above = base.n_experts, (gap, gap + 1), (0, 7)[gap]
    with_counts = [n for n in names if (n, above) in transitions_cache(model, "top1", e)]
    goal = np.mean([mutual_information(transitions_cache(model, "top1", e)[n, above]) for n in with_counts])
    goal_all = np.mean(
        [mutual_information(transitions_cache(model, "topk_rankaligned", e)[n, above]) for n in with_counts]
    )

    def at(first: float, rest: float, pooled: bool) -> float:
        values = []
        for n in with_counts:
            t = two_layers(base, names.index(n), layers, first, rest)
            part = t if pooled else t[:, :, :1]
            values.append(mutual_information(pair_counts(part[:, 0], part[:, 1], e)))
        return float(np.mean(values))

    first = solve(lambda x: at(x, 0.0, False), goal, 0.0, 1.0)
    rest = solve(lambda x: at(first, x, True), goal_all, 0.0, 1.0)
    return first, rest


_cache: dict = {}


def transitions_cache(model: str, view: str, e: int) -> dict:
    if (model, view) not in _cache:
        _cache[model, view] = transitions(model, view, e)
    return _cache[model, view]


def repeat_rates(model: RouterModel, layer: int, n: int = 120_000) -> tuple[float, float]:
    """Share of tokens whose first choice repeats, and whose set of choices overlaps with the previous token's."""
    t = model.sample_tokens(n, np.random.default_rng(2), [layer])[:, 0].astype(int)
    first = (t[1:, 0] == t[:-1, 0]).mean()
    overlap = (t[1:, :, None] == t[:-1, None, :]).any(axis=(1, 2)).mean()
    return float(first), float(overlap)


def fit_repeats(base: RouterModel, domain: int | None, layer: int, first: float, both: float) -> tuple[float, float]:
    weights = (
        base.weights[:, [layer]].mean(axis=0, keepdims=True) if domain is None else base.weights[[domain]][:, [layer]]
    )

    def at(q: float, s: float) -> tuple[float, float]:
        one = RouterModel(
            n_layers=1, n_experts=base.n_experts, top_k=base.top_k, weights=weights.copy(), domain_shares=np.ones(1),
            repeat_prob=np.array([q]), repeat_joint_frac=np.array([s]),
        )  # fmt: skip
        return repeat_rates(one, 0)

    q = solve(lambda x: at(x, 0.5)[0], first, 0.0, 0.6)
    s = solve(lambda x: -at(q, x)[1], -both, 0.0, 1.0)
    return q, s


TABLE5 = {"ArXiv": "arxiv", "Github": "github", "Gutenberg": "book", "Wikipedia (en)": "wikipedia"}


def table5() -> dict[str, list[tuple[float, float]]]:
    """Mixtral's temporal locality: by domain, (first choice repeats, first or second repeats) at layers 0, 15, 31."""
    found: dict = defaultdict(dict)
    with (DATA / "routing_facts.csv").open() as file:
        for row in csv.DictReader(file):
            if row["metric"].startswith("repeat_first"):
                found[row["hardware_or_data"]][row["metric"], int(row["layer"])] = float(row["value"]) / 100
    rows = {
        d: [(v["repeat_first_choice", i], v["repeat_first_or_second", i]) for i in (0, 15, 31)]
        for d, v in found.items()
    }
    rows["all"] = [tuple(np.mean([r[i] for r in rows.values()], axis=0)) for i in range(3)]
    return rows


def numbers(values, digits: int = 4) -> str:
    return "[" + ", ".join(f"{v:.{digits}g}" for v in values) + "]"


def write(
    name: str, model: str, n_layers: int, top_k: int, ranks: list[int], measured: dict, sources: list[str]
) -> None:
    """Fit one preset and write its file; the couplings are fitted on the weights that the curves give."""
    depths = [layer / (n_layers - 1) for layer in (0, 7, 15)]
    domains = sorted(measured)
    n_experts = next(iter(measured.values())).shape[1]
    lines = [f"name: {name}", f"model: {model}", f"n_layers: {n_layers}", f"n_experts: {n_experts}", f"top_k: {top_k}",
             f"depths: {numbers(depths, 6)}", f"knot_ranks: {ranks}", "domains:"]  # fmt: skip
    for d in domains:
        lines += [f"  - name: {d}", "    load_over_mean:"]
        lines += [f"      - {numbers(knots(row, ranks))}" for row in measured[d]]
    lines.append("domain_correlation:")
    lines += [f"  - {numbers(correlation(np.stack([measured[d][i] for d in domains])))}" for i in range(3)]
    base = measured_router(measured, domains, top_k)
    lines.append("couplings:")
    for i in (0, 1):
        first, rest = fit_coupling(base, model, domains, i)
        lines.append(
            f"  - {{from_depth: {depths[i]:.6g}, to_depth: {depths[i + 1]:.6g}, first: {first:.3f}, rest: {rest:.3f}}}"
        )
    if model == MIXTRAL:
        lines += repeat_lines(base, domains)
    lines += ["sources:", *sources]
    (ROOT / "scenarios" / "routing" / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def measured_router(measured: dict, domains: list[str], top_k: int) -> RouterModel:
    """A router of the three measured layers with weights that give the measured shares."""
    from moesim.routing.inclusion import weights_from_inclusion
    from moesim.routing.presets import _to_inclusion

    rows = np.stack([measured[d] / measured[d].mean(axis=1, keepdims=True) for d in domains])
    n_domains, n_rows, e = rows.shape
    weights = weights_from_inclusion(_to_inclusion(rows.reshape(-1, e), top_k), top_k).reshape(rows.shape)
    shares = np.full(n_domains, 1 / n_domains)
    return RouterModel(n_layers=n_rows, n_experts=e, top_k=top_k, weights=weights, domain_shares=shares)


def repeat_lines(base: RouterModel, domains: list[str]) -> list[str]:
    rates = table5()
    lines = [f"repeat_depths: {numbers([0, 15 / 31, 1], 6)}", "repeats:"]
    for source, name in {**TABLE5, "all": "all"}.items():
        domain = domains.index(name) if name in domains else None
        # layer 31 was not counted: the weights of layer 15 stand in
        fits = [fit_repeats(base, domain, layer, *rates[source][i]) for i, layer in enumerate((0, 2, 2))]
        lines += [f"  - domain: {name}", f"    repeat_prob: {numbers(f[0] for f in fits)}",
                  f"    joint_frac: {numbers(f[1] for f in fits)}"]  # fmt: skip
    return lines


COUNTS = "OLMoE authors' router outputs (allenai/OLMoE, scripts/routing_output, 2024): assignments per expert, layers 0, 7, 15"


def source_lines(text: str, covers: str) -> list[str]:
    return ["  - origin: fitted", f'    text: "{text}"', f"    covers: [{covers}]"]


if __name__ == "__main__":
    sizes = "n_layers, n_experts, top_k, depths, knot_ranks"
    shared = [
        *source_lines(COUNTS + "; knots of the sorted load curve", f"domains, domain_correlation, {sizes}"),
        *source_lines("the same outputs, which expert follows which over layers 0-7 and 7-15: copy probability that gives "
                      "the measured mutual information, mean over domains", "couplings"),
    ]  # fmt: skip
    ranks = [1, 2, 3, 5, 8, 12, 18, 26, 36, 46, 55, 60, 62, 64]
    write("olmoe-1b-7b", OLMOE, 16, 8, ranks, loads(OLMOE), shared)
    table = source_lines("Mixtral of Experts, arXiv 2401.04088 Table 5 (repeated choices of consecutive tokens, layers 0, 15, "
                         "31); fitted with the load of layer 15 at layer 31", "repeats, repeat_depths")  # fmt: skip
    write("mixtral-8x7b", MIXTRAL, 32, 2, [1, 2, 3, 5, 7, 8], loads(MIXTRAL), [*shared, *table])
