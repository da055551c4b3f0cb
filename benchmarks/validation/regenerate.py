"""Fit the shipped stacks on the shared table of runs, and write stacks, intervals and the accuracy snapshot for review.

Run from the checkout, with the shared data folder beside it: ``python benchmarks/validation/regenerate.py``.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from moesim.study.stack_files import FOLDER, save_bands, save_stack
from moesim.study.validate.accuracy import Judged, accuracy_table, bands_from, left_out_bands
from moesim.study.validate.fit import Runs, fit_all, left_out, predict_all, stack_key
from moesim.study.validate.predict import Batch
from moesim.study.validate.table import RunRow, read_table
from moesim.study.validate.workload import Workbench

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT.parent / "shared" / "data" / "silicon_e2e.csv"
SNAPSHOT = Path(__file__).with_name("accuracy.json")
SOURCE = (
    "1,646 public runs of the silicon sample of aiconfigurator-core 0.12.0 (cleaned), over kernel tables of the same package; "
    "fit and left-out errors: benchmarks/validation"
)


def load_runs() -> tuple[Runs, list[bool]]:
    """All rows with their features, and which are of mixtures."""
    rows = [row for _, row in read_table(TABLE) if isinstance(row, RunRow)]
    bench = Workbench()
    features = [bench.features(row) for row in rows]
    return Runs(tuple(rows), Batch.of(rows, features)), [bench.instance(row).model.is_moe for row in rows]


def snapshot(runs: Runs, is_moe: list[bool], projected: np.ndarray, errors: np.ndarray) -> list[dict[str, object]]:
    """Accuracy with groups left out, both of the parameters and of the intervals."""
    bands = left_out_bands(runs.rows, is_moe, errors)
    judged = []
    for row, moe, (ttft, tpot) in zip(runs.rows, is_moe, projected, strict=True):
        own = bands[row.group]
        low = (ttft * np.exp(own.ttft(row.warm_up)[0]), tpot * np.exp(own.tpot(moe)[0]))
        high = (ttft * np.exp(own.ttft(row.warm_up)[1]), tpot * np.exp(own.tpot(moe)[1]))
        judged.append(Judged(row, moe, (ttft, tpot), low, high))
    return [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(a).items()} for a in accuracy_table(judged)
    ]


def main() -> None:
    if not TABLE.is_file():
        sys.exit(f"needs {TABLE}")
    runs, is_moe = load_runs()
    stacks, projected = fit_all(runs), left_out(runs)
    errors = runs.log_measured - np.log(projected)
    found = snapshot(runs, is_moe, projected, errors)
    for name, stack in stacks.items():
        used = [r for r in runs.rows if name in ("default", r.backend, stack_key(r))]
        save_stack(
            ROOT / FOLDER / f"{name}.yaml", name, stack, source=SOURCE, date="2026-11", n_rows=len(used),
            n_groups=len({r.group for r in used}),
        )  # fmt: skip
    save_bands(ROOT / FOLDER / "intervals.yaml", bands_from(runs.rows, is_moe, errors), SOURCE)
    inside = predict_all(runs, stacks)
    alone = [
        Judged(r, m, (p[0], p[1]), (p[0], p[1]), (p[0], p[1]))
        for r, m, p in zip(runs.rows, is_moe, inside, strict=True)
    ]
    plain = accuracy_table(alone)
    seen = {f"{a.name} {a.metric}": round(a.mean_abs_frac, 4) for a in plain[:10]}
    SNAPSHOT.write_text(json.dumps({"left_out": found, "seen_mean_abs_frac": seen}, indent=1) + "\n", encoding="utf-8")
    for row in found:
        figures = "n={n:5} mean {mean_abs_frac:.3f} median {median_abs_frac:.3f} bias {bias_frac:+.3f} in 90% {coverage_frac:.2f}"
        print("{name:62} {metric} ".format(**row) + figures.format(**row))


if __name__ == "__main__":
    main()
