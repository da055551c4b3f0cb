"""Who waits where in a simulated pass, and for whom: heat map, idle time by cause, the ranks most waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.report.awaited import awaited_sentence, awaited_table
from moesim.report.colours import stand_in
from moesim.report.document import FigureBlock, Table
from moesim.report.seen import Seen, seen_pass, whole_numbers
from moesim.report.svg import drawing, to_svg
from moesim.report.text import time_text
from moesim.study.results import RankDetail, RunResult
from moesim.timeline import Cause

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["most_awaited", "wait_map"]

_CAUSES = (
    (Cause.TRANSFER, "own tokens", "g2"), (Cause.BARRIER, "slowest rank", "alarm"), (Cause.DATA, "its tokens", "s4"),
    (Cause.LINK_BUSY, "port busy", "s3"),
)  # fmt: skip


def wait_map(result: RunResult, name: str | None = None) -> FigureBlock | None:
    """Heat map of waiting by rank and layer, with each rank's sum beside it; of the first pass by default."""
    seen = seen_pass(result, name)
    if seen is None:
        return None
    ranks, per_row = seen.ranks, seen.ranks.n_ranks_per_row
    waits = np.array(ranks.wait_s)
    if not waits.any():
        return None
    height = min(6.4, max(2.6, 1.5 + 0.11 * len(waits)))
    key, title = f"fig-waits{seen.mark}", _wait_title(seen)
    with drawing(height, 2, width_ratios=[5, 1.5], sharey=True) as (figure, (heat, side)):
        top = max(1e-9, float(np.percentile(waits, 99.5))) * 1e6
        last = ranks.n_ranks - 0.5
        extent = (ranks.layers[0] - 0.5, ranks.layers[-1] + 0.5, last, -0.5)
        image = heat.imshow(waits * 1e6, aspect="auto", interpolation="none", vmin=0, vmax=top, extent=extent)
        heat.set_xlabel("layer")
        heat.set_ylabel("rank")
        whole_numbers(heat.yaxis)
        heat.set_title("Engine idle for others (µs)")
        heat.grid(visible=False)
        for border in range(result.scale_up_domain_size, ranks.n_ranks, result.scale_up_domain_size):
            if ranks.n_ranks // result.scale_up_domain_size <= 32:
                heat.axhline(border - 0.5, color=stand_in("paper"), linewidth=1.0)
        figure.colorbar(image, ax=heat, location="bottom", shrink=0.5, aspect=40, pad=0.01, label="µs per layer")
        middles = np.minimum((np.arange(len(waits)) + 0.5) * per_row, ranks.n_ranks) - 0.5
        _idle_by_cause(side, ranks, middles)
        side.tick_params(labelleft=False)
        alt = _wait_alt(seen)
        svg = to_svg(figure, key, title, alt)
    averaged = f" A row is the mean of {per_row} neighbouring ranks." if per_row > 1 else ""
    borders = " Lines part scale-up domains." if ranks.n_ranks > result.scale_up_domain_size else ""
    return FigureBlock(
        f"waits{seen.mark}", title, alt, svg,
        f"One {seen.name} pass. Dark: the rank's engine is busy, or idle only while its own tokens move. {_queue_note(ranks)}"
        f"{awaited_sentence(ranks)}{borders}{averaged}",
    )  # fmt: skip


def most_awaited(result: RunResult, name: str | None = None) -> Table | None:
    """The ranks that others waited for most, and why."""
    seen = seen_pass(result, name)
    if seen is None:
        return None
    return awaited_table(seen.ranks, f"awaited{seen.mark}", f"Whom ranks wait for: {seen.system.name}, {seen.name}")


def _idle_by_cause(axes: Axes, ranks: RankDetail, middles: NDArray[np.float64]) -> None:
    """Idle time of each rank's engine, causes side by side."""
    left = np.zeros(len(middles))
    for cause, label, colour in _CAUSES:
        seconds = np.array(ranks.idle_s.get(cause.value, (0.0,) * len(middles)))
        if seconds.sum() > 0.0:
            look: dict[str, Any] = {"color": stand_in(colour), "linewidth": 0, "label": label}
            if len(middles) > 64:  # one outline instead of a bar for each
                axes.fill_betweenx(middles, left * 1e3, (left + seconds) * 1e3, step="mid", **look)
            else:
                axes.barh(middles, seconds * 1e3, left=left * 1e3, height=ranks.n_ranks_per_row, **look)
            left += seconds
    axes.set_xlim(left=0)
    axes.set_title("Engine idle (ms)")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=7.5, handlelength=1.0)


def _idle_s(ranks: RankDetail, *causes: Cause) -> float:
    """Idle time of the mean rank's engine for some causes."""
    rows = (ranks.idle_s.get(cause.value, ()) for cause in causes)
    return sum(sum(row) / len(row) for row in rows if row)


def _wait_title(seen: Seen) -> str:
    """How long engines stand idle for others, and for whom most."""
    ranks = seen.ranks
    waits_s = float(np.array(ranks.wait_s).sum(axis=1).mean())
    title = f"Engines wait {time_text(waits_s)} of {time_text(seen.detail.time_s)}: {seen.system.name}, {seen.name}"
    return title if not ranks.awaited else f"{title}; most for rank {ranks.awaited[0].rank}"


def _queue_note(ranks: RankDetail) -> str:
    if not ranks.queue_s or sum(ranks.queue_s) <= 0.0:
        return ""
    queue = time_text(sum(ranks.queue_s) / len(ranks.queue_s))
    return f"Micro-batches queue for {queue} behind other work of their rank; its engine is busy then, so that is no waiting. "


def _wait_alt(seen: Seen) -> str:
    ranks = seen.ranks
    waits = np.array(ranks.wait_s)
    sums, per_layer, step = waits.sum(axis=1), waits.mean(axis=0), ranks.n_ranks_per_row
    own_s = _idle_s(ranks, Cause.TRANSFER)
    return (
        f"{ranks.n_ranks} ranks by {len(ranks.layers)} layers. The engine of rank {int(sums.argmax()) * step} waits longest, "
        f"{time_text(float(sums.max()))} in all, that of rank {int(sums.argmin()) * step} shortest, "
        f"{time_text(float(sums.min()))}; most is waited in layer {ranks.layers[int(per_layer.argmax())]}, "
        f"{time_text(float(per_layer.max()))} on average. While own tokens move engines are idle for {time_text(own_s)}. "
        f"{awaited_sentence(ranks)}"
    ).strip()
