"""Figures of a simulated pass rank by rank: use of ports, what would make it quicker, and tokens' ways over nodes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.report.colours import stand_in
from moesim.report.document import Cell, FigureBlock, Table
from moesim.report.seen import Seen, seen_pass, whole_numbers
from moesim.report.svg import drawing, to_svg
from moesim.report.text import multiple, number, percent, plural, time_text
from moesim.study.results import AlternativeRow, PathSample, RankDetail, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["node_paths", "port_use", "what_if", "what_if_table"]

_TOKEN_COLOURS = ("s0", "s1", "s2", "s3")
_N_BARS = 40  # more ranks than this are a line


def port_use(result: RunResult, name: str | None = None) -> FigureBlock | None:
    """How much of the pass each rank's port sends and receives, and its engine computes."""
    seen = seen_pass(result, name)
    if seen is None:
        return None
    ranks = seen.ranks
    first = np.arange(len(ranks.engine_frac)) * ranks.n_ranks_per_row
    key, title = f"fig-ports{seen.mark}", f"How much ports and engines are in use: {seen.system.name}, {seen.name}"
    ports = _ports_of(ranks)
    with drawing(3.4, len(ports) + 1) as (figure, panels):
        for axes, (name, out, into) in zip(panels, ports, strict=False):
            _port(axes, ranks, first, name, out, into)
        engine = panels[-1]
        marker = "." if len(first) < 65 else ""
        engine.plot(first, [100 * f for f in ranks.engine_frac], color=stand_in("s5"), marker=marker, label="computing")
        moving = [100 * max(pair) for pair in zip(ranks.out_port_frac, ranks.in_port_frac, strict=True)]
        engine.plot(first, moving, color=stand_in("s2"), marker=marker, linestyle="--", label="transfers")
        engine.set_ylim(0, 130)
        engine.set_yticks([0, 25, 50, 75, 100])
        engine.set_title("Time (% of the pass)")
        engine.legend(loc="upper right", ncols=2)
        for axes in panels:
            axes.set_xlabel("rank")
            whole_numbers(axes.xaxis)
        alt = _port_alt(ranks)
        svg = to_svg(figure, key, title, alt)
    return FigureBlock(
        f"ports{seen.mark}", title, alt, svg,
        "Ports: bytes over what they could carry during the pass at their rated bandwidth. Time: how long the engine computes, "
        "and how long transfers of the rank run, at whatever rate. What exposed communication takes beyond that is latency and "
        "waiting.",
    )  # fmt: skip


def what_if(result: RunResult, name: str | None = None) -> FigureBlock | None:
    """Bars of the pass with one thing changed at a time."""
    seen = seen_pass(result, name)
    if seen is None or len(seen.detail.what_if) < 2:
        return None
    rows = seen.detail.what_if
    key, title = f"fig-what-if{seen.mark}", _what_if_title(seen)
    with drawing(0.9 + 0.42 * len(rows)) as (figure, (axes,)):
        for y, row in enumerate(rows):
            colour = stand_in("s5" if y == 0 else "good" if row.time_s < rows[0].time_s else "alarm")
            work_s = max(0.0, row.time_s - row.exposed_comm_s - row.slower_wait_s)
            axes.barh(y, work_s * 1e3, color=colour, height=0.58)
            axes.barh(y, row.exposed_comm_s * 1e3, left=work_s * 1e3, color=colour, height=0.58, alpha=0.45)
            left_s = work_s + row.exposed_comm_s
            axes.barh(y, row.slower_wait_s * 1e3, left=left_s * 1e3, color=colour, height=0.58, alpha=0.18)
            text = time_text(row.time_s) + ("" if y == 0 else f"  {_change(rows[0], row)}")
            axes.annotate(text, (row.time_s * 1e3, y), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, max(row.time_s for row in rows) * 1.2e3)
        axes.grid(visible=False, axis="y")
        axes.set_title("Time of the pass (ms)")
        alt = "; ".join(f"{row.name} {time_text(row.time_s)} ({_change(rows[0], row)})" for row in rows[1:])
        alt = f"As it is {time_text(rows[0].time_s)}; {alt}."
        svg = to_svg(figure, key, title, alt)
    return FigureBlock(
        f"what-if{seen.mark}", title, alt, svg,
        "Each bar is the same pass simulated again with one thing changed. Pale: communication that nothing hides. Paler: what "
        "the mean rank waits for slower ones.",
    )  # fmt: skip


def what_if_table(result: RunResult, name: str | None = None) -> Table | None:
    """The same in numbers, with what each change means."""
    seen = seen_pass(result, name)
    if seen is None or len(seen.detail.what_if) < 2:
        return None
    detail = seen.detail
    rows = tuple(
        (
            Cell(row.name), Cell(number(row.time_s * 1e3)), Cell("" if i == 0 else _change(detail.what_if[0], row)),
            Cell(multiple(row.speedup)), Cell(number(row.exposed_comm_s * 1e3)), Cell(_ms(row.hidden_comm_s)),
            Cell(_ms(row.slower_wait_s)), Cell(_ms(row.wait_s)), Cell(row.note),
        )
        for i, row in enumerate(detail.what_if)
    )  # fmt: skip
    headings = (
        "What if",
        "Time (ms)",
        "Change",
        "Speed-up",
        "Exposed (ms)",
        "Hidden (ms)",
        "For slower ranks (ms)",
        "All waits (ms)",
        "Note",
    )
    return Table(
        f"what-if{seen.mark}", f"{seen.system.name}, {seen.name}, {plural(detail.concurrency, 'request')} in flight",
        headings, (False, *(True,) * 7, False), rows,
        "Exposed: the rank that the pass waits for computes nothing because of communication. For slower ranks: what the mean "
        "rank waits beside that. Hidden communication and all waits, those with compute over them too, are means per rank. "
        "Simulated; as well founded as the operators below.",
    )  # fmt: skip


def node_paths(result: RunResult) -> FigureBlock | None:
    """Which scale-up domains a few tokens visit in each layer."""
    system = next((s for s in result.systems if s.name == result.scenario.reference.name), None)
    sample = system.paths if system is not None else None
    size = result.scale_up_domain_size
    if system is None or sample is None or not sample.home_ranks or system.n_ranks_per_instance <= size:
        return None
    visits = _domains(sample, size)
    n_domains = -(-system.n_ranks_per_instance // size)
    n_shown, n_layers = min(len(_TOKEN_COLOURS), len(visits)), len(sample.layers)
    each = min(2.0, max(0.62, 0.35 + 0.14 * n_domains))
    key, title = "fig-node-paths", f"The way of {plural(n_shown, 'token')} over {n_domains} nodes: {system.name}"
    with drawing(0.9 + each * n_shown, 1, n_shown, sharex=True) as (figure, panels):
        for token, axes in enumerate(panels):
            home = sample.home_ranks[token] // size
            _draw_visits(axes, visits[token], home, token)
            axes.set_ylim(n_domains - 0.5, -0.5)
            axes.set_yticks(range(n_domains) if n_domains <= 4 else [0, n_domains - 1])
            axes.set_ylabel("node")
            axes.set_title(f"token {token + 1}, at home on node {home}", fontsize=9)
        step = max(1, -(-n_layers // 12))
        panels[-1].set_xticks(range(0, n_layers, step), [str(sample.layers[i]) for i in range(0, n_layers, step)])
        panels[-1].set_xlim(-0.7, n_layers - 0.3)
        panels[-1].set_xlabel("MoE layer")
        alt = _node_alt(sample, visits, size)
        svg = to_svg(figure, key, title, alt)
    return FigureBlock(
        "node-paths", title, alt, svg,
        "A node here is a scale-up domain. The line is the token's home, where attention runs; in each layer copies go to the "
        f"nodes of its experts (dots: the larger, the more of its experts lie there) and results come back. {alt}",
    )  # fmt: skip


def _ports_of(ranks: RankDetail) -> list[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    """Kinds of ports that are known, with their use out and in; transfers' time where bytes were not counted."""
    kinds = [("Scale-up ports", ranks.up_out_frac, ranks.up_in_frac), ("NIC", ranks.nic_out_frac, ranks.nic_in_frac)]
    known = [(f"{name} (% of bandwidth)", out, into) for name, out, into in kinds if out]
    return known or [("Ports (% of the pass)", ranks.out_port_frac, ranks.in_port_frac)]


def _port(
    axes: Axes, ranks: RankDetail, first: NDArray[np.int64], name: str, out: tuple[float, ...], into: tuple[float, ...]
) -> None:
    percent_out, percent_in = (np.array(f) * 100 for f in (out, into))
    if len(first) <= _N_BARS:
        width = 0.38 * ranks.n_ranks_per_row
        axes.bar(first - width / 2, percent_out, width=width, color=stand_in("s0"), label="out")
        axes.bar(first + width / 2, percent_in, width=width, color=stand_in("s1"), label="in")
    else:
        axes.plot(first, percent_out, color=stand_in("s0"), linewidth=1.2, label="out")
        axes.plot(first, percent_in, color=stand_in("s1"), linewidth=1.2, linestyle="--", label="in")
    axes.set_ylim(0, max(1e-3, float(max(percent_out.max(), percent_in.max()))) * 1.3)
    axes.set_title(name)
    axes.legend(loc="upper right", ncols=2)


def _what_if_title(seen: Seen) -> str:
    """The change that would help the pass most, and by how much."""
    base, *others = seen.detail.what_if
    best = min(others, key=lambda row: row.time_s)
    of = f"one {seen.name} pass of {seen.system.name}"
    if best.time_s >= 0.9995 * base.time_s:
        return f"What if: nothing tried would make {of} quicker"
    return f"What if: {best.name} would change {of} by {_change(base, best)}"


def _change(base: AlternativeRow, row: AlternativeRow) -> str:
    change = row.time_s / base.time_s - 1.0
    return "no change" if abs(change) < 5e-4 else f"{'+' if change > 0 else '−'}{abs(change):.1%}"


def _ms(seconds: float) -> str:
    return "0" if seconds < 5e-10 else number(seconds * 1e3)


def _domains(sample: PathSample, size: int) -> list[list[Counter[int]]]:
    """For each token and layer, how many of its experts lie in each domain."""
    spread = sample.n_devices_per_expert
    return [[Counter(rank * spread // size for rank in layer) for layer in token] for token in sample.ranks]


def _draw_visits(axes: Axes, layers: list[Counter[int]], home: int, token: int) -> None:
    colour = stand_in(_TOKEN_COLOURS[token])
    axes.axhline(home, color=colour, linewidth=1.6)
    spans = [(x, min(home, *seen), max(home, *seen)) for x, seen in enumerate(layers)]
    away = [(x, low, high) for x, low, high in spans if high > low]
    axes.vlines(
        [x for x, _, _ in away],
        [lo for _, lo, _ in away],
        [hi for _, _, hi in away],
        color=colour,
        linewidth=0.7,
        alpha=0.6,
    )
    dots = [(x, domain, n) for x, seen in enumerate(layers) for domain, n in sorted(seen.items())]
    for count in sorted({n for _, _, n in dots}):  # a marker per size is drawn once and used often
        at = [(x, domain) for x, domain, n in dots if n == count]
        axes.plot(
            [x for x, _ in at], [d for _, d in at], "o", color=colour, markersize=2.0 * count**0.5, markeredgewidth=0
        )
    axes.grid(visible=False, axis="x")


def _port_alt(ranks: RankDetail) -> str:
    parts = []
    for name, out, into in _ports_of(ranks):
        words = name.split(" (")[0].lower().replace("nic", "NICs")
        parts.append(f"{words} send {min(out):.1%} to {max(out):.1%} and receive {min(into):.1%} to {max(into):.1%}")
    engine = ranks.engine_frac
    of = " of what they could carry" if ranks.up_out_frac or ranks.nic_out_frac else " of the pass"
    text = f"{'; '.join(parts)}{of}; engines compute {percent(min(engine))} to {percent(max(engine))} of the pass."
    return text[:1].upper() + text[1:]


def _node_alt(sample: PathSample, visits: list[list[Counter[int]]], size: int) -> str:
    homes = [rank // size for rank in sample.home_ranks]
    layers = [(home, seen) for home, token in zip(homes, visits, strict=True) for seen in token]
    n_visited = sum(len(seen) for _, seen in layers) / len(layers)
    n_away = sum(n for home, seen in layers for domain, n in seen.items() if domain != home)
    share = n_away / sum(sum(seen.values()) for _, seen in layers)
    return f"A layer's experts lie on {number(n_visited, 2)} nodes on average, {share:.0%} of them away from the token's home."
