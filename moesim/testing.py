"""Small hardware and models whose numbers can be checked on paper, and a log of a simulation to compare with one.

Public: moesim's own tests use it first, and users may build theirs on it. Every figure here is made up (origin: assumption).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CostModel, Efficiency, EfficiencyTable
from moesim.lowering import MoeLoad, Pass, drawn_load, expert_layout, lower, route_model
from moesim.lowering.route import tokens_per_source
from moesim.ops import Phase, Program
from moesim.routing import Placement, contiguous
from moesim.specs.base import Origin, Source
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import DeviceSpec, Hardware, LinkKind, LinkSpec, PeakFlops, Topology
from moesim.specs.model import (
    Attention,
    DenseFfn,
    Ffn,
    GqaAttention,
    LayerSpec,
    ModelSpec,
    MoeFfn,
    WeightStorage,
)
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.timeline import Timeline

__all__ = [
    "IDEAL",
    "decode",
    "prefill",
    "recorded",
    "toy_cost",
    "toy_dense_model",
    "toy_device",
    "toy_hardware",
    "toy_link",
    "toy_moe_model",
    "toy_program",
]

_PERFECT = Efficiency(1.0, 1.0, 0.0)
#: Kernels that reach every peak and start in no time: durations are flops or bytes over the data sheet's rate.
IDEAL = EfficiencyTable(_PERFECT, _PERFECT, _PERFECT, _PERFECT, _PERFECT, 1.0, 1.0)

_WHY = "made up for tests, round numbers"


def toy_device(
    *,
    memory_bytes: float = 80e9,
    memory_bytes_per_s: float = 1e12,
    bf16_flop_per_s: float = 100e12,
    fp8_flop_per_s: float | None = 200e12,
    board_power_w: float | None = 500.0,
    price_usd_per_h: float | None = 2.0,
) -> DeviceSpec:
    """A device of round numbers: 80 GB at 1 TB/s, 100 TFLOP/s bf16 and 200 fp8, 500 W, 2 USD/h."""
    figures = {"board_power_w": board_power_w, "price_usd_per_h": price_usd_per_h}
    known = [name for name, value in figures.items() if value is not None]
    covers = ("memory_bytes", "memory_bytes_per_s", "peak_flop_per_s", "year", "scale_up_domain_size", *known)
    return DeviceSpec(
        name="toy", vendor="nobody", year=2000, form="toy", memory_bytes=memory_bytes, memory_kind="toy",
        memory_bytes_per_s=memory_bytes_per_s, peak_flop_per_s=PeakFlops(bf16=bf16_flop_per_s, fp8=fp8_flop_per_s),
        board_power_w=board_power_w, price_usd_per_h=price_usd_per_h,
        sources=(Source(origin=Origin.ASSUMPTION, text=_WHY, covers=covers),),
    )  # fmt: skip


def toy_link(
    bytes_per_s: float, latency_s: float = 0.0, message_overhead_s: float = 0.0, topology: Topology = Topology.SWITCH
) -> LinkSpec:
    """A link of `bytes_per_s` each way; free of latency unless said."""
    covers = ("bytes_per_s", "latency_s", "message_overhead_s")
    return LinkSpec(
        name="toy", kind=next(iter(LinkKind)), topology=topology, bytes_per_s=bytes_per_s, latency_s=latency_s,
        message_overhead_s=message_overhead_s, sources=(Source(origin=Origin.ASSUMPTION, text=_WHY, covers=covers),),
    )  # fmt: skip


def toy_hardware(
    n_devices: int = 8,
    domain_size: int | None = None,
    *,
    device: DeviceSpec | None = None,
    scale_up: LinkSpec | None = None,
    scale_out: LinkSpec | None = None,
) -> Hardware:
    """Toy devices: 100 GB/s inside a scale-up domain (all of them by default), 10 GB/s between domains."""
    used = device or toy_device()
    domain = domain_size or n_devices
    out = scale_out or toy_link(10e9)
    return Hardware(
        name="toy", device=used, n_devices=n_devices, scale_up=scale_up or toy_link(100e9), scale_up_domain_size=domain,
        scale_out=out if domain < n_devices else None, nic_bytes_per_s=out.bytes_per_s if domain < n_devices else None,
        price_usd_per_device_h=used.price_usd_per_h,
    )  # fmt: skip


def toy_cost(hardware: Hardware | None = None, efficiency: EfficiencyTable = IDEAL) -> CostModel:
    """Costs at every peak, uncalibrated."""
    return CostModel.of(hardware or toy_hardware(), None, efficiency)


def toy_dense_model(
    *,
    n_layers: int = 2,
    hidden_size: int = 64,
    inter_size: int = 256,
    vocab_size: int = 512,
    attention: Attention | None = None,
    storage: WeightStorage | None = None,
) -> ModelSpec:
    """Dense layers of 4 heads of 16, 2 key-value heads, a gated block of width 256; all bf16."""
    return _model(
        "toy-dense", DenseFfn(intermediate_size=inter_size), n_layers, hidden_size, vocab_size, attention, storage
    )


def toy_moe_model(
    *,
    n_layers: int = 2,
    hidden_size: int = 64,
    inter_size: int = 128,
    n_experts: int = 8,
    top_k: int = 2,
    shared_inter_size: int = 0,
    vocab_size: int = 512,
    attention: Attention | None = None,
    storage: WeightStorage | None = None,
    n_group: int = 1,
    topk_group: int = 1,
) -> ModelSpec:
    """The toy dense model with 8 experts of width 128 in every layer, 2 per token."""
    ffn = MoeFfn(
        n_routed_experts=n_experts, num_experts_per_tok=top_k, moe_intermediate_size=inter_size, n_group=n_group,
        n_shared_experts=int(shared_inter_size > 0), shared_intermediate_size=shared_inter_size, topk_group=topk_group,
    )  # fmt: skip
    return _model("toy-moe", ffn, n_layers, hidden_size, vocab_size, attention, storage)


def _model(
    name: str, ffn: Ffn, n_layers: int, hidden_size: int, vocab_size: int, attention: Attention | None,
    storage: WeightStorage | None,
) -> ModelSpec:  # fmt: skip
    mixer = attention or GqaAttention(n_heads=4, n_kv_heads=2, head_dim=16, v_head_dim=16)
    layer = LayerSpec(attention=mixer, ffn=ffn)
    return ModelSpec(
        name=name, hidden_size=hidden_size, vocab_size=vocab_size, layers=(layer,) * n_layers,
        storage=storage or WeightStorage.uniform(Dtype.BF16),
    )  # fmt: skip


def decode(batch: float, context: float) -> Pass:
    """One new token for each of `batch` sequences; `context` tokens are seen, the new one included."""
    return Pass(Phase.DECODE, float(batch), 1.0, float(context) - 1.0)


def prefill(batch: float, new_tokens: float, cached_tokens: float = 0.0) -> Pass:
    """`new_tokens` of each of `batch` prompts over `cached_tokens` in the cache."""
    return Pass(Phase.PREFILL, float(batch), float(new_tokens), float(cached_tokens))


def toy_program(
    model: ModelSpec,
    parallel: ParallelSpec,
    step: Pass,
    *,
    domain_size: int | None = None,
    family: RouterFamily = RouterFamily.UNIFORM,
    counts: NDArray[np.int64] | Sequence[Sequence[Sequence[int]]] | None = None,
    placement: Placement | None = None,
    rng: np.random.Generator | None = None,
    overlap: bool = False,
) -> Program:
    """A pass of any model, lowered under a load of the caller's choice.

    Args:
        model: the architecture; where loads are given, its MoE layers are alike.
        parallel: the split.
        step: the pass.
        domain_size: ranks of a scale-up domain; one domain by default.
        family: router whose expected load is used, or from which `rng` draws.
        counts: [L, S, E] assignments by MoE layer, source rank and expert: exactly this load.
        placement: experts on expert ranks, contiguous by default; used with `counts`.
        rng: draw a load instead of taking the expected one.
        overlap: run shared experts beside the dispatch.
    """
    domain = domain_size or parallel.n_stage_ranks
    layout = expert_layout(parallel, step.phase, domain)
    routed = route_model(model, RoutingSpec(family=family), parallel, domain) if model.is_moe else None
    drawn: Mapping[tuple[int, int], NDArray[np.int64]] = {}
    if routed is not None and rng is not None:
        drawn = routed.draw(step, layout, rng)

    def load_for(ffn: MoeFfn, indices: tuple[int, ...]) -> MoeLoad:
        if counts is not None:
            tokens = tokens_per_source(step, layout).astype(float)
            where = placement or contiguous(ffn.n_routed_experts, parallel.ep_size)
            return drawn_load(np.asarray(counts), tokens, where, layout, ffn.num_experts_per_tok)
        if routed is None:
            raise ValueError("a dense model has no load")
        if rng is not None:
            return routed.drawn(ffn, indices, step, layout, drawn)
        return routed.expected(ffn, indices, step, layout)

    return lower(model, parallel, step, load_for, overlap=overlap)


def recorded(timeline: Timeline, names: Iterable[str] | None = None, n_digits: int = 12) -> list[tuple[float, str]]:
    """What a simulation did, as sorted `(when, what)`: one entry per start of work or waiting, times rounded.

    `what` is ``rank/lane layer name`` with ``(cause)`` where a rank waits; `names` keeps only spans of these names.
    """
    wanted = None if names is None else set(names)
    entries = []
    for span in timeline:
        if wanted is not None and span.name not in wanted:
            continue
        cause = f" ({span.cause.value})" if span.cause is not None else ""
        what = f"{span.rank}/{span.lane} {span.layer} {span.name}{cause} for {round(span.duration_s, n_digits):g}"
        entries.append((round(span.start_s, n_digits), what))
    return sorted(entries)
