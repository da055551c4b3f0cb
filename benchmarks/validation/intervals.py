"""Do the intervals hold? Coverage of single results and of ratios on the shared table of runs.

Run from the checkout, with the shared data folder beside it: ``python benchmarks/validation/intervals.py``. Prints

- points: `moesim run`'s closed form of TPOT (shipped parameters, which saw these rows; bands of rows that no fit saw),
- ratios of them: a mixture against a dense model, and one model on two splits, on one system, backend and load,
- ratios of `validate`'s predictions with groups left out, of parameters and bands alike,
- what the intervals of ratios between models must be wider by than quadrature (`STRANGER_FACTOR`), and the coverage with a factor
  that comes from other groups' pairs too.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from moesim.cost import CostModel
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import Engine
from moesim.specs.workload import WorkloadSpec
from moesim.study.calibrated import calibration_for
from moesim.study.instance import build_instance
from moesim.study.points import System, measure_point
from moesim.study.uncertainty import STRANGER_FACTOR, Kinship, Spread, quotient
from moesim.study.validate.setup import hardware_of, model_of, parallel_of
from moesim.study.validate.table import RunRow, read_table

TABLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "silicon_e2e.csv"


@dataclass(frozen=True, slots=True)
class Known:
    """A run: measured and projected TPOT in seconds, and the interval of the projection."""

    row: RunRow
    is_moe: bool
    measured_s: float
    projected_s: float
    spread: Spread


def known_points(rows: Sequence[RunRow]) -> list[Known]:
    """What `moesim run` says of each run that fits and was measured."""
    systems: dict[tuple[object, ...], System] = {}
    found = []
    for row in rows:
        key = (row.model, row.precision, row.backend, row.system, row.tp_size, row.attention_dp_size, row.ep_size)
        if key not in systems:
            model = model_of(row.model, row.precision, row.backend, row.device)
            split = (
                parallel_of(row) if model.is_moe else ParallelSpec(tp_size=row.tp_size, dp_size=row.attention_dp_size)
            )
            hardware = hardware_of(row.system, split.n_ranks)
            cost = CostModel.of(hardware, calibration_for(row.backend, hardware.device.name))
            systems[key] = System("run", build_instance(model, split, hardware, cost=cost), 1)
        system = systems[key]
        lengths = [max(1, round(0.9 * n)) for n in (row.isl, row.osl)]
        workload = WorkloadSpec(input_tokens=lengths[0], output_tokens=lengths[1], concurrency=(row.concurrency,))
        rng = np.random.default_rng(0)
        point = measure_point(
            system, system.instance.hardware, workload, row.concurrency, Engine.ANALYTIC, rng, explain=False
        )
        spread = point.spread("tpot_s")
        if point.tpot_s is not None and spread is not None and row.measured_tpot_ms:
            measured_s = row.measured_tpot_ms * 1e-3
            found.append(Known(row, system.instance.model.is_moe, measured_s, point.tpot_s, spread))
    return found


def pairs_of(known: Sequence[Known]) -> tuple[list[tuple[Known, Known]], list[tuple[Known, Known]]]:
    """A mixture with a dense model, and one model on two splits, on one system, backend and load."""
    alike: dict[tuple[object, ...], list[Known]] = {}
    for k in known:
        r = k.row
        alike.setdefault((r.system, r.backend, r.isl, r.osl, r.concurrency), []).append(k)
    mixed, own = [], []
    for group in alike.values():
        for a, b in itertools.combinations(group, 2):
            if a.is_moe != b.is_moe:
                mixed.append((a, b) if a.is_moe else (b, a))
            elif a.row.model == b.row.model:
                own.append((a, b))
    return mixed, own


def coverage(pairs: Sequence[tuple[Known, Known]], kinship: Kinship) -> tuple[float, float, float]:
    """Share of ratios inside their interval, of those it decides (1 outside), and of these that went the right way."""
    inside, decided, right = [], [], []
    for a, b in pairs:
        measured, projected = b.measured_s / a.measured_s, b.projected_s / a.projected_s
        low, high = quotient(b.spread, a.spread, kinship).ends(projected)
        inside.append(low <= measured <= high)
        decided.append(not low < 1.0 < high)
        if decided[-1]:
            right.append((measured > 1.0) == (projected > 1.0))
    return float(np.mean(inside)), float(np.mean(decided)), float(np.mean(right))


def stretch(pairs: Sequence[tuple[Known, Known]]) -> None:
    """The factor on quadrature that holds 90%, pairs of groups counting alike; and coverage with both groups left out of it."""
    groups: dict[tuple[str, str], list[float]] = {}
    for a, b in pairs:
        error = np.log(b.measured_s / a.measured_s) - np.log(b.projected_s / a.projected_s)
        plain = quotient(b.spread, a.spread)
        width = (plain.high if error > 0.0 else plain.low) / STRANGER_FACTOR
        groups.setdefault((a.row.group, b.row.group), []).append(abs(float(error)) / float(width))
    inside = {}
    for key, scores in groups.items():
        others = {k: v for k, v in groups.items() if not set(k) & set(key)}
        inside[key] = np.asarray(scores) <= _factor(others)
    everyone = np.concatenate(list(inside.values()))
    print(
        f"  factor on quadrature, {len(groups)} pairs of groups: {_factor(groups):.3f}; from pairs without either group: "
        f"{everyone.mean():.1%} inside, mean over pairs of groups {np.mean([x.mean() for x in inside.values()]):.1%}"
    )


def _factor(groups: dict[tuple[str, str], list[float]]) -> float:
    """90% quantile of errors over widths, each pair of groups with the same weight, at least 1."""
    scores = np.concatenate([np.asarray(v) for v in groups.values()])
    weight = np.concatenate([np.full(len(v), 1.0 / len(v)) for v in groups.values()])
    order = np.argsort(scores)
    reached = np.cumsum(weight[order]) / weight.sum()
    return max(1.0, float(scores[order][min(int(np.searchsorted(reached, 0.9)), len(scores) - 1)]))


def left_out(module: ModuleType) -> list[Known]:
    """Predictions of `validate` with their groups left out, of parameters and of bands."""
    runs, is_moe = module.load_runs()
    projected = module.left_out(runs)
    bands = module.left_out_bands(runs.rows, is_moe, runs.log_measured - np.log(projected))
    found = []
    for row, moe, (_, tpot) in zip(runs.rows, is_moe, projected, strict=True):
        if row.measured_tpot_ms:
            low, high = bands[row.group].tpot(moe)
            found.append(Known(row, moe, row.measured_tpot_ms * 1e-3, float(tpot), Spread(-low, high)))
    return found


def _say(name: str, known: Sequence[Known]) -> None:
    inside = [k.spread.ends(k.projected_s)[0] <= k.measured_s <= k.spread.ends(k.projected_s)[1] for k in known]
    errors = [abs(k.projected_s / k.measured_s - 1.0) for k in known]
    print(f"{name}: {len(known)} runs, mean error {np.mean(errors):.1%}, {np.mean(inside):.1%} inside")
    mixed, own = pairs_of(known)
    for words, pairs, kinship in (
        ("mixture / dense", mixed, Kinship.STRANGERS), ("one model, two splits", own, Kinship.MODEL),
    ):  # fmt: skip
        inside_frac, decided_frac, right_frac = coverage(pairs, kinship)
        print(
            f"  {words}: {len(pairs)} ratios, {inside_frac:.1%} inside; {decided_frac:.0%} decided, "
            f"{right_frac:.1%} of them right"
        )


def main() -> None:
    if not TABLE.is_file():
        sys.exit(f"needs {TABLE}")
    _say("points of `run`", known_points([row for _, row in read_table(TABLE) if isinstance(row, RunRow)]))
    spec = importlib.util.spec_from_file_location("regenerate", Path(__file__).with_name("regenerate.py"))
    if spec is None or spec.loader is None:
        sys.exit("needs regenerate.py beside it")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = left_out(module)
    _say("`validate`, groups left out", known)
    stretch(pairs_of(known)[0])


if __name__ == "__main__":
    main()
