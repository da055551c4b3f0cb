"""Published single cases: what was measured where, and what we project for the same setup, with an interval and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from moesim.calibrate.store import find_calibration
from moesim.cost import CostModel
from moesim.cost.stack import LentCalibration
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.ops import OpKind, Phase
from moesim.routing import build_router
from moesim.routing.stats import max_over_mean
from moesim.specs.base import Frozen
from moesim.specs.catalog import data_dir, load_device, load_hardware, load_model
from moesim.specs.load import read_yaml, validate
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.study.instance import Instance, build_instance
from moesim.study.stack_files import shipped_bands, shipped_stacks
from moesim.study.validate.fit import stack_for, stack_key
from moesim.study.validate.predict import Batch
from moesim.study.validate.table import RunRow
from moesim.study.validate.workload import Workbench

__all__ = ["CaseResult", "load_cases", "run_cases"]

#: 90% half-widths (as fractions) where no calibration gives one. Assumptions: a fabric's fit leaves up to 15% on left-out rows of
#: its table; whole passes of wide expert parallelism rest on default efficiencies for experts; routing varies by sample.
WIDTHS = {"exchange": 0.15, "pass": 0.35, "imbalance": 0.10, "rank_imbalance": 0.25, "kernel": 0.5}


class PublishedCase(Frozen):
    """One case; which fields it needs depends on its kind."""

    id: str = Field(min_length=1)
    kind: Literal["exchange", "pass", "serving", "ratio", "kernel", "imbalance", "rank_imbalance"]
    group: str
    measured: float = Field(gt=0)
    unit: str
    source: str = Field(min_length=1)
    assumed: str = ""
    note: str = ""
    op: str = "dispatch"
    mode: str = "low_latency"
    metric: Literal["tpot", "ttft", "rate"] = "tpot"
    phase: str = "decode"
    cluster: str = ""
    n_ranks: int = Field(default=1, ge=1)
    batch_per_rank: int = Field(default=1, ge=1)
    tokens: int = Field(default=1, ge=1)
    cached: int = Field(default=0, ge=0)
    redundant: int = Field(default=0, ge=0)
    routing: str = ""
    model: str = "deepseek-v3"
    system: str = ""
    backend: str = ""
    precision: str = ""
    tp: int = Field(default=1, ge=1)
    ep: int = Field(default=1, ge=1)
    replicas: int = Field(default=1, ge=1)
    isl: int = Field(default=1, ge=1)
    osl: int = Field(default=1, ge=1)
    concurrency: int = Field(default=1, ge=1)
    of: tuple[str, ...] = ()
    stack: str = ""
    preset: str = ""
    domain: str | None = None
    layers: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


class _File(Frozen):
    cases: tuple[PublishedCase, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case with its projection and 90% interval."""

    case: PublishedCase
    projected: float
    low: float
    high: float

    @property
    def error_frac(self) -> float:
        """Projected over measured, less one."""
        return self.projected / self.case.measured - 1.0

    @property
    def is_inside(self) -> bool:
        """Whether the measurement lies in the interval."""
        return self.low <= self.case.measured <= self.high

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.is_inside:
            return "holds" if abs(self.error_frac) <= 0.15 else "holds, wide"
        return "too high" if self.projected > self.case.measured else "too low"

    def cells(self) -> tuple[str, ...]:
        """A row for a terminal table."""
        c = self.case
        setup = "; ".join(x for x in (_setup(c), c.assumed and f"assumed: {c.assumed}", c.note) if x)
        return (
            c.id, setup, f"{c.measured:,.5g} {c.unit}", f"{self.projected:,.5g}", f"{self.low:,.4g}-{self.high:,.4g}",
            f"{self.error_frac:+.0%}", self.verdict, c.source,
        )  # fmt: skip

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        c = self.case
        return {
            "id": c.id, "group": c.group, "setup": _setup(c), "assumed": c.assumed, "note": c.note, "measured": c.measured,
            "unit": c.unit, "source": c.source, "projected": self.projected, "low": self.low, "high": self.high,
            "error_frac": self.error_frac, "verdict": self.verdict,
        }  # fmt: skip


def load_cases(path: Path | None = None) -> tuple[PublishedCase, ...]:
    """The shipped cases, or those of a file."""
    file = path or data_dir() / "scenarios" / "published" / "cases.yaml"
    return validate(_File, read_yaml(file), str(file)).cases


def run_cases(name: str | None = None) -> list[CaseResult]:
    """Project every case, or those whose id or group holds `name`.

    Raises:
        InputError: no such case.
    """
    cases = load_cases()
    wanted = [c for c in cases if name is None or name.lower() in f"{c.id} {c.group}".lower()]
    if not wanted:
        raise InputError("no such case", field="case", value=name, allowed=", ".join(c.id for c in cases))
    needed = {i for c in wanted for i in c.of} | {c.id for c in wanted}
    bench = Workbench()
    found: dict[str, CaseResult] = {}
    for case in cases:
        if case.id in needed:
            found[case.id] = _ratio(case, found) if case.kind == "ratio" else _project(case, bench)
    return [found[c.id] for c in wanted]


def _project(case: PublishedCase, bench: Workbench) -> CaseResult:
    runs: Mapping[str, Callable[[PublishedCase], tuple[float, float]]] = {
        "exchange": _exchange, "pass": _pass, "kernel": _kernel, "imbalance": _imbalance, "rank_imbalance": _rank_imbalance,
    }  # fmt: skip
    if case.kind == "serving":
        return _serving(case, bench)
    value, width = runs[case.kind](case)
    return CaseResult(case, value, value / (1.0 + width), value * (1.0 + width))


def _ratio(case: PublishedCase, found: Mapping[str, CaseResult]) -> CaseResult:
    """Logarithmic half-widths of the two add in quadrature: their errors are taken as independent (assumption)."""
    top, bottom = (found[i] for i in case.of)
    value = top.projected / bottom.projected
    width = math.hypot(*(0.5 * math.log(r.high / r.low) for r in (top, bottom)))
    return CaseResult(case, value, value * math.exp(-width), value * math.exp(width))


def _serving(case: PublishedCase, bench: Workbench) -> CaseResult:
    row = RunRow(
        case.id,
        case.model,
        case.system,
        case.backend,
        case.precision,
        case.isl,
        case.osl,
        case.concurrency,
        case.tp,
        1,
        case.ep,
    )
    ttft, tpot = (
        float(x) for x in Batch.of([row], [bench.features(row)]).predict(stack_for(stack_key(row), shipped_stacks()))[0]
    )
    bands = shipped_bands()
    low, high = bands.ttft("yes") if case.metric == "ttft" else bands.tpot(bench.instance(row).model.is_moe)
    if case.metric != "rate":
        value = (tpot if case.metric == "tpot" else ttft) * 1e3
        return CaseResult(case, value, value * math.exp(low), value * math.exp(high))
    n = row.mean_osl
    rate = case.replicas * case.concurrency * n / (ttft + (n - 1.0) * tpot)
    return CaseResult(case, rate, rate * math.exp(-high), rate * math.exp(-low))


def _exchange(case: PublishedCase) -> tuple[float, float]:
    n = case.n_ranks
    instance = _wide(case, Overlap.NONE)
    program = instance.program(Pass(Phase.DECODE, float(case.tokens * n), 1.0, 4096.0))
    op = next(op for _, op in program.ops() if op.name == case.op)
    return float(np.max(instance.cost.cost(op).time_s)) * 1e6, WIDTHS["exchange"]


def _wide(case: PublishedCase, overlap: Overlap) -> Instance:
    """DeepSeek-V3 under wide expert parallelism: H100 kernels of SGLang, but default efficiencies for experts and prefill scores.

    Those two run other kernels there (DeepGEMM, attention over expanded heads) than the tables have.
    """
    hardware = load_hardware(case.cluster, case.n_ranks)
    split = ParallelSpec(dp_size=case.n_ranks, ep_size=case.n_ranks, redundant_experts=case.redundant)
    own = frozenset({OpKind.GROUPED_GEMM, OpKind.ATTENTION_PREFILL})
    kernels = LentCalibration(find_calibration("h100_sxm/sglang"), load_device("h100_sxm"), own)
    placement = PlacementSpec(kind=PlacementKind.EPLB_GLOBAL if case.redundant else PlacementKind.CONTIGUOUS)
    routing = (
        RoutingSpec(family=RouterFamily.PRESET, preset=case.routing, placement=placement)
        if case.routing
        else RoutingSpec(family=RouterFamily.BALANCED, placement=placement)
    )
    return build_instance(
        load_model(case.model), split, hardware, routing, cost=CostModel.of(hardware, kernels), overlap=overlap,
        rng=np.random.default_rng(0),
    )  # fmt: skip


def _pass(case: PublishedCase) -> tuple[float, float]:
    """Tokens per second and node of one simulated pass with two micro-batches."""
    instance = _wide(case, Overlap.TWO_BATCH)
    batch = float(case.batch_per_rank * case.n_ranks)
    step = (
        Pass(Phase.PREFILL, batch, float(case.tokens), float(case.cached))
        if case.phase == "prefill"
        else Pass(Phase.DECODE, batch, 1.0, float(case.tokens))
    )
    time_s = instance.flow(step, np.random.default_rng(1)).time_s
    return float(step.n_tokens) / time_s / (case.n_ranks / 8.0), WIDTHS["pass"]


def _kernel(case: PublishedCase) -> tuple[float, float]:
    hardware = load_hardware(case.cluster, 1)
    cost = CostModel.of(hardware, find_calibration(case.stack))
    routing = RoutingSpec(family=RouterFamily.BALANCED)
    instance = build_instance(load_model(case.model), ParallelSpec(), hardware, routing, cost=cost)
    op = next(o for _, o in instance.program(instance.decode_pass(case.tokens, 1024)).ops() if o.name == "experts")
    found = cost.cost(op)
    error = WIDTHS["kernel"] if found.error_frac is None else float(np.max(found.error_frac))
    return float(np.max(found.time_s)) * 1e3, error


def _imbalance(case: PublishedCase) -> tuple[float, float]:
    spec = RoutingSpec(family=RouterFamily.PRESET, preset=case.preset, domain=case.domain)
    n_layers, n_experts, top_k = case.sizes
    router = build_router(spec, n_layers, n_experts, top_k, rng=np.random.default_rng(0))
    counts = router.sample_counts(60_000, np.random.default_rng(1))
    return float(max_over_mean(counts)[list(case.layers)].mean()), WIDTHS["imbalance"]


def _rank_imbalance(case: PublishedCase) -> tuple[float, float]:
    instance = _wide(case.model_copy(update={"routing": "deepseek-v3", "cluster": "h800_x40_nodes"}), Overlap.NONE)
    counts = instance.draw(Pass(Phase.PREFILL, float(4 * case.n_ranks), 4096.0), np.random.default_rng(1))
    if counts is None or instance.routed is None:
        raise InputError("needs experts", field="model", value=case.model)
    ratios = []
    for key, drawn in counts.items():
        loads = instance.routed.placements[key].rank_loads(drawn.sum(axis=1))
        ratios.append(max_over_mean(loads))
    return float(np.concatenate(ratios).mean()), WIDTHS["rank_imbalance"]


def _setup(c: PublishedCase) -> str:
    texts = {
        "exchange": "{model}, {op}, {mode}, EP{n_ranks}, {tokens} tokens per rank, {cluster}",
        "pass": "{model}, {phase}, EP{n_ranks}, {batch_per_rank} x {tokens} per rank, {cluster}",
        "serving": "{model} {precision}, {backend}, {system}, TP{tp} EP{ep} x {replicas}, {isl}/{osl}, {concurrency} in flight",
        "ratio": "ratio of the cases", "kernel": "{model}, {tokens} tokens, {stack}",
        "imbalance": "{preset}, {domain}: busiest expert over mean",
        "rank_imbalance": "DeepSeek-R1, EP{n_ranks}, {redundant} extra slots",
    }  # fmt: skip
    return texts[c.kind].format(**c.model_dump()) + (f" {' / '.join(c.of)}" if c.of else "")
