"""``moesim plan``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moesim.cli.choices import choice, routing_spec
from moesim.cli.progress import progress_bar
from moesim.cli.run import check_out
from moesim.cli.table import print_json, table
from moesim.errors import InputError
from moesim.report.host import HOST_TITLE, host_note
from moesim.report.plan import write_plan_report
from moesim.specs.dtypes import Dtype
from moesim.study.plan import HardwarePlan, PlanPoint, PlanResult, PlanSpec, plan
from moesim.units import plural, show

__all__ = ["PlanArguments", "plan_command"]


_TPOT = (
    "TPOT: of instances that prefill too with other requests' prefills between two tokens, in separate pools the decode pass"
    " alone; TTFT with queueing; all by the closed form"
)


@dataclass(frozen=True, slots=True)
class PlanArguments:
    """The command's options as typed."""

    model: str
    hardware: list[str]
    gpus: int
    isl: int
    osl: int
    ttft_ms: float | None
    tpot_ms: float | None
    rate: float | None
    max_pass_tokens: int
    max_batch: int
    headroom: float
    disaggregated: bool
    routing: str
    weight_dtype: str | None
    kv_dtype: str | None
    calibration: str | None
    confirm: int
    seed: int
    json: bool
    out: Path | None


def plan_command(args: PlanArguments) -> None:
    """Search, write, and say what came out."""
    spec = _spec(args)
    if args.out is not None:
        check_out(args.out)
    with progress_bar() as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(what: str, done: float) -> None:
            bar.update(task, description=what, completed=done)

        result = plan(spec, tell)
    if args.out is not None:
        write_plan_report(result, args.out)
    if args.json:
        print_json(result.model_dump(mode="json"))
        return
    _print(result)
    where = (
        f"written to {args.out / 'report.html'}"
        if args.out is not None
        else "for a page with every deployment: --out DIR"
    )
    print(f"\n{where}")


def _spec(args: PlanArguments) -> PlanSpec:
    for option, value in (("--ttft-ms", args.ttft_ms), ("--tpot-ms", args.tpot_ms), ("--rate", args.rate)):
        if value is not None and not 0.0 < value < float("inf"):
            raise InputError("must be a number above zero", field=option, value=value)
    if not 0.0 <= args.headroom < 1.0:
        raise InputError("must be at least 0 and below 1", field="--headroom", value=args.headroom)
    names = [name.strip() for text in args.hardware for name in text.split(",")]
    return PlanSpec(
        model=args.model, hardware=tuple(name for name in names if name), n_devices=args.gpus, input_tokens=args.isl,
        output_tokens=args.osl, ttft_s=_seconds(args.ttft_ms), tpot_s=_seconds(args.tpot_ms), rate_per_s=args.rate,
        max_pass_tokens=args.max_pass_tokens, max_batch=args.max_batch, headroom_frac=args.headroom,
        disaggregated=args.disaggregated, routing=None if args.routing == "uniform" else routing_spec(args.routing),
        weight_dtype=choice(Dtype, args.weight_dtype, "--weight-dtype") if args.weight_dtype else None,
        kv_dtype=choice(Dtype, args.kv_dtype, "--kv-dtype") if args.kv_dtype else None, calibration=args.calibration,
        n_confirm=args.confirm, seed=args.seed,
    )  # fmt: skip


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms * 1e-3


def _print(result: PlanResult) -> None:
    spec = result.spec
    print(
        f"{spec.model}, {spec.input_tokens} tokens in and {spec.output_tokens} out, on up to {plural(spec.n_devices, 'device')}"
    )
    for sentence in result.sentences:
        print(f"- {sentence}")
    for p in result.plans:
        _print_hardware(p)


def _print_hardware(p: HardwarePlan) -> None:
    print(
        f"\n{p.hardware}: {plural(p.n_splits, 'split fits', 'splits fit')}, {p.n_too_large:,} too large;"
        f" {plural(p.n_options, 'deployment')}; costs from {p.calibration}"
    )
    points = p.shown
    if points:
        header = (
            "split",
            "",
            "GPUs",
            "batch",
            "TTFT",
            "TPOT",
            "tok/s/GPU",
            "tok/s/user",
            "90%",
            "GB/rank",
            "bottleneck",
        )
        table(header, [_row(kind if p.is_met is not False else _refuted(p, kind), point) for kind, point in points])
        print(_TPOT)
        if any(point.error_frac is None for _, point in points):
            print(f"{HOST_TITLE}. {host_note(['assumption only'], p.device)}")
    for kind, point in (("best", p.best), ("least", p.least)):
        if point is not None:
            _print_flags(kind, point)
    for c in p.confirmations:
        if c.output_tokens_per_s_per_device is None or c.throughput_ratio is None:
            print(f"simulated {c.split}: {c.note}")
            continue
        met = "meets the goals" if c.meets_goals else "misses the goals"
        print(
            f"simulated {c.split} at {c.batch} ({c.load}): {c.output_tokens_per_s_per_device:.0f} tokens/s/GPU"
            f" ({c.throughput_ratio:.2f} of the closed form), TTFT {show(c.ttft_s or 0.0, 's')},"
            f" TPOT {show(c.tpot_s or 0.0, 's')}; {met}"
        )
    for miss in p.near_misses:
        print(f"missed    {miss.sentence}")


def _refuted(p: HardwarePlan, kind: str) -> str:
    """What no simulation bears out is the best by the closed form alone."""
    name = "least" if p.least is not None else "best"
    return ", ".join(f"{word} by closed form" if word == name else word for word in kind.split(", "))


def _row(kind: str, point: PlanPoint) -> tuple[str, ...]:
    main = point.main
    shown = kind if point.meets_goals else f"{kind}, misses"
    interval = "assumed" if point.error_frac is None else f"±{point.error_frac:.0%}"
    return (
        point.label, shown, str(point.n_devices), str(main.batch), show(point.ttft_s, "s"), show(point.tpot_s, "s"),
        f"{point.output_tokens_per_s_per_device:.0f}", f"{point.output_tokens_per_s_per_user:.1f}", interval,
        f"{main.memory_bytes / 1e9:.0f}", f"{main.bottleneck.group}, {main.bottleneck.bound}",
    )  # fmt: skip


def _print_flags(kind: str, point: PlanPoint) -> None:
    for engine, flags in (("vLLM", point.vllm), ("SGLang", point.sglang)):
        for command in flags.commands:
            print(f"{kind:<5} {engine:<6}  {command}")
        if flags.note:
            print(f"{kind:<5} {engine:<6}  ({flags.note})")
