"""The public functions: each asks one question of the library and returns a frozen result that shows itself as a table.

Names, fields and units are those of the YAML files and of the command line. See docs/api.md.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from moesim.errors import InputError, nearest
from moesim.ops import Phase
from moesim.specs.base import Frozen
from moesim.specs.flow import FlowSpec
from moesim.specs.load import to_input_error, validate
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.scenario import Engine, ScenarioSpec, SystemKind, SystemSpec
from moesim.specs.serving import ServeScenarioSpec
from moesim.specs.sweep import SweepEngine, SweepSpec
from moesim.study.api_results import (
    CheckTable,
    Estimate,
    FittedCalibrations,
    Profile,
    ScenarioAnswer,
    Served,
    SweepAnswer,
)
from moesim.study.resolve import resolve_model
from moesim.study.single import estimate_pass

if TYPE_CHECKING:
    from moesim.study.plan import PlanResult

__all__ = ["check", "estimate", "fit", "plan", "profile", "run", "serve", "sweep"]

File = str | os.PathLike[str]
Spec = TypeVar("Spec", bound=Frozen)
Word = TypeVar("Word", Phase, Engine, SweepEngine)


def estimate(
    model: str, hardware: str, *, phase: str = "decode", batch: int = 1, context: int = 1024, cached: int = 0, tp: int = 1,
    ep: int = 1, dp: int = 1, pp: int = 1, cp: int = 1, redundant_experts: int = 0,
    routing: RoutingSpec | Mapping[str, Any] | None = None, weight_dtype: str | None = None, kv_dtype: str | None = None,
    engine: str = "analytic", calibration: str | None = None, seed: int = 0, overlap: str | bool = "none",
    slow_ranks: Mapping[int, float] | None = None, slow_links: Mapping[int, float] | None = None,
    flow: FlowSpec | Mapping[str, Any] | None = None,
) -> Estimate:  # fmt: skip
    """What one pass of a model costs on this hardware: ``moesim estimate``.

    Args:
        model: name, Hugging Face id, card or config.json.
        hardware: cluster or device, by name or file.
        phase: "prefill" of `context` new tokens, or one "decode" step at `context`.
        batch: sequences in the pass.
        context: tokens, see `phase`.
        cached: tokens cached before a prefill.
        tp: tensor-parallel ranks; likewise `ep` experts, `dp` attention data, `pp` stages, `cp` context.
        ep: see `tp`.
        dp: see `tp`.
        pp: see `tp`.
        cp: see `tp`.
        redundant_experts: extra expert slots; `routing` then needs a balancing placement.
        routing: the router's behaviour with fields as in a scenario; uniform by default.
        weight_dtype: stores linear weights in this format instead.
        kv_dtype: stores the cache in this format instead.
        engine: "analytic" or "flow".
        calibration: the device's serving stack by default; "vllm", "sglang" or "trtllm" for one, "tables" or "STACK:tables"
            for kernel tables alone, "none", or a file of `calibrate runs` or `calibrate fit`.
        seed: of the router's draws.
        overlap: "none", "shared_experts" or "two_batch".
        slow_ranks: ranks with the factor by which their compute takes longer (engine "flow").
        slow_links: the same of their links.
        flow: a system's other settings of simulated passes, with fields as in a scenario (docs/fabric.md).

    Raises:
        InputError: anything that does not fit together; one line that says what to do.
    """
    sizes = {
        "tp_size": tp,
        "ep_size": ep,
        "dp_size": dp,
        "pp_size": pp,
        "cp_size": cp,
        "redundant_experts": redundant_experts,
    }
    split = _spec(ParallelSpec, sizes)
    router = routing if isinstance(routing, RoutingSpec) or routing is None else validate(RoutingSpec, routing)
    system = _spec(SystemSpec, {"name": "estimate", "kind": SystemKind.DENSE, "model": model, "parallel": split,
                                "weight_dtype": weight_dtype, "kv_dtype": kv_dtype})  # fmt: skip
    counts: tuple[tuple[str, object, int], ...] = (("batch", batch, 1), ("context", context, 1), ("cached", cached, 0))
    for name, value, least in counts:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise InputError("must be a whole number", field=name, value=value, allowed=f"{least} or more")
    result = estimate_pass(
        resolve_model(system), hardware, split, _word(Phase, phase, "phase"), batch=batch, context=context, cached=cached,
        routing=router, engine=_word(Engine, engine, "engine"), seed=seed, calibration=calibration, overlap=overlap,
        settings=_settings(flow, slow_ranks, slow_links),
    )  # fmt: skip
    return Estimate.model_construct(**dict(result))


def run(
    scenario: File | Mapping[str, Any] | ScenarioSpec, *, engine: str | None = None, seed: int | None = None
) -> ScenarioAnswer:
    """Compare the systems of a scenario: ``moesim run`` without the report.

    Args:
        scenario: a shipped name, a YAML file, the same fields as a mapping, or a checked spec.
        engine: "analytic" or "flow"; the scenario's own by default.
        seed: overrides the scenario's.

    Raises:
        InputError: anything in the scenario that does not fit together.
    """
    from moesim.study.run import load_scenario, run_scenario

    spec, file, name = _loaded(scenario, ScenarioSpec, load_scenario)
    chosen = None if engine is None else _word(Engine, engine, "engine")
    found = run_scenario(spec, name=name, engine=chosen, seed=seed, file=file)
    return ScenarioAnswer(found.result, found.timeline, found.prefill_timeline)


def serve(
    scenario: File | Mapping[str, Any] | ServeScenarioSpec, *, requests: File | None = None, seed: int | None = None
) -> Served:
    """Serve requests over time: ``moesim serve`` without the files.

    Args:
        scenario: a shipped name, a YAML file, the same fields as a mapping, or a checked spec.
        requests: a request file in place of the scenario's workload.
        seed: overrides the scenario's.

    Raises:
        InputError: anything in the scenario or the requests that does not fit together.
    """
    from moesim.study.serve import load_serve_scenario, run_serve

    spec, file, name = _loaded(scenario, ServeScenarioSpec, load_serve_scenario)
    path = None if requests is None else Path(requests)
    found = run_serve(spec, name=name, requests=path, seed=seed, file=file)
    return Served(found.result, found.recorder)


def sweep(
    sweep: File | Mapping[str, Any] | SweepSpec, *, out: File | None = None, engine: str | None = None, n_jobs: int = 1,
    scheduler: str | None = None,
) -> SweepAnswer:  # fmt: skip
    """Every combination of the fields that a sweep varies: ``moesim sweep`` without the report.

    Args:
        sweep: a shipped name, a YAML file, the same fields as a mapping, or a checked spec.
        out: folder where answers are kept as they come and found again.
        engine: "analytic", "flow" or "serving"; the sweep's own by default.
        n_jobs: processes.
        scheduler: address of a Dask scheduler in place of own processes.

    Raises:
        InputError: anything wrong in the sweep or its base.
    """
    from moesim.study.sweep import load_sweep, run_sweep

    spec, file, name = _loaded(sweep, SweepSpec, load_sweep)
    chosen = None if engine is None else _word(SweepEngine, engine, "engine")
    folder = None if out is None else Path(out)
    return SweepAnswer(
        run_sweep(spec, out_dir=folder, engine=chosen, n_jobs=n_jobs, scheduler=scheduler, file=file, name=name)
    )


def plan(
    model: str, hardware: str | Iterable[str], n_devices: int, input_tokens: int, output_tokens: int, **options: Any
) -> PlanResult:
    """Which split, batch and hardware meet the goals at the least cost: ``moesim plan``.

    Args:
        model: name, Hugging Face id, card or config.json.
        hardware: one or several clusters or devices.
        n_devices: the most that may be used.
        input_tokens: of a request.
        output_tokens: of a request.
        **options: other fields of `moesim.PlanSpec`: `ttft_s`, `tpot_s`, `rate_per_s`, `n_confirm`, ...

    Raises:
        InputError: a name, number or field that cannot be used.
    """
    from moesim.study.plan import PlanSpec
    from moesim.study.plan import plan as search

    names = (hardware,) if isinstance(hardware, str) else tuple(hardware)
    fields = {"model": model, "hardware": names, "n_devices": n_devices, "input_tokens": input_tokens,
              "output_tokens": output_tokens, **options}  # fmt: skip
    return search(_spec(PlanSpec, fields))


def profile(
    out: File, *, device: str = "auto", mode: Literal["quick", "full"] = "quick", layer: str | None = None, seed: int = 0,
    **options: Any,
) -> Profile:  # fmt: skip
    """Measure real PyTorch layers on this machine: ``moesim calibrate profile``.

    Args:
        out: folder for the records and tables; a stopped profile goes on there.
        device: auto, cpu, cuda or cuda:N.
        mode: "quick" (about a minute) or "full" (up to five).
        layer: ``package.module:factory`` of your own layer.
        seed: of weights, inputs and routing.
        **options: further arguments of `moesim.calibrate.profile.profile`.

    Raises:
        MissingExtraError: PyTorch is not installed.
        InputError: a device, layer or folder that cannot be used.
    """
    from moesim.calibrate.profile import profile as measure

    return Profile(measure(device, mode, Path(out), layer, None, seed, **options))


def fit(
    tables: File | Iterable[File], device: str, *, out: File | None = None, date: str | None = None
) -> FittedCalibrations:
    """Fit calibrations to measured tables, with errors on shapes left out: ``moesim calibrate fit``.

    Args:
        tables: measurement tables of one device, CSV or Parquet.
        device: the device's name or file.
        out: folder to write ``DEVICE/STACK.yaml`` into.
        date: of the fit, for the files; today by default.

    Raises:
        InputError: tables of another device, or nothing that can be fitted.
    """
    from moesim.calibrate.fit import fit_tables
    from moesim.calibrate.store import save_calibration
    from moesim.calibrate.tables import read_table
    from moesim.specs.catalog import load_device, load_link

    spec = load_device(device)
    link = load_link(spec.scale_up_link).bytes_per_s if spec.scale_up_link else 0.0
    paths = [tables] if isinstance(tables, str | os.PathLike) else list(tables)
    found = fit_tables([read_table(Path(p)) for p in paths], spec, link, date=date or datetime.date.today().isoformat())
    files = []
    if out is not None:
        for calibration in found.calibrations:
            file = Path(out) / calibration.device / f"{calibration.stack}.yaml"
            save_calibration(calibration, file)
            files.append(file)
    notes = (*(family.text for family in found.left_out), *(family.text for family in found.marked))
    return FittedCalibrations(found.calibrations, tuple(files), notes)


def check(calibration: File, table: File) -> CheckTable:
    """How far a calibration is from a measured table: ``moesim calibrate check``.

    Args:
        calibration: ``device/stack``, or a file.
        table: measurements of the same device.

    Raises:
        InputError: the table is of another device, or cannot be read.
    """
    from moesim.calibrate.check import check as compare
    from moesim.calibrate.store import find_calibration, load_calibration
    from moesim.calibrate.tables import read_table

    name = os.fspath(calibration)
    known = load_calibration(name) if name.endswith((".yaml", ".yml")) else find_calibration(name)
    return CheckTable(compare(known, read_table(Path(table))))


def _settings(
    flow: FlowSpec | Mapping[str, Any] | None,
    slow_ranks: Mapping[int, float] | None,
    slow_links: Mapping[int, float] | None,
) -> FlowSpec:
    """The settings, with stragglers in place of its own."""
    given = flow.model_dump(exclude_unset=True) if isinstance(flow, FlowSpec) else dict(flow or {})
    for name, factors in (("slow_ranks", slow_ranks), ("slow_links", slow_links)):
        if factors is not None:
            given[name] = dict(factors)
    return _spec(FlowSpec, given)


def _loaded(source: Any, kind: type[Spec], load: Any) -> tuple[Spec, Path | None, str]:
    """A checked spec with the file it came from and what to call it."""
    if isinstance(source, kind):
        return source, None, "python"
    if isinstance(source, Mapping):
        return validate(kind, source), None, "python"
    spec, path = load(os.fspath(source))
    return spec, path, path.stem


def _spec(kind: type[Spec], fields: dict[str, Any]) -> Spec:
    """A spec from Python values, with errors in one line."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise to_input_error(error, kind, fields, None) from None


def _word(kind: type[Word], text: str, field: str) -> Word:
    try:
        return kind(text)
    except ValueError:
        words = [member.value for member in kind]
        close = nearest(str(text), words)
        hint = f"did you mean {close[0]!r}?" if close else None
        raise InputError("not known", field=field, value=text, allowed=", ".join(words), hint=hint) from None
