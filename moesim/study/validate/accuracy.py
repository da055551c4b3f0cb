"""How far predictions are from measurements: tables by group, targets, and bands from rows that fits never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.study.stack_files import Bands, band_of
from moesim.study.validate.table import RunRow

__all__ = ["Accuracy", "Judged", "accuracy_of", "accuracy_table", "bands_from", "left_out_bands"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """A row with its prediction and 90% interval in seconds, TTFT then TPOT."""

    row: RunRow
    is_moe: bool
    projected: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]

    def measured(self, which: int) -> float | None:
        """Measured seconds of TTFT (0) or TPOT (1)."""
        ms = (self.row.measured_ttft_ms, self.row.measured_tpot_ms)[which]
        return None if ms is None else ms * 1e-3

    def error(self, which: int) -> float | None:
        """Projected over measured, less one."""
        known = self.measured(which)
        return None if known is None else self.projected[which] / known - 1.0


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors of one metric over some rows: mean and median of their size, mean, and how many intervals hold the measurement."""

    name: str
    metric: str
    n: int
    mean_abs_frac: float
    median_abs_frac: float
    bias_frac: float
    coverage_frac: float


def accuracy_of(name: str, rows: Sequence[Judged], which: int) -> Accuracy | None:
    """Errors of TTFT (0) or TPOT (1); None where nothing was measured."""
    known = [(e, r) for r in rows if (e := r.error(which)) is not None]
    if not known:
        return None
    errors = np.asarray([e for e, _ in known])
    inside = [r.low[which] <= (r.measured(which) or 0.0) <= r.high[which] for _, r in known]
    size = np.abs(errors)
    return Accuracy(
        name, ("TTFT", "TPOT")[which], len(known), float(size.mean()), float(np.median(size)), float(errors.mean()),
        float(np.mean(inside)),
    )  # fmt: skip


SLICES: tuple[tuple[str, Callable[[Judged], bool]], ...] = (
    ("all", lambda r: True),
    ("MoE", lambda r: r.is_moe),
    ("dense", lambda r: not r.is_moe),
    ("warmed up", lambda r: r.row.warm_up == "yes"),
    ("MoE, warmed up", lambda r: r.is_moe and r.row.warm_up == "yes"),
)


def accuracy_table(rows: Sequence[Judged]) -> list[Accuracy]:
    """All rows, slices of them, and every model x system x backend."""
    found: list[Accuracy | None] = []
    for name, keep in SLICES:
        part = [r for r in rows if keep(r)]
        found += [accuracy_of(name, part, 1), accuracy_of(name, part, 0)]
    for name in _names(rows):
        part = [r for r in rows if f"{r.row.group}, {r.row.backend}" == name]
        found += [accuracy_of(name, part, 1), accuracy_of(name, part, 0)]
    return [x for x in found if x is not None]


def _names(rows: Iterable[Judged]) -> list[str]:
    return sorted({f"{r.row.group}, {r.row.backend}" for r in rows})


def bands_from(rows: Sequence[RunRow], is_moe: Sequence[bool], log_errors: Floats) -> Bands:
    """Bands from log(measured / predicted), [R, 2] TTFT and TPOT, of rows that the fit did not see."""
    warm = np.asarray([r.warm_up if r.warm_up in ("yes", "no") else "other" for r in rows])
    groups = np.asarray([r.group for r in rows])
    whole = Bands()

    def band(keep: NDArray[np.bool_], which: int, default: tuple[float, float]) -> tuple[float, float]:
        use = keep & np.isfinite(log_errors[:, which])
        return band_of(log_errors[use, which], len(set(groups[use]))) if use.sum() >= 20 else default

    moe = np.asarray(is_moe, dtype=bool)
    return Bands(
        tpot_moe=band(moe, 1, whole.tpot_moe), tpot_dense=band(~moe, 1, whole.tpot_dense),
        ttft_warm=band(warm == "yes", 0, whole.ttft_warm),
        ttft_cold=band(warm == "no", 0, whole.ttft_cold), ttft_other=band(warm == "other", 0, whole.ttft_other),
    )  # fmt: skip


def left_out_bands(rows: Sequence[RunRow], is_moe: Sequence[bool], log_errors: Floats) -> dict[str, Bands]:
    """For every group the bands that the other groups' errors give, so that coverage is measured on unseen rows too."""
    groups = np.asarray([r.group for r in rows])
    found = {}
    for group in np.unique(groups):
        index = np.flatnonzero(groups != group)
        found[str(group)] = bands_from(
            [rows[int(i)] for i in index], [is_moe[int(i)] for i in index], log_errors[index]
        )
    return found
