"""A hand-made RunResult with plausible numbers: Mixtral-8x7B against Llama-2 and an ensemble on 2 H100."""

from __future__ import annotations

import math

import numpy as np

from moesim.specs.base import Origin
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.specs.scenario import Basis, ComparisonSpec, Engine, FlipAxis, ScenarioSpec, SystemKind, SystemSpec
from moesim.specs.workload import WorkloadSpec
from moesim.study.results import (
    AlternativeRow,
    Comparison,
    ExpertLoad,
    FlipCurve,
    GapSplit,
    InputOrigin,
    MemoryResult,
    OperatorRow,
    PathSample,
    PhaseDetail,
    Point,
    QualitySensitivity,
    RankDetail,
    RunResult,
    SystemResult,
)
from moesim.timeline import Cause, Timeline

PEAK, BANDWIDTH, CAPACITY, PRICE = 989.4e12, 3.35e12, 80e9, 2.99
CONCURRENCY = (1, 4, 16, 64, 256)
FOCUS = 16
MOE, DENSE70, DENSE13, MANY = "Mixtral-8x7B", "Llama-2-70B", "Llama-2-13B", "8 x Llama-2-7B"
N_LAYERS, N_EXPERTS, TOP_K = 32, 8, 2

#: name, kind, basis, model, parameters, active parameters, members, KV bytes per token
SYSTEMS = (
    (MOE, SystemKind.MOE, Basis.NAMED, "mixtral-8x7b", 46.7e9, 12.9e9, 1, 131_072),
    (DENSE70, SystemKind.DENSE, Basis.NAMED, "llama-2-70b", 69.0e9, 69.0e9, 1, 327_680),
    (DENSE13, SystemKind.DENSE, Basis.NAMED, "llama-2-13b", 13.0e9, 13.0e9, 1, 819_200),
    (MANY, SystemKind.ENSEMBLE, Basis.NAMED, "llama-2-7b", 53.9e9, 6.74e9, 8, 524_288),
    (f"{MOE}, dense twin of equal active parameters", SystemKind.DENSE, Basis.EQUAL_ACTIVE, "twin-12.9b", 12.9e9,
     12.9e9, 1, 131_072),
    (f"{MOE}, dense twin of equal total parameters", SystemKind.DENSE, Basis.EQUAL_TOTAL, "twin-46.7b", 46.7e9,
     46.7e9, 1, 131_072),
)  # fmt: skip


def sample_result(n_layers: int = N_LAYERS, n_experts: int = N_EXPERTS, top_k: int = TOP_K) -> RunResult:
    """The whole record."""
    systems = tuple(_system(*row, n_layers, n_experts, top_k) for row in SYSTEMS)
    return RunResult(
        moesim_version="0.1.0", scenario=_scenario(), scenario_name="mixtral_vs_llama2_2xh100", engine="flow", seed=0,
        hardware_name="hgx_h100", device_name="h100_sxm", n_devices=2, scale_up_domain_size=8,
        peak_flop_per_s={"fp32": 66.9e12, "bf16": PEAK, "fp8": 1978.9e12}, memory_bytes_per_s=BANDWIDTH,
        device_memory_bytes=CAPACITY, price_usd_per_device_h=PRICE, calibration="none: default efficiencies",
        systems=systems, comparisons=_comparisons(systems), flips=_flips(), quality=_quality(), inputs=_inputs(),
        headline=(*_costs(systems), *(f"At {c.concurrency} requests in flight: {c.verdict}. Why: {c.why}." for c in
                  _comparisons(systems) if c.concurrency == FOCUS), f"Along context, {_flips()[2].summary}."),
        notes=("No request waits in a queue in these numbers: every request starts at once.",
               "Latency between host and device is not modelled.",
               "Nothing was measured on this device for this run: efficiencies are assumptions."),
    )  # fmt: skip


def sample_timeline(n_ranks: int = 2) -> Timeline:
    """Two layers of work, exchanges and waits."""
    timeline = Timeline(n_ranks)
    for rank in range(n_ranks):
        at = 0.0
        for layer in range(2):
            work = 10e-6 * (1 + rank)
            timeline.add(rank, "compute", "experts", layer, at, at + work)
            timeline.add(rank, "comm", "dispatch", layer, at + work, at + work + 5e-6)
            done = max(at + work + 5e-6, at + 10e-6 * n_ranks + 5e-6)
            timeline.add(rank, "comm", "wait", layer, at + work + 5e-6, done, Cause.DATA)
            at = done
        timeline.add(rank, "comm", "wait", -1, at, at + 1e-6, Cause.BARRIER)
    return timeline


def _scenario() -> ScenarioSpec:
    tp2 = ParallelSpec(tp_size=2)
    systems = (
        SystemSpec(name=MOE, kind=SystemKind.MOE, model="mixtral-8x7b", parallel=ParallelSpec(dp_size=2, ep_size=2),
                   routing=RoutingSpec(family=RouterFamily.PRESET, preset="mixtral-8x7b")),
        SystemSpec(name=DENSE70, kind=SystemKind.DENSE, model="llama-2-70b", parallel=tp2),
        SystemSpec(name=DENSE13, kind=SystemKind.DENSE, model="llama-2-13b", parallel=tp2),
        SystemSpec(name=MANY, kind=SystemKind.ENSEMBLE, model="llama-2-7b", n_members=8, member_skew=0.5),
    )  # fmt: skip
    return ScenarioSpec(
        title="Mixtral-8x7B against Llama-2-70B on 2 H100",
        description="Which of the two open models of 2023 is cheaper to serve, and why?", hardware="hgx_h100", n_devices=2,
        systems=systems, workload=WorkloadSpec(input_tokens=1024, output_tokens=256, concurrency=CONCURRENCY),
        comparison=ComparisonSpec(
            reference=MOE, bases=(Basis.NAMED, Basis.EQUAL_ACTIVE, Basis.EQUAL_TOTAL),
            flips=(FlipAxis.CONCURRENCY, FlipAxis.CONTEXT, FlipAxis.LINK_BANDWIDTH),
        ),
        engine=Engine.FLOW,
    )  # fmt: skip


def _system(
    name: str, kind: SystemKind, basis: Basis, model: str, n: float, active: float, members: int, kv: float,
    n_layers: int, n_experts: int, top_k: int,
) -> SystemResult:  # fmt: skip
    is_moe = kind is SystemKind.MOE
    per_rank = n * 2.0 / 2
    memory = _memory(is_moe, per_rank, kv)
    points = tuple(_point(c, kind, n, active, kv, per_rank) for c in CONCURRENCY)
    details = ()
    if basis is Basis.NAMED:
        details = (_decode(is_moe, active, n, per_rank, kv), _prefill(is_moe, active, per_rank))
    return SystemResult(
        name=name, kind=kind, basis=basis, model=model, hf_id=None, n_params=n, n_active_params=active,
        n_experts=n_experts if is_moe else None, top_k=top_k if is_moe else None, n_members=members,
        parallel="DP2 EP2" if is_moe else ("1 GPU" if members > 1 else "TP2"),
        n_ranks_per_instance=1 if members > 1 else 2, n_instances=2 if members > 1 else 1,
        weight_dtypes={"attention": "bf16", "experts" if is_moe else "dense_ffn": "bf16"},
        routing="preset mixtral-8x7b (fitted to published loads)" if is_moe else None,
        memory=memory, points=points, details=details,
        expert_load=_load(n_layers, n_experts, top_k) if is_moe else None,
        paths=_paths(n_layers, n_experts, top_k) if is_moe else None,
        notes=("Members share no work: 4 whole models lie on each device.",) if members > 1 else (),
    )  # fmt: skip


def _memory(is_moe: bool, weights: float, kv: float, at: int = CONCURRENCY[-1]) -> MemoryResult:
    parts = {"attention": 0.12 * weights, "embedding": 0.01 * weights, "lm_head": 0.01 * weights}
    parts["routed_experts" if is_moe else "dense_ffn"] = weights - sum(parts.values())
    reserve, activations, buffers = 1.5e9 + 0.03 * CAPACITY, 0.6e9, 0.4e9 if is_moe else 0.0
    cache = at * 1280 * kv / 2
    total = weights + cache + activations + buffers + reserve
    fits = total <= CAPACITY
    room = int((CAPACITY - total + cache) // (1280 * kv / 2))
    gap = (total - CAPACITY) / 1e9
    return MemoryResult(
        outcome="ok" if fits else "out of memory",
        sentence=f"fits: {total / 1e9:.1f} GB of 80.0 GB per rank" if fits else
        f"needs {total / 1e9:.1f} GB per rank, 80.0 GB there, {gap:.1f} GB short; smallest change that fits: "
        f"batch {room} instead of {at}",
        remedies=() if fits else (f"batch {room} instead of {at}", "4 devices (TP4) instead of 2", "weights in fp8"),
        capacity_bytes=CAPACITY, weights_bytes=parts, kv_cache_bytes=cache, activation_bytes=activations,
        comm_buffer_bytes=buffers, runtime_reserve_bytes=reserve, total_bytes=total, kv_bytes_per_token=kv,
        kv_capacity_tokens=room * 1280, max_sequences=room, at_concurrency=at,
    )  # fmt: skip


def _hit_frac(concurrency: int) -> float:
    return 1.0 - (1.0 - TOP_K / N_EXPERTS) ** concurrency


def _point(c: int, kind: SystemKind, n: float, active: float, kv: float, per_rank: float) -> Point:
    need = per_rank + c * 1280 * kv / 2 + 5e9
    if need > CAPACITY:
        return Point(
            concurrency=c, outcome="out of memory", reason=f"needs {need / 1e9:.1f} GB per rank, 80.0 GB there, "
            f"{(need - CAPACITY) / 1e9:.1f} GB short; smallest change that fits: 4 devices (TP4) instead of 2",
        )  # fmt: skip
    read = n * 2.0 * (0.3 + 0.7 * _hit_frac(c)) if kind is SystemKind.MOE else active * 2.0
    if kind is SystemKind.ENSEMBLE:
        read *= min(8.0, 8 * (1 - (7 / 8) ** c))
    step = (
        max(read / 2 / (0.75 * BANDWIDTH), 2 * active * c / 2 / (0.6 * PEAK))
        + c * 1152 * kv / 2 / (0.7 * BANDWIDTH)
        + 4e-4
    )
    ttft = 2 * active * 1024 / 2 / (0.55 * PEAK) + 3e-3
    tpot = step + ttft * c / 256 * 0.2
    rate = c / (tpot + ttft / 256)
    ends = {"ttft_s": (0.8 * ttft, 1.5 * ttft), "tpot_s": (0.82 * tpot, 1.18 * tpot)}
    basis = "serving runs that no fit saw"
    return Point(
        concurrency=c, outcome="ok", ttft_s=ttft, tpot_s=tpot, decode_step_s=step, output_tokens_per_s=rate,
        output_tokens_per_s_per_device=rate / 2, output_tokens_per_s_per_user=1 / tpot,
        energy_j_per_output_token=2 * 480 / rate, usd_per_million_output_tokens=2 * PRICE / 3600 / rate * 1e6,
        weight_bytes_read_per_step=read, error_frac=0.18 if kind is SystemKind.MOE else None,
        intervals=ends if kind is SystemKind.MOE else {}, interval_basis=basis if kind is SystemKind.MOE else "assumption only",
        origin=Origin.FITTED if kind is SystemKind.MOE else Origin.ASSUMPTION,
    )  # fmt: skip


def _op(
    name: str, group: str, flops: float, moved: float, *, link_s: float = 0.0, hidden_s: float = 0.0
) -> OperatorRow:
    compute, memory = flops / (0.6 * PEAK), moved / (0.75 * BANDWIDTH)
    bound = "link" if link_s else ("compute" if compute > memory else "memory")
    return OperatorRow(
        name=name, group=group, segment="moe" if group in ("experts", "router", "permute") else "layers", n_repeat=32,
        time_s=max(compute, memory, link_s) + 32 * 3e-6, hidden_s=hidden_s, bound=bound, flops=flops, moved_bytes=moved,
        origin=Origin.FITTED if group == "experts" else Origin.ASSUMPTION, error_frac=0.12 if group == "experts" else None,
        is_extrapolated=name == "experts" and flops > 1e13,
    )  # fmt: skip


def _operators(is_moe: bool, tokens: float, active: float, weights: float, kv_bytes: float) -> tuple[OperatorRow, ...]:
    flops = 2 * active * tokens / 2
    rows = [
        _op("attention_qkv", "attention", 0.08 * flops, 0.06 * weights + tokens * 1e6),
        _op("attention_scores", "attention", 0.02 * flops, kv_bytes),
        _op("attention_out", "attention", 0.06 * flops, 0.05 * weights + tokens * 1e6),
        _op("norms", "norm", 0.0, tokens * 3e6),
        _op("lm_head", "head", 0.02 * flops, 0.01 * weights),
    ]
    if is_moe:
        rows += [
            _op("router", "router", 1e-4 * flops, tokens * 4e5), _op("permute", "permute", 0.0, tokens * 2e6),
            _op("dispatch", "communication", 0.0, tokens * 5e5, link_s=tokens * 1.2e-6),
            _op("experts", "experts", 0.82 * flops, 0.86 * weights + tokens * 4e6),
            _op("combine", "communication", 0.0, tokens * 5e5, link_s=tokens * 1.4e-6, hidden_s=tokens * 0.5e-6),
        ]  # fmt: skip
    else:
        rows += [
            _op("ffn_up", "dense_ffn", 0.55 * flops, 0.58 * weights + tokens * 2e6),
            _op("ffn_down", "dense_ffn", 0.27 * flops, 0.29 * weights + tokens * 2e6),
            _op("all_reduce", "communication", 0.0, tokens * 1e6, link_s=64 * 9e-6 + tokens * 1e-6),
        ]
    return tuple(rows)


def _decode(is_moe: bool, active: float, n: float, per_rank: float, kv: float) -> PhaseDetail:
    read = per_rank * (0.3 + 0.7 * _hit_frac(FOCUS)) if is_moe else min(per_rank, n)
    detail = _detail("decode", FOCUS, 1152, _operators(is_moe, FOCUS, active, read, FOCUS * 1152 * kv / 2), is_moe)
    return detail.model_copy(update={"ranks": _ranks(), "what_if": _what_if(detail.time_s)}) if is_moe else detail


def _ranks(n_ranks: int = 2) -> RankDetail:
    waits = np.random.default_rng(3).uniform(0, 40e-6, (n_ranks, N_LAYERS)).round(8)
    return RankDetail(
        n_ranks=n_ranks, n_ranks_per_row=1, layers=tuple(range(N_LAYERS)),
        wait_s=tuple(tuple(float(x) for x in row) for row in waits), out_port_frac=(0.12, 0.14), in_port_frac=(0.15, 0.11),
        engine_frac=(0.81, 0.9),
    )  # fmt: skip


def _what_if(time_s: float) -> tuple[AlternativeRow, ...]:
    changes = (("as it is", "hgx_h100", 1.0), ("perfect balance", "every expert equally loaded", 1.08),
               ("two micro-batches", "interleaved", 0.8))  # fmt: skip
    return tuple(
        AlternativeRow(
            name=name, note=note, time_s=time_s / speedup, speedup=speedup, exposed_comm_s=0.2 * time_s, hidden_comm_s=0.0,
            wait_s=0.05 * time_s,
        )
        for name, note, speedup in changes
    )  # fmt: skip


def _prefill(is_moe: bool, active: float, per_rank: float) -> PhaseDetail:
    return _detail("prefill", 1024, 512, _operators(is_moe, 1024, active, per_rank, 1e9), is_moe)


def _detail(phase: str, tokens: float, context: float, rows: tuple[OperatorRow, ...], is_moe: bool) -> PhaseDetail:
    work = sum(r.time_s - r.hidden_s for r in rows)
    imbalance, contention, overlap = (0.09 * work, 0.04 * work, -0.02 * work) if is_moe else (0.0, 0.0, 0.0)
    total = work + contention + overlap
    waits = {c.value: 0.0 for c in Cause}
    if is_moe:
        waits |= {Cause.BARRIER.value: 0.01 * work, Cause.DATA.value: 0.07 * work, Cause.LINK_BUSY.value: 0.015 * work}
    return PhaseDetail(
        phase=phase, concurrency=FOCUS, n_tokens=tokens, context=context, time_s=total, imbalance_s=imbalance,
        exposed_comm_s=sum(r.time_s for r in rows if r.group == "communication"), hidden_comm_s=sum(r.hidden_s for r in rows),
        mfu=sum(r.flops for r in rows) / total / PEAK, mbu=sum(r.moved_bytes for r in rows) / total / BANDWIDTH, operators=rows,
        gap=GapSplit(
            balanced_s=total - imbalance - contention - overlap, imbalance_s=imbalance, contention_s=contention,
            overlap_s=overlap, simulated_s=total, waits_s=waits, n_holds=4 * 32 * 2,
        ),
    )  # fmt: skip


def _load(n_layers: int, n_experts: int, top_k: int, n_tokens: int = 4096) -> ExpertLoad:
    rng = np.random.default_rng(7)
    counts = np.array(
        [rng.multinomial(n_tokens * top_k, rng.dirichlet(np.full(n_experts, 12.0))) for _ in range(n_layers)]
    )
    ranks = counts.reshape(n_layers, 2, -1).sum(axis=2)
    return ExpertLoad(
        layers=tuple(range(n_layers)), counts=tuple(tuple(int(x) for x in row) for row in counts),
        rank_counts=tuple(tuple(float(x) for x in row) for row in ranks),
        expert_imbalance_ratio=tuple(float(row.max() / row.mean()) for row in counts),
        rank_imbalance_ratio=tuple(float(row.max() / row.mean()) for row in ranks),
        experts_hit=tuple(float((row > 0).sum()) for row in counts), source="preset mixtral-8x7b, fitted",
    )  # fmt: skip


def _paths(n_layers: int, n_experts: int, top_k: int, n_tokens: int = 4) -> PathSample:
    rng = np.random.default_rng(11)
    experts = tuple(
        tuple(tuple(int(e) for e in rng.choice(n_experts, top_k, replace=False)) for _ in range(n_layers))
        for _ in range(n_tokens)
    )
    ranks = tuple(tuple(tuple(e // (n_experts // 2) for e in layer) for layer in token) for token in experts)
    return PathSample(
        layers=tuple(range(n_layers)), experts=experts, ranks=ranks,
        n_possible_paths_log10=n_layers * math.log10(math.comb(n_experts, top_k)),
    )  # fmt: skip


def _costs(systems: tuple[SystemResult, ...]) -> tuple[str, ...]:
    return tuple(
        f"{s.name} with {FOCUS} requests in flight: TPOT {_at(s, FOCUS).tpot_s * 1e3:.1f} ms, "
        f"${_at(s, FOCUS).usd_per_million_output_tokens:.2f} per million output tokens."
        for s in systems[:4]
    )


def _at(system: SystemResult, concurrency: int) -> Point:
    return next(p for p in system.points if p.concurrency == concurrency)


def _comparisons(systems: tuple[SystemResult, ...]) -> tuple[Comparison, ...]:
    found = []
    for other, concurrency in ((s, c) for s in systems[1:] for c in (4, FOCUS)):
        a, b = _at(systems[0], concurrency), _at(other, concurrency)
        usd = b.usd_per_million_output_tokens / a.usd_per_million_output_tokens
        better = MOE if usd > 1 else other.name
        found.append(Comparison(
            reference=MOE, other=other.name, basis=other.basis, concurrency=concurrency, ttft_ratio=b.ttft_s / a.ttft_s,
            tpot_ratio=b.tpot_s / a.tpot_s, throughput_ratio=a.output_tokens_per_s / b.output_tokens_per_s,
            energy_ratio=b.energy_j_per_output_token / a.energy_j_per_output_token, usd_ratio=usd,
            memory_ratio=other.memory.total_bytes / systems[0].memory.total_bytes,
            verdict=f"{better} is {max(usd, 1 / usd):.1f} times cheaper",
            why=f"a decode step reads {b.weight_bytes_read_per_step / 1e9:.0f} GB of weights instead of "
                f"{a.weight_bytes_read_per_step / 1e9:.0f} GB, and both are bound by memory",
        ))  # fmt: skip
    return tuple(found)


def _flips() -> tuple[FlipCurve, ...]:
    batch = tuple(float(2**i) for i in range(0, 10))
    context = tuple(float(2**i) for i in range(9, 16))
    link = tuple(450e9 * 2.0**i for i in range(-5, 2))
    return (
        FlipCurve(reference=MOE, other=DENSE70, axis=FlipAxis.CONCURRENCY, unit="requests", x=batch,
                  usd_ratio=tuple(4.8 / (1 + b / 14) ** 0.3 if b < 100 else None for b in batch),
                  tpot_ratio=tuple(5.0 / (1 + b / 14) ** 0.3 if b < 100 else None for b in batch), crossings=(),
                  summary="Mixtral-8x7B is cheaper than Llama-2-70B at every concurrency that fits (1 to 64 requests)."),
        FlipCurve(reference=MOE, other=DENSE13, axis=FlipAxis.CONCURRENCY, unit="requests", x=batch,
                  usd_ratio=tuple(1.3 * (1 + b / 3) ** -0.4 for b in batch),
                  tpot_ratio=tuple(1.34 * (1 + b / 3) ** -0.4 for b in batch), crossings=(2.78,),
                  summary="Mixtral-8x7B is cheaper than Llama-2-13B up to about 2.8 requests in flight, dearer above."),
        FlipCurve(reference=MOE, other=DENSE13, axis=FlipAxis.CONTEXT, unit="tokens", x=context,
                  usd_ratio=tuple(0.35 * (c / 512) ** 0.35 for c in context),
                  tpot_ratio=tuple(0.38 * (c / 512) ** 0.36 for c in context), crossings=(10_281.0,),
                  summary="Mixtral-8x7B becomes cheaper than Llama-2-13B above a context of about 10,300 tokens, "
                          "whose key-value cache is six times larger"),
        FlipCurve(reference=MOE, other=DENSE70, axis=FlipAxis.LINK_BANDWIDTH, unit="B/s", x=link,
                  usd_ratio=tuple(2.5 * (x / 450e9) ** 0.08 for x in link),
                  tpot_ratio=tuple(2.5 * (x / 450e9) ** 0.09 for x in link), crossings=(),
                  summary="No link speed between 14 GB/s and 900 GB/s turns the verdict against Llama-2-70B."),
    )  # fmt: skip


def _quality() -> tuple[QualitySensitivity, ...]:
    return (
        QualitySensitivity(rule="geometric mean of active and total", dense_params=24.5e9, usd_ratio=0.74, tpot_ratio=0.76,
                           verdict="the dense twin is 1.4 times cheaper"),
        QualitySensitivity(rule="published MoE scaling law", dense_params=36.1e9, usd_ratio=1.08, tpot_ratio=1.1,
                           verdict="Mixtral-8x7B is 1.1 times cheaper"),
        QualitySensitivity(rule="equal total parameters", dense_params=46.7e9, usd_ratio=1.4, tpot_ratio=1.43,
                           verdict="Mixtral-8x7B is 1.4 times cheaper"),
    )  # fmt: skip


def _inputs() -> tuple[InputOrigin, ...]:
    def row(what: str, value: str, origin: Origin, source: str) -> InputOrigin:
        return InputOrigin(what=what, value=value, origin=origin, source=source)

    return (
        row("device: peak compute, bf16", "989 TFLOP/s", Origin.DATASHEET, "NVIDIA H100 data sheet, SXM column, dense"),
        row("device: memory bandwidth", "3.35 TB/s", Origin.DATASHEET, "NVIDIA H100 data sheet, SXM column"),
        row("device: price", "2.99 USD/h", Origin.SECONDARY, "public list price, https://example.org/prices"),
        row(
            "model: Mixtral-8x7B configuration", "32 layers, 8 experts", Origin.DATASHEET, "config.json on Hugging Face"
        ),
        row(
            "routing: expert popularity",
            "preset mixtral-8x7b",
            Origin.FITTED,
            "fitted to the loads of a published trace",
        ),
        row("routing: repeated experts", "0.27", Origin.PAPER, "Mixtral of Experts (2024), table 5"),
        row(
            "cost: grouped GEMM efficiency", "0.71 of peak", Origin.MEASURED, "profile of 2025-06, 212 shapes held out"
        ),
        row("cost: efficiency of other operators", "0.6 compute, 0.75 memory", Origin.ASSUMPTION, "stated default"),
    )
