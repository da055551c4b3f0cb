"""What the ``moesim calibrate`` commands do."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from moesim.calibrate.check import CheckReport, check
from moesim.calibrate.fit import fit_tables
from moesim.calibrate.fit_outcomes import FitResult
from moesim.calibrate.importing import import_table
from moesim.calibrate.profile import Progress, profile, record_routing
from moesim.calibrate.store import find_calibration, load_calibration, save_calibration
from moesim.calibrate.tables import MeasurementTable, read_table, write_table
from moesim.cli.progress import progress_bar
from moesim.cli.table import print_json, table
from moesim.cost.forms_calibration import Calibration
from moesim.errors import InputError
from moesim.specs.catalog import load_device, load_link, load_model

__all__ = ["check_command", "fit_command", "import_command", "profile_command", "record_command"]


def profile_command(
    out: Path, device: str, mode: Literal["quick", "full"], layer: str | None, threads: int, seed: int
) -> None:
    """Profile with a progress bar; Ctrl-C keeps what is measured."""
    with progress_bar() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(p: Progress) -> None:
            bar.update(
                task, description=p.label, completed=max(p.n_done / max(1, p.n_planned), p.elapsed_s / p.budget_s)
            )

        found = profile(device, mode, out, layer, tell, seed, n_threads=threads)
    print(
        f"{found.device_name} ({found.device}): {found.n_measured} of {found.n_planned} points in {found.elapsed_s:.0f} s"
    )
    print(f"typical spread of a point: {found.median_spread_frac:.1%}")
    for failure in found.failures:
        print(f"not measured: {failure}")
    if not found.is_complete:
        print("not complete; run the same command again to go on")
    described = out / "device.yaml"
    device_file = f"./{described}" if described.is_file() and not described.is_absolute() else described
    print(f"written to {found.table}\nnext: moesim calibrate fit {found.table} --device {device_file}")
    if found.is_interrupted:
        raise KeyboardInterrupt


def record_command(layer: str, out: Path, tokens: int, seed: int) -> None:
    """Record a trace and say what is in it."""
    found = record_routing(layer, out, tokens, seed)
    shape = f"{found.n_tokens} tokens, {found.n_layers} layers, {found.top_k} of {found.n_experts} experts"
    print(f"{found.model}: {shape}\nwritten to {found.path}")


def import_command(
    source: str, out: Path, device: str | None, mapping: Sequence[str], constants: Sequence[str], time_unit: str,
    model: str | None, version: str, *, latest_only: bool,
) -> None:  # fmt: skip
    """Import and write a table."""
    found = import_table(
        source, device=device, columns=_pairs(mapping, "--map"), constants=_pairs(constants, "--const"),
        time_unit=time_unit, model=load_model(model) if model else None, version=version, latest_only=latest_only,
    )  # fmt: skip
    write_table(found, out)
    rows = [(rows.name, str(len(rows.frame)), str(int(rows.groups.nunique()))) for rows in found.families()]
    table(("family", "rows", "shapes"), rows)
    print(f"written to {out}")


def fit_command(tables: Sequence[Path], device: str, out: Path, kinds: Sequence[str], as_json: bool) -> None:
    """Fit every stack in the tables, write, and print held-out errors, what was left out and what to mind."""
    spec = load_device(device)
    link = load_link(spec.scale_up_link).bytes_per_s if spec.scale_up_link else 0.0
    read = [read_table(path).of_kinds(kinds) for path in tables]
    _check_out(read, out)
    with progress_bar() as bar:
        task = bar.add_task("fitting", total=None)
        found = fit_tables(
            read, spec, link, date=datetime.date.today().isoformat(),
            progress=lambda name: bar.update(task, description=f"fitting {name}"),
        )  # fmt: skip
    paths = [_path(calibration, out) for calibration in found.calibrations]
    for calibration, path in zip(found.calibrations, paths, strict=True):
        save_calibration(calibration, path)
    if as_json:
        print_json(_fit_dict(found, paths))
        return
    for calibration, path in zip(found.calibrations, paths, strict=True):
        _print_fit(calibration, path)
    for left in found.left_out:
        print(f"left out: {left.text}")
    for marked in found.marked:
        print(f"mind: {marked.text}")


def _print_fit(calibration: Calibration, path: Path) -> None:
    print(f"{calibration.name}, errors on shapes left out of the fit")
    rows = []
    for family in calibration.families:
        h = family.held_out
        errors: tuple[str, ...] = ("not measured", "", "", "", "")
        if h is not None:
            errors = _percent(h.median_frac, h.mean_frac, h.bias_frac, h.p90_frac, h.coverage_frac)
        rows.append((family.key.name, str(family.n_points), str(family.n_groups), *errors))
    table(("family", "points", "shapes", "median", "mean", "bias", "P90", "90% covers"), rows)
    if calibration.moe_kernel:
        print(f"MoE layers are estimated as {calibration.moe_kernel!r}; name another as {calibration.stack}:KERNEL")
    print(f"written to {path}")


def check_command(calibration: str, table_path: Path, as_json: bool) -> None:
    """Check and print by group."""
    found = load_calibration(calibration) if calibration.endswith((".yaml", ".yml")) else find_calibration(calibration)
    report: CheckReport = check(found, read_table(table_path))
    if as_json:
        print_json(report.as_dict())
        return
    rows = [
        (r.group, str(r.n), str(r.n_shapes), *_percent(r.median_frac, r.mean_frac, r.bias_frac, r.p90_frac, r.coverage_frac),
         str(r.n_outside_domain))
        for r in report.rows
    ]  # fmt: skip
    table(("group", "rows", "shapes", "median", "mean", "bias", "P90", "90% covers", "outside domain"), rows)
    for group in report.unknown_groups:
        print(f"nothing known on {group}")
    if report.outside_rows:
        shown = ", ".join(str(row) for row in report.outside_rows[:20])
        more = f" and {len(report.outside_rows) - 20} more" if len(report.outside_rows) > 20 else ""
        print(f"rows outside the domain of the fit: {shown}{more}")


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        ours, sign, theirs = word.partition("=")
        if not sign or not ours or not theirs:
            raise InputError("needs the form ours=theirs", field=option, value=word)
        pairs[ours] = theirs
    return pairs


def _check_out(tables: Sequence[MeasurementTable], out: Path) -> None:
    """Before the work: a single YAML file takes only a single stack."""
    stacks = {f"{r.stack} {r.version}".strip() for t in tables for r in t.families()}
    if out.suffix in (".yaml", ".yml") and len(stacks) > 1:
        raise InputError(
            "the tables hold several stacks; name a folder",
            field="--out",
            value=str(out),
            allowed=", ".join(sorted(stacks)),
        )


def _path(calibration: Calibration, out: Path) -> Path:
    return out if out.suffix in (".yaml", ".yml") else out / calibration.device / f"{calibration.stack}.yaml"


def _fit_dict(found: FitResult, paths: Sequence[Path]) -> dict[str, object]:
    return {
        "calibrations": [_errors(c, path) for c, path in zip(found.calibrations, paths, strict=True)],
        "left_out": [asdict(left) for left in found.left_out],
        "marked": [asdict(marked) for marked in found.marked],
    }


def _errors(calibration: Calibration, path: Path) -> dict[str, object]:
    families = [
        {
            "family": f.key.name, "n_points": f.n_points, "n_shapes": f.n_groups, "is_converged": f.is_converged,
            "held_out": asdict(f.held_out) if f.held_out else None,
        }
        for f in calibration.families
    ]  # fmt: skip
    return {
        "calibration": calibration.name, "file": str(path), "moe_kernel": calibration.moe_kernel, "families": families,
    }  # fmt: skip


def _percent(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.1%}" for value in values)
