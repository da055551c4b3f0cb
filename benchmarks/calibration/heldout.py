"""Errors of the calibration fits on shapes left out of them, and (on request) the shipped calibrations.

Needs the published tables: `pip install aiconfigurator-core==0.12.0` (82 MB, Linux), or its unpacked folder as --source.

    python benchmarks/calibration/heldout.py run --device h100_sxm --work DIR [--source FOLDER] [--write]
    python benchmarks/calibration/heldout.py report --work DIR          # rewrites the tables in docs/calibration.md

`run` imports (kept in DIR), leaves shapes out, and with --write fits on everything and writes hardware/calibrations/<device>/.
"""

from __future__ import annotations

import os

# Many small matrix products: threads of the linear algebra library only get in each other's way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from moesim.calibrate.fit import FitSettings, fit_with_errors
from moesim.calibrate.fit_errors import HeldOut, cross_coverage
from moesim.calibrate.importers.aiconfigurator import import_aiconfigurator
from moesim.calibrate.store import find_calibration, save_calibration
from moesim.calibrate.tables import FamilyRows, MeasurementTable, read_table, write_table
from moesim.cost.forms_calibration import Calibration, Family
from moesim.cost.forms_collective import COLLECTIVES_FITTED
from moesim.errors import CatalogError
from moesim.specs.catalog import load_device, load_link

ROOT = Path(__file__).resolve().parents[2]
TARGET_DEVICES = ("h100_sxm", "h200_sxm", "b200_sxm")
DEVICE_GROUPS = {
    "H100, H200, B200": TARGET_DEVICES,
    "B300, GB200, GB300": ("b300_sxm", "gb200", "gb300"),
    "A100, L40S, RTX PRO 6000": ("a100_sxm", "l40s", "rtx_pro_6000"),
}
START, END = "<!-- held-out tables: start -->", "<!-- held-out tables: end -->"
FEWEST_ROWS, FEWEST_OF_COLLECTIVES = 50, 40
NOT_SHIPPED = ("_eager", " int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--device", default="h100_sxm")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--source", default=None)
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--only", action="append", help="kinds of tables to fit anew; the shipped files keep the others"
    )
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "run":
        run(args.device, args.work, args.source, args.write, args.date, tuple(args.only or ()))
    else:
        report(args.work)


def tables(
    device: str, work: Path, source: str | None, only: tuple[str, ...] = ()
) -> list[tuple[MeasurementTable, bool]]:
    """The newest version of every table, and for the target devices all older MoE tables (measured, not shipped)."""
    if only:
        return [(import_aiconfigurator(source, device, kinds=only), True)]
    found = []
    for name, options in ((device, {}), (f"{device}.moe_all", {"kinds": ("moe",), "latest_only": False})):
        if options and device not in TARGET_DEVICES:
            continue
        path = work / f"{name}.parquet"
        if not path.is_file():
            write_table(import_aiconfigurator(source, device, **options), path)
        found.append((read_table(path), not options))
    return found


def run(device_name: str, work: Path, source: str | None, write: bool, date: str, only: tuple[str, ...] = ()) -> None:
    device = load_device(device_name)
    link = load_link(device.scale_up_link).bytes_per_s if device.scale_up_link else 0.0
    settings, seen = FitSettings(), set()
    shipped: dict[tuple[str, str], list[Family]] = {}
    for table, is_newest in tables(device_name, work, source, only):
        for rows in table.families():
            fewest = FEWEST_OF_COLLECTIVES if rows.key.kind in COLLECTIVES_FITTED else FEWEST_ROWS
            if rows.name in seen or len(rows.frame) < fewest:
                continue
            seen.add(rows.name)
            start = time.perf_counter()
            family, held_out = fit_with_errors(rows, device, link, settings)
            if is_newest and not any(word in rows.key.kernel for word in NOT_SHIPPED):
                shipped.setdefault((rows.stack, rows.version), []).append(family)
            if held_out is not None:
                keep(work, rows, held_out)
            line = family.held_out and f"median {family.held_out.median_frac:.1%} mean {family.held_out.mean_frac:.1%}"
            print(f"{rows.name}: {len(rows.frame)} rows, {line}, {time.perf_counter() - start:.1f} s", flush=True)
    if write and only:
        add(device_name, shipped)
    elif write:
        ship(device_name, shipped, date)


def keep(work: Path, rows: FamilyRows, held_out: HeldOut) -> None:
    folder = work / "heldout" / rows.device
    folder.mkdir(parents=True, exist_ok=True)
    name = rows.name.replace("/", "__").replace(" ", "_")
    about = {"device": rows.device, "stack": rows.stack, "version": rows.version, **asdict(rows.key)}
    about |= {"n_rows": len(rows.frame), "n_groups": held_out.n_groups, "left_out": held_out.left_out}
    arrays = {
        "log_ratio": held_out.log_ratio,
        "which": held_out.which,
        "fold": held_out.fold,
        "distance": held_out.distance,
    }
    np.savez_compressed(folder / f"{name}.npz", about=json.dumps(about), **arrays)


def ship(device: str, shipped: dict[tuple[str, str], list[Family]], date: str) -> None:
    """One file per stack; tables of another version of a stack join its newest, NCCL's joins every stack."""
    nccl = [f for (stack, _), families in shipped.items() if stack == "nccl" for f in families]
    for stack in sorted({stack for stack, _ in shipped}):
        versions = sorted((v for s, v in shipped if s == stack), key=lambda v: -len(shipped[stack, v]))
        families = [
            f
            if version == versions[0]
            else replace(f, key=replace(f.key, kernel=f"{f.key.kernel} ({stack} {version})"))
            for version in versions
            for f in shipped[stack, version]
            if expanded(f)
        ]
        extra = nccl + borrowed(stack, families, shipped) if stack != "nccl" else []
        source = "aiconfigurator-core 0.12.0 (PyPI, Apache-2.0), systems/data; measured by its makers, not by us"
        note = "Loads of power-law rows rebuilt from the published rule; see docs/calibration.md."
        calibration = Calibration(device, stack, versions[0], (*families, *extra), source, date, note)
        save_calibration(calibration, ROOT / "hardware" / "calibrations" / device / f"{stack}.yaml")


def add(device: str, fitted: dict[tuple[str, str], list[Family]]) -> None:
    """Put families into the shipped files of their stacks, in place of those of the same kinds."""
    for stack in sorted({stack for stack, _ in fitted}):
        try:
            old = find_calibration(f"{device}/{stack}")
        except CatalogError:
            print(f"{device}/{stack}: no shipped file to add to")
            continue
        new = [
            f
            if version == old.version
            else replace(f, key=replace(f.key, kernel=f"{f.key.kernel} ({stack} {version})"))
            for (other, version), families in fitted.items()
            if other == stack
            for f in families
        ]
        kinds = {f.key.kind for f in new}
        families = (*(f for f in old.families if f.key.kind not in kinds), *new)
        save_calibration(replace(old, families=families), ROOT / "hardware" / "calibrations" / device / f"{stack}.yaml")


MLA = ("mla_attention_prefill", "mla_attention_decode")


def expanded(family: Family) -> bool:
    """False for prompts' MLA scores over the latent: SGLang's rows on Hopper (see docs/calibration.md); programs expand it."""
    return family.key.kind != "mla_attention_prefill" or family.key.kernel != "flash_attention"


def borrowed(stack: str, own: list[Family], shipped: dict[tuple[str, str], list[Family]]) -> list[Family]:
    """Kernels that a stack has no sound table for: block-fp8 GEMM (DeepGEMM) and MLA scores are SGLang's.

    On Hopper, where SGLang's MLA rows are of other programs (prompts over the latent, 8-bit caches cast before use), they are
    TensorRT-LLM's.
    """
    have = {(f.key.kind, f.key.dtype) for f in own}
    is_sound = all(expanded(f) for (other, _), families in shipped.items() if other == "sglang" for f in families)
    kinds = {"sglang": ("gemm", *MLA)} if is_sound else {"sglang": ("gemm",), "trtllm": MLA}
    return [
        replace(f, key=replace(f.key, kernel=f"{f.key.kernel} (borrowed from {other} {version})"))
        for (other, version), families in shipped.items()
        if other != stack
        for f in families
        if f.key.kind in kinds.get(other, ()) and (f.key.kind, f.key.dtype) not in have
    ]


def report(work: Path) -> None:
    parts = []
    for path in sorted((work / "heldout").glob("*/*.npz")):
        with np.load(path) as stored:
            about = json.loads(str(stored["about"]))
            held = HeldOut(
                stored["log_ratio"],
                stored["which"],
                stored["fold"],
                stored["distance"],
                about["n_groups"],
                about["left_out"],
            )
        parts.append((about, held, cross_coverage(held)))
    text = "\n".join([*pooled_table(parts), "", *family_tables(parts)])
    docs = ROOT / "docs" / "calibration.md"
    page = docs.read_text(encoding="utf-8")
    before, rest = page.split(START)
    after = rest.split(END)[1]
    docs.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")
    print(text)


HEAD = (
    "| group | families | points | shapes | median | mean | bias | P90 | 90% interval covers |\n|---" + "|--:" * 8 + "|"
)


def row(name: str, parts: list) -> str:
    log_ratio = np.concatenate([h.log_ratio for _, h, _ in parts])
    covered = np.concatenate([c for _, _, c in parts])
    signed = np.expm1(log_ratio)
    size = np.abs(signed)
    numbers = [np.median(size), size.mean(), signed.mean(), np.quantile(size, 0.9), covered.mean()]
    shapes = sorted({h.n_groups for _, h, _ in parts})
    span = str(shapes[0]) if len(shapes) == 1 else f"{shapes[0]}-{shapes[-1]}"
    cells = [f"{numbers[0]:.1%}", f"{numbers[1]:.1%}", f"{numbers[2]:+.1%}", f"{numbers[3]:.0%}", f"{numbers[4]:.1%}"]
    return f"| {name} | {len(parts)} | {len(size):,} | {span} | " + " | ".join(cells) + " |"


def is_moe(about: dict, held: HeldOut) -> bool:
    """A MoE family whose held-out points are of left-out models, not of left-out slices of its only model."""
    return about["kind"] == "moe" and held.left_out == "shapes"


def pooled_table(parts: list) -> list[str]:
    known = {device for devices in DEVICE_GROUPS.values() for device in devices}
    unknown = {p[0]["device"] for p in parts} - known
    if unknown:
        raise SystemExit(f"devices in no group of the report: {sorted(unknown)}")
    groups = [
        ("MoE layer, families with 8+ model shapes", lambda a, h: is_moe(a, h) and h.n_groups >= 8),
        (
            "MoE layer, families with 2-7 model shapes",
            lambda a, h: is_moe(a, h) and h.n_groups < 8,
        ),
        ("GEMM", lambda a, h: a["kind"] == "gemm"),
        ("attention prefill, GQA", lambda a, h: a["kind"] == "attention_prefill"),
        ("attention decode, GQA", lambda a, h: a["kind"] == "attention_decode"),
        ("attention prefill, MLA", lambda a, h: a["kind"] == "mla_attention_prefill"),
        ("attention decode, MLA", lambda a, h: a["kind"] == "mla_attention_decode"),
        ("linear attention, prefill", lambda a, h: a["kind"] == "linear_attention_prefill"),
        ("linear attention, decode", lambda a, h: a["kind"] == "linear_attention_decode"),
        ("NCCL collectives, one node", lambda a, h: a["stack"] == "nccl"),
        ("custom all-reduce, one node", lambda a, h: a["kind"] == "all_reduce" and a["stack"] != "nccl"),
    ]
    lines = []
    for title, devices in DEVICE_GROUPS.items():
        chosen = [p for p in parts if p[0]["device"] in devices]
        lines += [f"**{title}**", "", HEAD]
        for name, test in groups:
            members = [p for p in chosen if test(p[0], p[1])]
            if members:
                lines.append(row(name, members))
        lines.append("")
    return lines


def family_tables(parts: list) -> list[str]:
    lines = ["**MoE families with 8 and more model shapes**", "", HEAD]
    for part in parts:
        about, held, _ = part
        if is_moe(about, held) and held.n_groups >= 8 and about["device"] in TARGET_DEVICES:
            name = f"{about['device']} {about['stack']} {about['version']} {about['dtype']} {about['kernel'][:60]}"
            lines.append(row(name, [part]))
    lines += ["", "**Other kinds by device and stack**", "", HEAD]
    keys = sorted(
        {(p[0]["kind"], p[0]["device"], p[0]["stack"], p[0]["version"]) for p in parts if p[0]["kind"] != "moe"}
    )
    for key in keys:
        members = [p for p in parts if (p[0]["kind"], p[0]["device"], p[0]["stack"], p[0]["version"]) == key]
        lines.append(row(" ".join(key), members))
    return lines


if __name__ == "__main__":
    main()
