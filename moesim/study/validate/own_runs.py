"""Fit the few parameters of a stack to a user's own runs, on top of the shipped ones and the device's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.cost.stack import StackParams
from moesim.errors import InputError
from moesim.study.kernels import tables_device
from moesim.study.stack_files import FOLDER, save_stack, shipped_stacks
from moesim.study.validate.fit import Runs, fit_one, stack_for, stack_key
from moesim.study.validate.predict import Batch
from moesim.study.validate.result_files import runs_of
from moesim.study.validate.table import RunRow
from moesim.study.validate.workload import Workbench

__all__ = ["OWN_WIDTH", "OwnFit", "calibrate_runs", "cross_validated", "warnings_for"]

#: Part of the prior's width that own runs may move parameters by (assumption: other versions on other machines).
OWN_WIDTH = 3.0
N_FOLDS = 5


@dataclass(frozen=True, slots=True)
class OwnFit:
    """What was fitted and where it lies."""

    path: Path
    stack: StackParams
    before: tuple[float, float]
    after: tuple[float, float]
    sentences: tuple[str, ...]


def calibrate_runs(tables: Sequence[Path], out: Path, name: str | None, defaults: Sequence[str]) -> OwnFit:
    """Fit, cross-validate, warn and write.

    Args:
        tables: CSVs with the columns of ``validate serving``, or result files of load generators.
        out: the YAML file to write.
        name: of the stack; by default backend and GPU generation with ``_own``, which no shipped stack is called.
        defaults: ``column=value`` for what result files do not say.

    Raises:
        InputError: runs of several stacks or fewer than three of them, a file that cannot be used.
    """
    rows = [row for path in tables for row in runs_of(path, _pairs(defaults))]
    keys = sorted({stack_key(row) for row in rows})
    if len(keys) != 1:
        raise InputError("must be of one backend on one GPU generation", field="runs", value=", ".join(keys) or "none")
    if len(rows) < 3:
        raise InputError("are too few", field="runs", value=len(rows), allowed="3 or more")
    if out.suffix not in (".yaml", ".yml"):
        raise InputError("must be a YAML file", field="out", value=str(out))
    bench = Workbench()
    runs = Runs(tuple(rows), Batch.of(rows, [bench.features(row) for row in rows]))
    prior = stack_for(keys[0], shipped_stacks())
    before, after = cross_validated(runs, prior)
    stack = fit_one(runs, prior, OWN_WIDTH)
    device = tables_device(rows[0].backend, rows[0].device) or rows[0].device
    called = name or f"{keys[0]}_own"
    save_stack(
        out, called, stack, source=f"{len(rows)} own runs: {', '.join(p.name for p in tables)}", n_rows=len(rows),
        n_groups=len({r.group for r in rows}), base=f"{device}/{rows[0].backend}",
    )  # fmt: skip
    words = [
        f"{len(rows)} runs of {keys[0]}, fitted as {called!r}; errors are cross-validated ({min(N_FOLDS, len(rows))} folds)",
        f"TPOT: mean error {before[1]:.1%} with the shipped parameters, {after[1]:.1%} fitted",
        f"TTFT: mean error {before[0]:.1%} with the shipped parameters, {after[0]:.1%} fitted",
        *(f"warning: {text}" for text in warnings_for(rows)),
    ]
    if after[1] > before[1] or after[0] > before[0]:
        words.append(
            "warning: the fit does not help on runs it has not seen; measure more, or keep the shipped parameters"
        )
    if called in shipped_stacks():
        words.append(
            f"warning: {called!r} is a shipped stack's name: reports cannot tell them apart, and this file takes its place "
            f"wherever it lies in {FOLDER}; give another --name"
        )
    return OwnFit(out, stack, before, after, tuple(words))


def cross_validated(runs: Runs, prior: StackParams) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean absolute errors of TTFT and TPOT before, and after a fit that did not see the row (folds dealt in turn by load)."""
    measured = np.exp(runs.log_measured)
    order = np.lexsort(([r.concurrency for r in runs.rows], [r.isl for r in runs.rows]))
    fold = np.empty(len(runs.rows), dtype=int)
    fold[order] = np.arange(len(runs.rows)) % min(N_FOLDS, len(runs.rows))
    projected = np.empty_like(measured)
    for k in np.unique(fold):
        out = np.flatnonzero(fold == k)
        projected[out] = runs.batch.at(out).predict(fit_one(runs.at(np.flatnonzero(fold != k)), prior, OWN_WIDTH))
    return _mean_error(runs.batch.predict(prior), measured), _mean_error(projected, measured)


def _mean_error(projected: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float]:
    errors = np.abs(projected / measured - 1.0)
    ttft, tpot = (float(np.nanmean(c)) if np.isfinite(c).any() else float("nan") for c in errors.T)
    return ttft, tpot


def warnings_for(rows: Sequence[RunRow]) -> list[str]:
    """What these runs cannot tell apart."""
    found = []
    if len({r.concurrency for r in rows}) < 2:
        found.append("all runs are at one concurrency: time per call and time per byte cannot be told apart")
    if len({r.isl for r in rows}) < 2:
        found.append(
            "all prompts are of one length: launch and device time of passes with prompts cannot be told apart"
        )
    if len({r.tp_size for r in rows}) < 2:
        found.append("all runs have one tensor-parallel size: communication stays as shipped")
    if all(r.measured_ttft_ms is None for r in rows):
        found.append("no TTFT was measured: waiting, launch and host times stay as shipped")
    if all(r.measured_tpot_ms is None for r in rows):
        found.append("no TPOT was measured: kernel factors stay as shipped")
    if len({r.model for r in rows}) < 2:
        found.append("one model: factors of kernels that it does not run stay as shipped")
    if len(rows) < 10:
        found.append(f"{len(rows)} runs are few; ten are usually enough")
    return found


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise InputError("is not column=value", field="set", value=text)
        found[key.strip()] = value.strip()
    return found
