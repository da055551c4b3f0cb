"""``moesim calibrate ...``: measure, import, fit, check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.exits import EXIT_CODES

__all__ = ["calibrate_app"]


def _one_thread_for_linear_algebra() -> None:
    """Before numpy is loaded: a fit is many small matrix products, which threads only slow down (10 to 30 times on two cores)."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


calibrate_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, epilog=EXIT_CODES,
    help="Measure real layers, import measured tables, fit, and check how far the fit can be believed.",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path, typer.Option(help="Where to write.")]


@calibrate_app.command(epilog=EXIT_CODES)
def profile(
    out: Out,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Up to five minutes and more shapes, or about one.")
    ] = False,
    layer: Annotated[str | None, typer.Option(help="package.module:factory of your own layer.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch on a CPU.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and routing.")] = 0,
) -> None:
    """Measure real PyTorch layers on this machine; run again to go on where it stopped."""
    from moesim.cli.calibrate import profile_command

    profile_command(out, device, "full" if full else "quick", layer, threads, seed)


@calibrate_app.command(epilog=EXIT_CODES)
def record(
    layer: Annotated[str, typer.Argument(help="reference, hf:FAMILY, or package.module:factory.")],
    out: Out,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to route.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs and weights.")] = 0,
) -> None:
    """Record which experts a layer chooses, as a routing trace."""
    from moesim.cli.calibrate import record_command

    record_command(layer, out, tokens, seed)


@calibrate_app.command("import", epilog=EXIT_CODES)
def import_(
    source: Annotated[str, typer.Argument(help="A profile's table, a CSV, a layer-profile folder, or aiconfigurator.")],
    out: Out,
    device: Annotated[str | None, typer.Option(help="Device of the catalog that was measured.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="ours=theirs, once per column of a CSV.")] = None,
    const: Annotated[list[str] | None, typer.Option(help="ours=value for what the CSV does not have.")] = None,
    time_unit: Annotated[str, typer.Option(help="Unit of the CSV's times: s, ms, us or ns.")] = "s",
    model: Annotated[str | None, typer.Option(help="Model of a layer profile.")] = None,
    version: Annotated[str, typer.Option(help="Version of the software that was measured.")] = "",
    all_versions: Annotated[bool, typer.Option(help="Take every version of each stack, not the latest only.")] = False,
) -> None:
    """Bring a measured table into the schema that fit and check read."""
    from moesim.cli.calibrate import import_command

    import_command(
        source, out, device, map_ or [], const or [], time_unit, model, version, latest_only=not all_versions
    )


@calibrate_app.command(epilog=EXIT_CODES)
def fit(
    tables: Annotated[list[Path], typer.Argument(help="Tables of one device.")],
    device: Annotated[str, typer.Option(help="Device by catalog name or file.")],
    out: Annotated[Path, typer.Option(help="A folder for <device>/<stack>.yaml, or one YAML file.")] = Path(
        "hardware/calibrations"
    ),
    kind: Annotated[
        list[str] | None, typer.Option(help="Fit these kinds of operators only: gemm, moe, ... (once per kind).")
    ] = None,
    json: Json = False,
) -> None:
    """Fit efficiencies to measured tables, and report the error on shapes that were left out."""
    _one_thread_for_linear_algebra()
    from moesim.cli.calibrate import fit_command

    fit_command(tables, device, out, kind or [], json)


@calibrate_app.command(epilog=EXIT_CODES)
def check(
    calibration: Annotated[str, typer.Argument(help="device/stack, or a calibration file.")],
    table: Annotated[Path, typer.Argument(help="A measured table of the same device.")],
    json: Json = False,
) -> None:
    """Compare a calibration with measurements, group by group."""
    from moesim.cli.calibrate import check_command

    check_command(calibration, table, json)


@calibrate_app.command(epilog=EXIT_CODES)
def runs(
    tables: Annotated[list[Path], typer.Argument(help="Runs: a CSV, or results of vllm bench, bench_serving, AIPerf.")],
    out: Annotated[Path, typer.Option(help="Where to write the stack's calibration (YAML).")],
    name: Annotated[str | None, typer.Option(help="Name of the stack; backend_generation_own by default.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="column=value for what a result file does not say, such as system=h100_sxm."),
    ] = None,
) -> None:
    """Fit the few parameters of your serving stack to runs you measured; errors are cross-validated."""
    from moesim.cli.validate import runs_command

    runs_command(tables, out, name, set_ or [])
