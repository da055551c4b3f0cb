"""Token flow inside one forward pass, simulated: every rank of a stage computes, sends its tokens, receives others', computes its
experts and sends results back.

Engines and ports are busy for the durations of the cost model; what the simulation adds is who waits for whom. In `rank`
granularity a rank's port carries all of its traffic of one exchange as one transfer: it starts to receive when the first sender
starts, at full port speed, and is done when its bytes are through and the last sender has finished. In `pair` and `chunk`
granularity every receiver waits for the messages meant for it.

One micro-batch (`alone`) or two (`twin`) take all ranks together from one event that they share to the next, as vectors; `events`
goes rank by rank and event by event, with the same times.
"""

from __future__ import annotations

from typing import Any

from moesim.cost import CostModel
from moesim.ops import EXCHANGES, Program
from moesim.sim.alone import run_alone
from moesim.sim.awaited import Circumstances
from moesim.sim.books import Books, FlowResult
from moesim.sim.options import FlowOptions, Granularity
from moesim.sim.schedule import Parts, split_schedule
from moesim.sim.twin import run_twins

__all__ = ["FlowResult", "simulate"]


def simulate(
    program: Program, model: CostModel, *, record: bool = True, options: FlowOptions | None = None
) -> FlowResult:
    """Run one pass.

    Args:
        program: the pass; arrays in it have one column per rank.
        model: gives every duration.
        record: have spans; off, only times and waits.
        options: granularity, stragglers, launches.

    Raises:
        ConservationError: bytes or processes do not balance at the end.
        InputError: options that do not fit the pass.
    """
    used = options or FlowOptions()
    parts = split_schedule(program, model, used)
    books = Books(program.n_ranks, record)
    _run(parts, books, used)
    sends = sum(_largest(model.cost(op).time_s) for op in program.stage_sends) * (program.pp_size - 1)
    return books.result(sends, _known(program, used))


def _known(program: Program, options: FlowOptions) -> Circumstances:
    """Names and slow parts, for whoever asks why ranks waited."""
    parts = (program, *program.micro_batches)
    ops = [op for part in parts for _, op in part.ops()]
    groups = {op.name: op.group for op in ops} | {f"{op.name}_kernels": "traffic" for op in ops if op.kind in EXCHANGES}
    return Circumstances(groups, options.slow_ranks, options.slow_links)


def _run(parts: Parts, books: Books, options: FlowOptions) -> None:
    n_batches = len(parts.batches)
    whole = [*parts.before, *parts.batches[0], *parts.after]
    if options.is_by_event or n_batches > 2 or (n_batches == 2 and options.granularity is not Granularity.RANK):
        from moesim.sim.events import run_by_event  # brings simpy, which other passes can do without

        for batches in [[whole]] if n_batches == 1 else [[parts.before], parts.batches, [parts.after]]:
            run_by_event(batches, books)
    elif n_batches == 1:
        run_alone(whole, books)
    else:
        run_alone(parts.before, books)
        run_twins(parts.batches, books)
        run_alone(parts.after, books)


def _largest(x: Any) -> float:
    return float(x.max()) if hasattr(x, "max") else float(x)
