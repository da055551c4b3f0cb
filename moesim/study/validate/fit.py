"""Fit a stack's few parameters to runs: a regularised, robust least-squares fit of log TTFT and log TPOT.

Three levels, each the prior of the next: what all stacks have in common, a backend, a backend on a GPU generation. Groups of rows
(a model on a system) count alike above `N_EFFECTIVE` rows: their errors are not independent. Parameters enter by logarithms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost.stack import DEFAULT_STACK, StackParams
from moesim.study.kernels import generation_of, stack_for
from moesim.study.validate.predict import Batch
from moesim.study.validate.table import RunRow

__all__ = ["Runs", "fit_all", "fit_one", "left_out", "predict_all", "stack_for", "stack_key"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
NAMES = StackParams.names()
#: Start and standard deviation of each parameter's logarithm (assumption: tables hold within 5-20%, host times within a factor).
PRIOR: dict[str, tuple[float, float]] = {
    "gemm_ratio": (1.0, 0.05), "gemm_call_ratio": (0.8, 0.5), "experts_ratio": (1.0, 0.08), "experts_call_ratio": (1.0, 0.2),
    "attention_ratio": (1.0, 0.1), "attention_call_ratio": (1.0, 0.2), "elementwise_call_ratio": (1.0, 0.4),
    "comm_ratio": (1.0, 0.2), "quantise_s": (1.5e-6, 0.8), "step_s": (4e-4, 0.8), "prompt_ratio": (1.15, 0.2),
    "launch_s": (2e-5, 1.0), "prompt_pass_s": (1e-3, 0.8), "prompt_s": (2e-3, 0.6), "request_s": (1e-3, 0.7),
    "token_s": (3e-6, 0.3), "wait_passes": (1.0, 0.7), "cold_s": (1e-2, 1.0), "other_client_s": (1e-2, 1.0),
}  # fmt: skip
#: Tables of TensorRT-LLM time a product with its quantisation, and single calls that wait for the host.
OF_BACKEND = {"trtllm": {"quantise_s": 0.2e-6, "gemm_call_ratio": 0.35}}
#: Scatter of log TTFT and log TPOT that a good fit leaves, and how many rows of a group count at most.
SCATTER = np.asarray([0.2, 0.07])
N_EFFECTIVE = 10.0
#: Part of the prior's width that each level may use.
COMMON, OWN, GENERATION = 3.0, 0.5, 0.15
#: Host and client: software of a backend, so backends do not share them. What public runs are not asked about: their clients sat
#: beside the server (about a millisecond), and a request that comes in the middle of a pass waits for half of it and for the
#: pass that is queued behind it, half of which is in the schedule already.
HOST = ("launch_s", "prompt_pass_s", "prompt_s", "token_s")
HELD = ("request_s", "wait_passes")
HELD_WIDTH = 0.02
#: What a row's TTFT counts by whether its client warmed up; a client that nobody documented says little about it.
CLIENT_WEIGHT = {"yes": 1.0, "no": 0.25}
UNDOCUMENTED_WEIGHT = 0.1
PRIOR_WEIGHT = 2.0
MOST_STEPS = 8


def stack_key(row: RunRow) -> str:
    """Backend and GPU generation, as in the names of stack files."""
    return f"{row.backend}_{generation_of(row.device)}"


@dataclass(frozen=True, slots=True)
class Runs:
    """Measured rows with their features."""

    rows: tuple[RunRow, ...]
    batch: Batch

    @property
    def log_measured(self) -> Floats:
        """Logarithms of seconds, [R, 2]; nan where not measured."""
        cells = [[r.measured_ttft_ms or np.nan, r.measured_tpot_ms or np.nan] for r in self.rows]
        return np.asarray(np.log(np.asarray(cells, dtype=float) * 1e-3))

    def at(self, index: Ints) -> Runs:
        """Some of the rows."""
        return Runs(tuple(self.rows[i] for i in index), self.batch.at(index))


def fit_one(
    runs: Runs, prior: StackParams, width: float, host_width: float | None = None, held: Sequence[str] = ()
) -> StackParams:
    """The most likely parameters of one stack given a prior: Gauss-Newton steps with robust weights.

    Args:
        runs: measured rows of the stack.
        prior: where the parameters are expected.
        width: part of `PRIOR`'s standard deviations that they may stray.
        host_width: the same for those of the host (`HOST`); `width` by default.
        held: parameters that keep their prior.
    """
    if not runs.rows:
        return prior
    measured, weight = runs.log_measured, _group_weight(runs.rows)[:, None] * _client_weight(runs.rows)
    known = np.isfinite(measured)
    target = np.where(known, measured, 0.0)
    free = {n: host_width or width if n in HOST else width for n in NAMES} | dict.fromkeys(held, HELD_WIDTH)
    penalty = (PRIOR_WEIGHT / np.asarray([free[n] * PRIOR[n][1] for n in NAMES])) ** 2
    start = _log(prior)
    at = start.copy()
    for _ in range(MOST_STEPS):
        found = np.log(runs.batch.predict(_params(at)))
        slope = _slopes(runs.batch, at, found) / SCATTER[None, :, None]
        error = (target - found) / SCATTER
        w = known * weight / np.sqrt(1.0 + error * error)
        matrix = np.einsum("rmp,rm,rmq->pq", slope, w, slope) + np.diag(penalty)
        vector = np.einsum("rmp,rm->p", slope, w * error) - penalty * (at - start)
        step = np.clip(np.linalg.solve(matrix, vector), -0.7, 0.7)
        at = at + step
        if np.abs(step).max() < 2e-3:
            break
    return _params(at)


def fit_all(runs: Runs) -> dict[str, StackParams]:
    """Parameters of every stack in the rows, and `default`, what they have in common."""
    backends = np.asarray([r.backend for r in runs.rows])
    keys = np.asarray([stack_key(r) for r in runs.rows])
    start = replace(DEFAULT_STACK, **{n: PRIOR[n][0] for n in NAMES})
    # tables of TensorRT-LLM mean something else by a call, so its rows say nothing about the common value
    common = fit_one(runs.at(np.flatnonzero(backends != "trtllm")), start, COMMON, held=HELD)
    found = {"default": common}
    for backend in np.unique(backends):
        prior = replace(common, **{n: PRIOR[n][0] for n in HOST}, **OF_BACKEND.get(str(backend), {}))
        middle = fit_one(runs.at(np.flatnonzero(backends == backend)), prior, OWN, COMMON, HELD)
        found[str(backend)] = middle
        for key in np.unique(keys[backends == backend]):
            found[str(key)] = fit_one(runs.at(np.flatnonzero(keys == key)), middle, GENERATION, held=HELD)
    return found


def predict_all(runs: Runs, stacks: Mapping[str, StackParams]) -> Floats:
    """Mean TTFT and TPOT in seconds of every row under its stack, [R, 2]."""
    found = np.empty((len(runs.rows), 2))
    keys = np.asarray([stack_key(r) for r in runs.rows])
    for key in np.unique(keys):
        index = np.flatnonzero(keys == key)
        found[index] = runs.batch.at(index).predict(stack_for(str(key), stacks))
    return found


def left_out(
    runs: Runs,
    fit: Callable[[Runs], Mapping[str, StackParams]] = fit_all,
    by: Callable[[RunRow], str] = lambda r: r.group,
) -> Floats:
    """Predictions of every row by a fit that saw no row of its group, by default model x system, [R, 2]."""
    groups = np.asarray([by(r) for r in runs.rows])
    found = np.empty((len(runs.rows), 2))
    for group in np.unique(groups):
        out = np.flatnonzero(groups == group)
        found[out] = predict_all(runs.at(out), fit(runs.at(np.flatnonzero(groups != group))))
    return found


def _log(stack: StackParams) -> Floats:
    return np.asarray(np.log(np.asarray([getattr(stack, n) for n in NAMES])))


def _params(log_values: Floats) -> StackParams:
    return StackParams(**dict(zip(NAMES, np.exp(log_values).tolist(), strict=True)))


def _slopes(batch: Batch, at: Floats, found: Floats) -> Floats:
    """Derivatives of log times by logarithms of parameters, [R, 2, P]."""
    step = 1e-3
    columns = []
    for i in range(len(at)):
        moved = at.copy()
        moved[i] += step
        columns.append((np.log(batch.predict(_params(moved))) - found) / step)
    return np.stack(columns, axis=-1)


def _client_weight(rows: Sequence[RunRow]) -> Floats:
    ttft = [CLIENT_WEIGHT.get(r.warm_up, UNDOCUMENTED_WEIGHT) for r in rows]
    return np.stack([np.asarray(ttft), np.ones(len(rows))], axis=1)


def _group_weight(rows: Sequence[RunRow]) -> Floats:
    counts = Counter(r.group for r in rows)
    return np.asarray([min(1.0, N_EFFECTIVE / counts[r.group]) for r in rows])
