"""How much predictions owe to what is known of like runs: errors with groups, models, systems and clients left out.

Run from the checkout, with the shared data folder beside it: ``python benchmarks/validation/left_out.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from regenerate import load_runs

from moesim.study.validate import predict, workload
from moesim.study.validate.fit import Runs, left_out
from moesim.study.validate.launches import Launch
from moesim.study.validate.table import RunRow

LEFT_OUT: dict[str, Callable[[RunRow], str]] = {
    "group (model x system)": lambda r: r.group,
    "model, on every system": lambda r: r.model,
    "system, with every model": lambda r: r.system,
    "client (warmed up, not, undocumented)": lambda r: r.warm_up,
}


def say(name: str, runs: Runs, by: Callable[[RunRow], str]) -> None:
    """Mean and median errors of TTFT, of TTFT where clients warmed up, and of TPOT."""
    errors = np.abs(np.exp(np.log(left_out(runs, by=by)) - runs.log_measured) - 1.0)
    warm = np.asarray([r.warm_up == "yes" for r in runs.rows])
    cells = [
        f"{np.nanmean(x):.1%}, {np.nanmedian(x):.1%}"
        for x in (errors[:, 0], errors[warm, 0], errors[:, 1], errors[warm, 1])
    ]
    print("{}: TTFT {}; warmed up {}; TPOT {}; warmed up {}".format(name, *cells))


def main() -> None:
    runs, _ = load_runs()
    for name, by in LEFT_OUT.items():
        say(name, runs, by)
    default = Launch()
    with (
        patch.object(workload, "launch_of", lambda row: default),
        patch.object(predict, "launch_of", lambda row: default),
    ):
        runs, _ = load_runs()
        say("group, without knowing how engines were launched", runs, LEFT_OUT["group (model x system)"])


if __name__ == "__main__":
    main()
