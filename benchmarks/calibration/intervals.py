"""Make the intervals of the shipped calibrations anew from held-out points that `heldout.py run` has kept, without fitting.

    python benchmarks/calibration/intervals.py --work DIR

A family of a file is matched with its held-out points by kind, formats and its stored errors, which do not change.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.calibrate.fit_errors import HeldOut, conformal_interval, cross_coverage, error_stats
from moesim.calibrate.store import load_calibration, save_calibration
from moesim.cost.forms_calibration import Family

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    for folder in sorted((work / "heldout").iterdir()):
        kept = [read(path) for path in sorted(folder.glob("*.npz"))]
        for path in sorted((ROOT / "hardware" / "calibrations" / folder.name).glob("*.yaml")):
            calibration = load_calibration(path)
            families = tuple(with_interval(f, kept) for f in calibration.families)
            save_calibration(replace(calibration, families=families), path)
            print(f"{path.relative_to(ROOT)}: {len(families)} families")


def read(path: Path) -> tuple[dict, HeldOut]:
    with np.load(path) as stored:
        about = json.loads(str(stored["about"]))
        arrays = [stored[name] for name in ("log_ratio", "which", "fold", "distance")]
    return about, HeldOut(*arrays, about["n_groups"], about["left_out"])


def with_interval(family: Family, kept: list[tuple[dict, HeldOut]]) -> Family:
    stored, key = family.held_out, family.key
    if stored is None:
        return family
    for about, held in kept:
        same = all(about[n] == getattr(key, n) for n in ("kind", "dtype", "act_dtype", "kv_dtype"))
        if same and len(held.log_ratio) == stored.n and about["kernel"] in key.kernel:
            stats = error_stats(held, cross_coverage(held))
            if np.isclose(stats.mean_frac, stored.mean_frac, rtol=1e-4):
                return replace(family, interval=conformal_interval(held), held_out=stats)
    raise SystemExit(f"no held-out points of {key.name}")


if __name__ == "__main__":
    main()
