"""What ten runs of a user's own stack are worth: errors on the group's other runs before and after `calibrate runs`' fit.

Run from the checkout, with the shared data folder beside it: ``python benchmarks/validation/ten_runs.py``.
"""

from __future__ import annotations

import numpy as np
from regenerate import load_runs

from moesim.study.validate.fit import Runs, fit_all, fit_one, stack_for, stack_key
from moesim.study.validate.own_runs import OWN_WIDTH

N_RUNS, N_DRAWS, FEWEST = 10, 5, 20


def mean_error(runs: Runs, projected: np.ndarray) -> np.ndarray:
    """Mean absolute error of TTFT and TPOT."""
    return np.nanmean(np.abs(np.exp(np.log(projected) - runs.log_measured) - 1.0), axis=0)


def before_and_after(runs: Runs, rows: np.ndarray, others: np.ndarray, *, seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Errors with what the other runs say, and with ten of this group's runs, over a few draws of them."""
    stacks = fit_all(runs.at(others))
    prior = stack_for(stack_key(runs.rows[rows[0]]), stacks) if seen else stacks["default"]
    found = []
    for seed in range(N_DRAWS):
        own = np.random.default_rng(seed).choice(rows, N_RUNS, replace=False)
        rest = runs.at(np.setdiff1d(rows, own))
        fitted = fit_one(runs.at(own), prior, OWN_WIDTH)
        found.append([mean_error(rest, rest.batch.predict(stack)) for stack in (prior, fitted)])
    before, after = np.mean(found, axis=0)
    return before, after


def main() -> None:
    runs, _ = load_runs()
    groups = np.asarray([r.group for r in runs.rows])
    backends = np.asarray([r.backend for r in runs.rows])
    for seen in (False, True):
        print("backend seen in other groups" if seen else "no run of the backend or the group seen")
        totals = []
        for group, backend in sorted(set(zip(groups.tolist(), backends.tolist(), strict=True))):
            rows = np.flatnonzero((groups == group) & (backends == backend))
            if len(rows) < FEWEST:
                continue
            others = np.flatnonzero((groups != group) & (seen | (backends != backend)))
            before, after = before_and_after(runs, rows, others, seen=seen)
            totals.append((before, after))
            print(
                f"  {group}, {backend}: TPOT {before[1]:.1%} to {after[1]:.1%}, TTFT {before[0]:.1%} to {after[0]:.1%}"
            )
        before, after = np.mean(totals, axis=0)
        print(
            f"  mean of {len(totals)}: TPOT {before[1]:.1%} to {after[1]:.1%}, TTFT {before[0]:.1%} to {after[0]:.1%}"
        )


if __name__ == "__main__":
    main()
