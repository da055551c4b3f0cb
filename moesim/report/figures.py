"""All figures of a result, by the section they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.report.document import FigureBlock
from moesim.report.figures_cost import breakdown, latency, memory, pareto
from moesim.report.figures_flip import break_even
from moesim.report.figures_ops import gap_split, roofline
from moesim.report.figures_ranks import node_paths, port_use, what_if
from moesim.report.figures_routing import all_routing, sketch
from moesim.report.figures_waits import wait_map
from moesim.report.seen import seen_passes
from moesim.study.results import RunResult

__all__ = ["Figures", "draw"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Drawings by question; empty where the result has nothing to draw."""

    sketch: FigureBlock
    cost: tuple[FigureBlock, ...]
    time: tuple[FigureBlock, ...]
    ranks: tuple[FigureBlock, ...]
    what_if: tuple[FigureBlock, ...]
    routing: tuple[FigureBlock, ...]
    flips: tuple[FigureBlock, ...]


def draw(result: RunResult) -> Figures:
    """Draw everything."""
    seen = seen_passes(result)
    return Figures(
        sketch=sketch(),
        cost=_there(latency(result), pareto(result), memory(result)),
        time=_there(breakdown(result), roofline(result), gap_split(result)),
        ranks=_there(*(figure(result, name) for name in seen for figure in (wait_map, port_use))),
        what_if=_there(*(what_if(result, name) for name in seen)),
        routing=(*_there(node_paths(result)), *all_routing(result)),
        flips=tuple(break_even(result)),
    )


def _there(*figures: FigureBlock | None) -> tuple[FigureBlock, ...]:
    return tuple(f for f in figures if f is not None)
