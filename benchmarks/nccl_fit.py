"""Fit the collectives of a node (hardware/calibrations/<device>/nccl.yaml) to the newest 16-bit NCCL table of each device.

Run: python benchmarks/nccl_fit.py AICONFIGURATOR_FOLDER OUT   (OUT: hardware/calibrations, or anywhere to look at)
Tables of NVL72 trays end at four ranks. Eight ranks are taken from the device with the same chip and links, whose calls of two
and four ranks take as long (printed).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.calibrate.fit import fit_tables
from moesim.calibrate.importers.aiconfigurator import import_aiconfigurator
from moesim.calibrate.store import save_calibration
from moesim.calibrate.tables import MeasurementTable, concat
from moesim.specs.catalog import load_device, load_link

DEVICES = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300", "l40s", "rtx_pro_6000")
BESIDE = {"gb200": "b200_sxm", "gb300": "b300_sxm"}
SOURCE = "aiconfigurator-core 0.12.0 (PyPI, Apache-2.0), systems/data; measured by its makers, not by us"


def table_of(root: str, device: str) -> MeasurementTable:
    """The 16-bit rows of a device."""
    table = import_aiconfigurator(root, device, kinds=("nccl",), stacks=("nccl",))
    return replace(table, frame=table.frame[table.frame["kernel"].str.endswith("half")].reset_index(drop=True))


def with_eight(table: MeasurementTable, other: MeasurementTable) -> MeasurementTable:
    """A table with the rows of more ranks of another device, and how far calls that both measured differ."""
    keys = ["op_kind", "n_ranks", "message_bytes"]
    both = table.frame.merge(other.frame, on=keys, suffixes=("", "_other"))
    off = np.abs(both["measured_s"] / both["measured_s_other"] - 1)
    print(f"  the same calls differ by {off.median():.1%} in the median, {off.quantile(0.9):.1%} at p90, n {len(off)}")
    more = other.frame[other.frame["n_ranks"] > table.frame["n_ranks"].max()]
    first = table.frame.iloc[0]
    more = more.assign(device=first["device"], version=first["version"], kernel=first["kernel"])
    return concat([table, replace(other, frame=more.reset_index(drop=True))])


def main(root: str, out: Path) -> None:
    for device in DEVICES:
        print(device)
        table = table_of(root, device)
        note = ""
        if device in BESIDE:
            table = with_eight(table, table_of(root, BESIDE[device]))
            note = f"Two and four ranks are of this device; eight are {BESIDE[device]}'s, the same chip and links."
        spec = load_device(device)
        link = load_link(spec.scale_up_link).bytes_per_s if spec.scale_up_link else 0.0
        (found,) = fit_tables(table, spec, link, date="2026-11-24").calibrations
        save_calibration(replace(found, source=SOURCE, note=note), out / device / "nccl.yaml")
        for family in found.families:
            if family.held_out is not None:
                h = family.held_out
                print(
                    f"  {family.key.kind:<15} left-out sizes: median {h.median_frac:.1%}, p90 {h.p90_frac:.1%}, n {h.n}"
                )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
