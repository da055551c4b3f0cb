"""Run a sweep: lay out, answer what is not answered yet, keep every finished task, gather."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError
from moesim.specs.sweep import SweepEngine, SweepSpec
from moesim.study.sweep.execute import answers
from moesim.study.sweep.layout import make_layout
from moesim.study.sweep.results import SweepResult, gather
from moesim.study.sweep.store import Store
from moesim.study.sweep.task import Answer
from moesim.study.sweep.tasks import Layout

__all__ = ["Progress", "Tick", "run_sweep"]


@dataclass(frozen=True, slots=True)
class Tick:
    """How far a sweep is: cases done (of which `n_kept` were already there), rate of this run and time left."""

    n_done: int
    n_total: int
    n_kept: int
    cases_per_s: float
    left_s: float | None


Progress = Callable[[Tick], None]


def run_sweep(
    spec: SweepSpec, *, out_dir: Path | None = None, engine: SweepEngine | None = None, n_jobs: int = 1,
    scheduler: str | None = None, file: Path | None = None, name: str = "sweep", progress: Progress = lambda tick: None,
) -> SweepResult:  # fmt: skip
    """Answer every case of a sweep that `out_dir` does not hold yet.

    Args:
        spec: the checked sweep.
        out_dir: where answers are kept as they come and found again; None keeps them in memory.
        engine: overrides the sweep's.
        n_jobs: processes.
        scheduler: address of a Dask scheduler in place of own processes.
        file: where the sweep was read, for lines of errors and a base beside it.
        name: what the report calls it.
        progress: called after every task.

    Returns:
        All answers so far; `interrupted` where Ctrl-C ended it early.

    Raises:
        InputError: anything wrong in the sweep or its base.
    """
    layout = make_layout(spec, engine=engine, file=file)
    store = None if out_dir is None else Store.open(out_dir)
    waiting = [task for task in layout.tasks if store is None or not store.has(task.ids)]
    memory: list[Answer] = []
    n_kept = layout.n_cases - sum(task.n_cases for task in waiting)
    began, done, interrupted = time.monotonic(), 0, False
    progress(Tick(n_kept, layout.n_cases, n_kept, 0.0, None))
    try:
        with closing(answers(waiting, n_jobs, scheduler)) as coming:
            for answer in coming:
                if answer.error is not None:
                    raise InputError(answer.error)
                if store is None:
                    memory.append(answer)
                else:
                    store.add(answer)
                done += len(answer.ids)
                progress(_tick(layout, n_kept, done, time.monotonic() - began))
    except KeyboardInterrupt:
        interrupted = True
    return gather(layout, name, store, memory, interrupted=interrupted)


def _tick(layout: Layout, n_kept: int, done: int, seconds: float) -> Tick:
    rate = done / max(seconds, 1e-9)
    return Tick(n_kept + done, layout.n_cases, n_kept, rate, (layout.n_cases - n_kept - done) / rate)
