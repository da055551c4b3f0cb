"""``moesim estimate``."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.cli.choices import choice, routing_spec, stragglers
from moesim.cli.table import print_json, table
from moesim.errors import InputError
from moesim.ops import Phase
from moesim.specs.dtypes import Dtype
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.scenario import Engine, SystemKind, SystemSpec
from moesim.study.resolve import resolve_model
from moesim.study.single import EstimateResult, OperatorCost, estimate_pass
from moesim.units import show

__all__ = ["EstimateArguments", "estimate_command"]

#: Fields of the library by the options that set them.
_OPTIONS = {"flow.slow_ranks": "--slow-rank", "flow.slow_links": "--slow-link", "overlap": "--overlap"}


@dataclass(frozen=True, slots=True)
class EstimateArguments:
    """The command's options as typed."""

    hardware: str
    model: str
    split: dict[str, int]
    phase: str
    batch: int
    context: int
    cached: int
    routing: str
    weight_dtype: str | None
    kv_dtype: str | None
    engine: str
    calibration: str | None
    seed: int
    json: bool
    overlap: str = "none"
    slow_ranks: tuple[str, ...] = ()
    slow_links: tuple[str, ...] = ()


def estimate_command(args: EstimateArguments) -> None:
    """Estimate and print."""
    parallel = ParallelSpec(**args.split)
    routing = routing_spec(args.routing, parallel.redundant_experts)
    spec = SystemSpec(
        name="estimate", kind=SystemKind.DENSE, model=args.model, parallel=parallel,
        weight_dtype=choice(Dtype, args.weight_dtype, "--weight-dtype") if args.weight_dtype else None,
        kv_dtype=choice(Dtype, args.kv_dtype, "--kv-dtype") if args.kv_dtype else None,
    )  # fmt: skip
    model = resolve_model(spec)
    if not model.is_moe and (args.routing != "uniform" or parallel.redundant_experts):
        field = "--redundant-experts" if parallel.redundant_experts else "--routing"
        raise InputError(f"{model.name} is dense: it has no experts", field=field, hint="leave it out")
    overlap, settings = choice(Overlap, args.overlap, "--overlap"), stragglers(args.slow_ranks, args.slow_links)
    try:
        result = estimate_pass(
            model, args.hardware, parallel, choice(Phase, args.phase, "--phase"), batch=args.batch,
            context=args.context, cached=args.cached, routing=routing, engine=choice(Engine, args.engine, "--engine"),
            seed=args.seed, calibration=args.calibration, overlap=overlap, settings=settings,
        )  # fmt: skip
    except InputError as error:
        error.field = _OPTIONS.get(error.field or "", error.field)
        raise
    if args.json:
        print_json(result.model_dump(mode="json"))
    else:
        _print(result)


def _print(r: EstimateResult) -> None:
    print(f"{r.model} on {r.hardware}, {r.parallel}: {r.phase}, batch {r.batch}, context {r.context} ({r.engine})")
    if r.model_note:
        print(f"model    {r.model_note}")
    used = f"{r.memory_bytes / 1e9:.1f} GB of {r.capacity_bytes / 1e9:.1f} GB per rank"
    print(f"memory   {used}, room for {r.max_sequences} sequences")
    if r.time_s is None:
        print(f"outcome  {r.outcome}: {r.reason}")
        for remedy in r.remedies[1:]:
            print(f"         or {remedy}")
        return
    interval = (
        "assumption only"
        if r.time_low_s is None
        else f"90%: {show(r.time_low_s, 's')} to {show(r.time_high_s or 0.0, 's')}, from {r.interval_basis}"
    )
    print(f"time     {show(r.time_s, 's')} ({interval}), {r.bound} bound, {r.tokens_per_s or 0:,.0f} tokens/s")
    print(
        f"of it    {show(r.exposed_comm_s or 0.0, 's')} exposed communication, {show(r.imbalance_s or 0.0, 's')} imbalance"
        + (f", {show(r.slower_wait_s, 's')} waiting for slower ranks (mean)" if r.slower_wait_s else "")
    )
    print(f"as       {r.reached}")
    print(f"from     {r.calibration}; weakest input: {r.origin.value}")
    if r.extrapolated_frac > 0:
        share = "less than 1%" if r.extrapolated_frac < 0.01 else f"{r.extrapolated_frac:.0%}"
        print(f"warning  {share} of the time is outside the calibration's domain")
    rows = [
        (o.name, show(o.time_s, "s"), f"{o.time_s / r.time_s:.1%}", o.bound, show(o.flops, "FLOP"), show(o.bytes, "B"))
        for o in sorted(_merged(r), key=lambda o: -o.time_s)[:12]
    ]
    table(("operator", "time", "share", "bound", "FLOP run", "traffic"), rows)
    if any(o.group == "experts" for o in r.operators):
        print("FLOP run: what kernels execute, experts' rows padded to their tiles; per rank, as the traffic")


def _merged(r: EstimateResult) -> list[OperatorCost]:
    """Operators of equal name over the layer kinds, added up; the longest part names the bound."""
    found: dict[str, list[OperatorCost]] = {}
    for operator in r.operators:
        found.setdefault(operator.name, []).append(operator)
    return [
        max(parts, key=lambda o: o.time_s).model_copy(
            update={
                "time_s": sum(o.time_s for o in parts),
                "flops": sum(o.flops for o in parts),
                "bytes": sum(o.bytes for o in parts),
            }
        )
        for parts in found.values()
    ]
