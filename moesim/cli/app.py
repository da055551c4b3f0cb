"""All commands in one table; each hands over to a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim._version import __version__
from moesim.cli.calibrate_app import calibrate_app
from moesim.cli.exits import EXIT_CODES
from moesim.cli.validate import validate_app

__all__ = ["app"]

app = typer.Typer(
    name="moesim", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    epilog=EXIT_CODES,
    help="Where tokens of a Mixture-of-Experts model really go, and what that costs on real hardware.",
)  # fmt: skip

app.add_typer(calibrate_app, name="calibrate")
app.add_typer(validate_app, name="validate")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32, help="Seed of every random draw.")]
MOST_RANKS, MOST_TOKENS, MOST_PLANNED = 2**17, 10**9, 1024


def _version(value: bool) -> None:
    if value:
        typer.echo(f"moesim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_CODES)
def run(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario's name (see `moesim list`) or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; reports/<scenario> by default.")] = None,
    engine: Annotated[str | None, typer.Option(help="analytic or flow; the scenario's own by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32, help="Overrides the scenario's seed.")] = None,
) -> None:
    """Run a scenario file and write a report."""
    from moesim.cli.run import run_command

    run_command(scenario, out, engine, seed)


@app.command(epilog=EXIT_CODES)
def serve(
    scenario: Annotated[str, typer.Argument(help="A shipped serve scenario's name or a YAML file.")],
    requests: Annotated[
        Path | None, typer.Option(help="Requests (JSONL, CSV, Parquet) instead of the scenario's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; reports/serve-<scenario> by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides the scenario's seed.")] = None,
) -> None:
    """Serve requests over time: queues, batches, TTFT, TPOT, goodput."""
    from moesim.cli.serve import serve_command

    serve_command(scenario, requests, out, seed)


@app.command(epilog=EXIT_CODES)
def sweep(
    sweep: Annotated[str, typer.Argument(help="A shipped sweep's name or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Where to keep answers; reports/sweep-<name> by default.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes on this machine; -1 for all cores.")] = 1,
    engine: Annotated[str | None, typer.Option(help="analytic, flow or serving; the sweep's own by default.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers do the cases.")
    ] = None,
) -> None:
    """Vary a scenario's fields, keep every answer, and report what to build or buy."""
    from moesim.cli.sweep import sweep_command

    sweep_command(sweep, out, jobs, engine, scheduler)


@app.command(epilog=EXIT_CODES)
def report(directory: Annotated[Path, typer.Argument(help="A folder that `moesim run` wrote.")]) -> None:
    """Render a run's report again, without simulating."""
    from moesim.cli.run import report_command

    report_command(directory)


@app.command(epilog=EXIT_CODES)
def estimate(
    hardware: Annotated[str, typer.Option(help="Cluster or device, by name or file.")],
    model: Annotated[str, typer.Option(help="Model by name, Hugging Face id, card, or config.json.")],
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "decode",
    batch: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Sequences in the pass.")] = 1,
    context: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Tokens: new ones in prefill, the context in decode.")
    ] = 1024,
    cached: Annotated[int, typer.Option(min=0, max=MOST_TOKENS, help="Tokens already cached before a prefill.")] = 0,
    tp: Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="Tensor-parallel ranks.")] = 1,
    ep: Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="Expert-parallel ranks.")] = 1,
    dp: Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="Attention data-parallel ranks.")] = 1,
    pp: Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="Pipeline stages.")] = 1,
    cp: Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="Context-parallel ranks.")] = 1,
    redundant_experts: Annotated[
        int, typer.Option(min=0, max=MOST_RANKS, help="Extra expert slots, placed by EPLB.")
    ] = 0,
    routing: Annotated[
        str, typer.Option(help="balanced, uniform, FAMILY:SKEW (zipf:0.8), or preset:NAME.")
    ] = "uniform",
    weight_dtype: Annotated[str | None, typer.Option(help="Store linear weights in this format instead.")] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="Store the cache in this format instead.")] = None,
    overlap: Annotated[
        str, typer.Option(help="What runs beside communication: none, shared_experts, or two_batch.")
    ] = "none",
    slow_rank: Annotated[
        list[str] | None, typer.Option(help="Rank:factor by which it computes longer, such as 3:1.5; engine flow.")
    ] = None,
    slow_link: Annotated[
        list[str] | None, typer.Option(help="Rank:factor by which its links take longer; engine flow.")
    ] = None,
    engine: Annotated[str, typer.Option(help="analytic or flow.")] = "analytic",
    calibration: Annotated[
        str | None,
        typer.Option(
            help="vllm, sglang, trtllm, tables, STACK:tables, none, or a file; the device's stack by default."
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Answer one question without a file: what does one pass cost?"""
    from moesim.cli.estimate import EstimateArguments, estimate_command

    split = {
        "tp_size": tp,
        "ep_size": ep,
        "dp_size": dp,
        "pp_size": pp,
        "cp_size": cp,
        "redundant_experts": redundant_experts,
    }
    estimate_command(
        EstimateArguments(hardware, model, split, phase, batch, context, cached, routing, weight_dtype, kv_dtype, engine,
                          calibration, seed, json, overlap, tuple(slow_rank or ()), tuple(slow_link or ()))
    )  # fmt: skip


@app.command(epilog=EXIT_CODES)
def plan(
    model: Annotated[str, typer.Option(help="Model by name, Hugging Face id, card, or config.json.")],
    hardware: Annotated[list[str], typer.Option(help="Cluster or device; several by repeating it or with commas.")],
    gpus: Annotated[int, typer.Option(min=1, max=MOST_PLANNED, help="The most devices that may be used.")],
    isl: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Input tokens of a request.")],
    osl: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Output tokens of a request.")],
    ttft_ms: Annotated[float | None, typer.Option(help="Goal: mean time to first token, ms.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Goal: mean time per output token, ms.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second to serve with the fewest devices.")] = None,
    max_pass_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="New tokens of a pass and rank.")] = 8192,
    max_batch: Annotated[int, typer.Option(min=1, max=2**16, help="Sequences at most on an attention-DP rank.")] = 1024,
    headroom: Annotated[float, typer.Option(help="Share of the capacity kept free for bursts.")] = 0.1,
    disaggregated: Annotated[bool, typer.Option(help="Also try separate prefill and decode pools.")] = True,
    routing: Annotated[str, typer.Option(help="balanced, uniform, FAMILY:SKEW, or preset:NAME.")] = "uniform",
    weight_dtype: Annotated[str | None, typer.Option(help="Store linear weights in this format instead.")] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="Store the cache in this format instead.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Calibration; each device's own by default.")] = None,
    confirm: Annotated[int, typer.Option(min=0, max=20, help="How many of the best to simulate.")] = 3,
    seed: Seed = 0,
    json: Json = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the page, figures, plan.json and tables.")] = None,
) -> None:
    """Search splits, batches and hardware that meet goals at the least cost."""
    from moesim.cli.plan import PlanArguments, plan_command

    plan_command(
        PlanArguments(model, hardware, gpus, isl, osl, ttft_ms, tpot_ms, rate, max_pass_tokens, max_batch, headroom,
                      disaggregated, routing, weight_dtype, kv_dtype, calibration, confirm, seed, json, out)
    )  # fmt: skip


@app.command(epilog=EXIT_CODES)
def placement(
    model: Annotated[str, typer.Option(help="A MoE by name, Hugging Face id, card, or config.json.")],
    hardware: Annotated[str, typer.Option(help="Cluster or device, by name or file.")],
    ep: Annotated[
        int, typer.Option(min=2, max=MOST_RANKS, help="Ranks that share the experts out; attention-DP on each.")
    ],
    routing: Annotated[
        list[str] | None, typer.Option(help="FAMILY:SKEW, preset:NAME or trace:FILE; repeat it to compare.")
    ] = None,
    redundant: Annotated[list[int] | None, typer.Option(min=0, help="Expert slots beyond one each; repeat it.")] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(help="price, window, copies, locality, limits (repeat it), or all that apply: all."),
    ] = None,
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "decode",
    batch_per_rank: Annotated[int, typer.Option(min=1, max=2**16, help="Sequences on each rank.")] = 128,
    context: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Tokens cached (decode) or new (prefill).")
    ] = 4096,
    engine: Annotated[str, typer.Option(help="analytic or flow (price only).")] = "analytic",
    overlap: Annotated[bool, typer.Option(help="Two micro-batches interleaved (price only).")] = False,
    drift: Annotated[str, typer.Option(help="stationary, cycle, switch or walk (window).")] = "cycle",
    steps: Annotated[int, typer.Option(min=2, max=10**5, help="Steps of the drifting load (window).")] = 400,
    period: Annotated[
        list[int] | None, typer.Option(min=1, help="Steps between placements (window); repeat it.")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="Calibration; the device's own by default.")] = None,
    seed: Seed = 0,
    json: Json = False,
    out: Annotated[Path | None, typer.Option(help="Folder for placement.json and a CSV for each study.")] = None,
) -> None:
    """Say where experts should lie and what imbalance costs in milliseconds, tokens per second and dollars."""
    from moesim.cli.placement import PlacementArguments, placement_command

    placement_command(
        PlacementArguments(model, hardware, ep, routing or ["uniform"], redundant or [0], study or ["price"], phase,
                           batch_per_rank, context, engine, overlap, drift, steps, period or [10, 50, 200], calibration, seed,
                           json, out)
    )  # fmt: skip


@app.command(epilog=EXIT_CODES)
def explain(
    row: Annotated[str, typer.Argument(help="A run's name, its number (1 is below the header), or TABLE.csv:ROW.")],
    table: Annotated[Path | None, typer.Option(help="CSV of serving runs (docs/validation.md).")] = None,
    json: Json = False,
) -> None:
    """Explain a measured run's error: the step's operators, what queueing added, whose uncertainty dominates."""
    from moesim.cli.validate import explain_command

    explain_command(row, table, json)


@app.command(epilog=EXIT_CODES)
def model(
    name: Annotated[str, typer.Argument(help="Name, Hugging Face id, card, config.json or its folder.")],
    json: Json = False,
) -> None:
    """Show what was understood of a model."""
    from moesim.cli.show import model_command

    model_command(name, json)


@app.command(epilog=EXIT_CODES)
def hardware(
    name: Annotated[str, typer.Argument(help="Device or cluster, by name or file.")], json: Json = False
) -> None:
    """Show what was understood of a device or cluster."""
    from moesim.cli.show import hardware_command

    hardware_command(name, json)


@app.command("list", epilog=EXIT_CODES)
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="devices, links, clusters, models, routers, scenarios, serving, sweeps, calibrations, or all."
        ),
    ] = "all",
    json: Json = False,
) -> None:
    """List the catalog."""
    from moesim.cli.show import list_command

    list_command(kind, json)
