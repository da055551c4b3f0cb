"""Figures of where tokens go: the three systems as a sketch, expert loads, and the paths of a few tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.report.colours import stand_in
from moesim.report.document import FigureBlock
from moesim.report.svg import drawing, to_svg
from moesim.report.text import number, plural, power_of_ten
from moesim.study.results import ExpertLoad, PathSample, RunResult, SystemResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["all_routing", "expert_load", "paths", "rank_changes", "sketch"]

_TOKEN_COLOURS = ("s0", "s1", "s2", "s3", "s4", "s6")
_N_SHOWN, _N_SHOWN_DEEP = 4, 2  # fewer tokens where many layers would make a thicket


def sketch() -> FigureBlock:
    """The three systems, side by side: which weights a token meets."""
    titles = ("Dense", "Ensemble behind a request router", "MoE: experts inside the layers")
    with drawing(3.3, 3) as (figure, panels):
        for axes, title in zip(panels, titles, strict=True):
            axes.set_axis_off()
            axes.set_xlim(-0.3, 4.3)
            axes.set_ylim(-0.9, 4.6)
            axes.set_title(title, loc="center")
        _dense(panels[0])
        _ensemble(panels[1])
        _moe(panels[2])
        alt = (
            "Dense: all tokens go up through every layer. Ensemble: a router sends each request into one of several whole "
            "models and it stays there. MoE: in every layer a router sends each token to a few of that layer's experts, so "
            "tokens zigzag, each on its own path."
        )
        svg = to_svg(figure, "fig-sketch", "Which weights a token meets", alt)
    return FigureBlock(
        "sketch", "Which weights a token meets", alt, svg,
        "Coloured lines are tokens (in the ensemble: all tokens of a request), from bottom to top; the experts that a token "
        "meets beside its first choice are left out.",
    )  # fmt: skip


def expert_load(index: int, system: SystemResult) -> FigureBlock | None:
    """Heat map of tokens per expert and layer, with max/mean beside it."""
    load = system.expert_load
    if load is None or not load.counts:
        return None
    relative = _relative(load)
    n_layers, n_experts = relative.shape
    height = min(6.4, max(2.6, 1.3 + 0.085 * n_layers))
    key, title = f"fig-load-{index}", f"Expert load of {system.name}: layer × expert"
    with drawing(height, 2, width_ratios=[5, 1.5], sharey=True) as (figure, (heat, side)):
        extent = (-0.5, n_experts - 0.5, n_layers - 0.5, -0.5)
        top = max(2.0, float(np.percentile(relative, 99.5)))
        image = heat.imshow(relative, aspect="auto", interpolation="none", vmin=0, vmax=top, extent=extent)
        _layer_ticks(heat, load.layers)
        heat.set_xlabel("expert")
        heat.set_title("Tokens over the layer's mean")
        heat.grid(visible=False)
        figure.colorbar(image, ax=heat, location="bottom", shrink=0.5, aspect=40, pad=0.01, label="1 = an even share")
        rows = np.arange(n_layers)
        side.plot(load.expert_imbalance_ratio, rows, color=stand_in("s1"), linewidth=1.4, label="busiest expert")
        side.plot(
            load.rank_imbalance_ratio, rows, color=stand_in("s0"), linewidth=1.4, linestyle="--", label="busiest rank"
        )
        side.set_xlim(1.0, max(1.05, *load.expert_imbalance_ratio) * 1.05)
        side.set_title("Max over mean")
        side.tick_params(labelleft=False)
        side.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=1)
        alt = _load_alt(load)
        svg = to_svg(figure, key, title, alt)
    return FigureBlock(f"load-{index}", title, alt, svg, f"One decode pass. Load: {load.source}.")


def paths(index: int, system: SystemResult) -> FigureBlock | None:
    """The way of a few tokens through the layers."""
    sample = system.paths
    if sample is None or not sample.experts:
        return None
    n_layers, n_experts = (
        len(sample.layers),
        system.n_experts or 1 + max(e for t in sample.experts for la in t for e in la),
    )
    n_shown = min(_N_SHOWN if n_layers <= 40 else _N_SHOWN_DEEP, len(sample.experts))
    height = min(5.6, max(3.0, 1.6 + 0.25 * n_experts))
    key, title = (
        f"fig-paths-{index}",
        f"The way of {plural(n_shown, 'token')} through {system.name}",
    )
    with drawing(height) as (figure, (axes,)):
        bands = _bands(sample, n_experts)
        _draw_bands(axes, bands, n_layers)
        for token in range(n_shown):
            _draw_token(axes, sample.experts[token], token, (token - (n_shown - 1) / 2) * min(0.16, n_experts / 300))
        _layer_ticks(axes, sample.layers, "x")
        axes.set_xlim(-0.7, n_layers - 0.3 + (0.06 * n_layers if bands else 0))
        axes.set_ylim(n_experts - 0.4, -0.6)
        if n_experts <= 16:
            axes.set_yticks(range(n_experts))
        axes.set_xlabel("MoE layer, from first to last")
        axes.set_title("Expert")
        figure.legend(loc="outside upper left", ncols=n_shown)
        alt = _paths_alt(sample, system)
        svg = to_svg(figure, key, title, alt)
    return FigureBlock(
        f"paths-{index}", title, alt, svg,
        f"Lines join the experts of first choice, dots are the other choices. {_paths_note(sample, bands)}",
    )  # fmt: skip


def rank_changes(sample: PathSample) -> float:
    """Mean share of layer changes in which a token's first choice lies on another rank than in the layer before."""
    moves = [a[0] != b[0] for token in sample.ranks for a, b in pairwise(token)]
    return sum(moves) / len(moves) if moves else 0.0


def _relative(load: ExpertLoad) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = np.array(load.counts, dtype=np.float64)
    mean: NDArray[np.float64] = np.maximum(counts.mean(axis=1, keepdims=True), 1e-12)
    return counts / mean


def _draw_bands(axes: Axes, bands: dict[int, tuple[float, float]], n_layers: int) -> None:
    for rank, (low, high) in bands.items():
        if rank % 2 == 0:
            axes.axhspan(low - 0.5, high + 0.5, color=stand_in("panel"), linewidth=0)
        if len(bands) <= 16:
            axes.text(
                n_layers - 0.3, (low + high) / 2, f"rank {rank}", va="center", fontsize=8.5, color=stand_in("soft")
            )


def _draw_token(axes: Axes, chosen: tuple[tuple[int, ...], ...], token: int, shift: float) -> None:
    colour, layers = stand_in(_TOKEN_COLOURS[token]), np.arange(len(chosen))
    others = [(layer, e + shift) for layer, experts in enumerate(chosen) for e in experts[1:]]
    if others:
        axes.plot([x for x, _ in others], [y for _, y in others], ".", color=colour, alpha=0.5, markersize=4)
    first = [experts[0] + shift for experts in chosen]
    axes.plot(layers, first, "-o", color=colour, linewidth=1.3, markersize=3.6, alpha=0.95, label=f"token {token + 1}")


def _layer_ticks(axes: Axes, layers: tuple[int, ...], which: str = "y") -> None:
    step = max(1, -(-len(layers) // 12))
    rows = list(range(0, len(layers), step))
    labels = [str(layers[r]) for r in rows]
    if which == "x":
        axes.set_xticks(rows, labels)
        return
    axes.set_yticks(rows, labels)
    axes.set_ylabel("layer")


def _bands(sample: PathSample, n_experts: int) -> dict[int, tuple[float, float]]:
    """Ranges of experts per rank, if what the sample shows is a contiguous even placement over several ranks."""
    seen = {(e, r) for t, u in zip(sample.experts, sample.ranks, strict=True) for a, b in zip(t, u, strict=True)
            for e, r in zip(a, b, strict=True)}  # fmt: skip
    n_ranks = 1 + max(r for _, r in seen)
    if n_ranks < 2 or n_experts % n_ranks:
        return {}
    per_rank = n_experts // n_ranks
    if any(e // per_rank != r for e, r in seen):
        return {}
    return {r: (r * per_rank, (r + 1) * per_rank - 1) for r in range(n_ranks)}


def _paths_note(sample: PathSample, bands: dict[int, tuple[float, float]]) -> str:
    n_ranks = len({r for token in sample.ranks for layer in token for r in layer})
    if n_ranks == 1:
        return "Every rank holds a slice of every expert, so no token changes rank."
    where = "Shaded bands are ranks." if bands else "Experts are not placed in order of rank."
    return f"{where} From one layer to the next, {rank_changes(sample):.0%} of first choices change rank."


def _load_alt(load: ExpertLoad) -> str:
    worst = max(range(len(load.layers)), key=lambda i: load.expert_imbalance_ratio[i])
    mean = sum(load.expert_imbalance_ratio) / len(load.layers)
    ranks = sum(load.rank_imbalance_ratio) / len(load.layers)
    return (
        f"{len(load.layers)} layers of {len(load.counts[0])} experts. The busiest expert has {number(mean)} times the mean on "
        f"average, {number(load.expert_imbalance_ratio[worst])} times in layer {load.layers[worst]}; the busiest rank "
        f"{number(ranks)} times on average."
    )


def _paths_alt(sample: PathSample, system: SystemResult) -> str:
    first = ", ".join(str(layer[0]) for layer in sample.experts[0][:6])
    return (
        f"Each token takes one of {power_of_ten(sample.n_possible_paths_log10)} possible paths through {system.name}; "
        f"token 1 begins with experts {first} of the first layers."
    )


def _box(axes: Axes, x: float, y: float, width: float, colour: str = "panel") -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, 0.55, boxstyle="round,pad=0,rounding_size=0.08", facecolor=stand_in(colour),
            edgecolor=stand_in("rule"), linewidth=1.0,
        )
    )  # fmt: skip


def _note(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=stand_in("soft"))


def _dense(axes: Axes) -> None:
    for layer in range(4):
        _box(axes, 0.4, layer + 0.1, 3.2)
    for i in range(3):
        axes.plot([1.2 + 0.8 * i] * 2, [-0.25, 4.2], color=stand_in(_TOKEN_COLOURS[i]), linewidth=2)
    _note(axes, 2.0, -0.65, "every token meets every weight")


def _ensemble(axes: Axes) -> None:
    for model in range(3):
        for layer in range(3):
            _box(axes, 0.15 + 1.4 * model, layer + 1.1, 0.95)
    _box(axes, 0.9, 0.1, 2.2, "rule")
    _note(axes, 2.0, 0.375, "request router")
    for i, model in enumerate((0, 2)):
        x, start = 0.62 + 1.4 * model, 1.5 + i
        colour = stand_in(_TOKEN_COLOURS[i])
        axes.plot([start, start], [-0.25, 0.1], color=colour, linewidth=2)
        axes.plot([start, x, x], [0.65, 1.1, 4.2], color=colour, linewidth=2)
    _note(axes, 2.0, -0.65, "one whole model per request: not an MoE")


def _moe(axes: Axes) -> None:
    routes = ((0, 2, 1, 3), (1, 0, 3, 2), (3, 1, 0, 0))
    for layer in range(4):
        for expert in range(4):
            _box(axes, 0.1 + 1.02 * expert, layer + 0.1, 0.74)
    for i, route in enumerate(routes):
        shift = (i - 1) * 0.13
        x = [0.47 + 1.02 * e + shift for e in route]
        xs = [x[0]] + [v for v in x for _ in (0, 1)] + [x[-1]]
        ys = [-0.25] + [layer + d for layer in range(4) for d in (0.1, 0.65)] + [4.2]
        axes.plot(xs, ys, color=stand_in(_TOKEN_COLOURS[i]), linewidth=2)
    _note(axes, 2.0, -0.65, "each token takes its own path")


def all_routing(result: RunResult) -> list[FigureBlock]:
    """Heat maps and paths of every system that routes tokens."""
    found = []
    for index, system in enumerate(result.systems):
        found += [f for f in (expert_load(index, system), paths(index, system)) if f is not None]
    return found
