"""What if: one pass again with twice the NIC, in one NVLink rack, in balance, without overlap."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CostModel
from moesim.lowering import Pass
from moesim.lowering.route import Counts
from moesim.ops import OpKind, Program
from moesim.sim import FlowOptions, FlowResult, simulate
from moesim.specs.catalog import load_hardware, load_link
from moesim.specs.flow import Granularity
from moesim.specs.hardware import DeviceSpec, Hardware
from moesim.specs.parallel import Overlap
from moesim.study.even import even_draw
from moesim.study.flow_settings import lending
from moesim.study.halves import split_pass
from moesim.study.instance import Instance
from moesim.timeline import Timeline

__all__ = ["Alternative", "WhatIf", "what_if"]


@dataclass(frozen=True, slots=True)
class Alternative:
    """One changed thing: its pass, in seconds, and the factor by which the pass gets quicker.

    `exposed_comm_s` and `slower_wait_s` are what `FlowResult` calls so: communication that the pass waits for, and what the mean
    rank waits for slower ones.
    """

    name: str
    note: str
    time_s: float
    speedup: float
    exposed_comm_s: float
    hidden_comm_s: float
    slower_wait_s: float
    waits_s: float


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A simulated pass as it is, alternatives to it, and who waits where.

    [R, L] in `wait_map_s` over `layers`; [R] in `port_utilisation` (part of the pass in which the busier direction is in use).
    """

    base: Alternative
    alternatives: tuple[Alternative, ...]
    layers: tuple[int, ...]
    wait_map_s: NDArray[np.float64]
    port_utilisation: NDArray[np.float64]
    result: FlowResult

    @property
    def timeline(self) -> Timeline:
        """Spans of all ranks."""
        return self.result.timeline


Seed = int | np.random.SeedSequence


def what_if(instance: Instance, step: Pass, seed: Seed = 0, options: FlowOptions | None = None) -> WhatIf:
    """Simulate a pass and its alternatives under the same draw of every token's experts.

    Args:
        instance: with whatever overlap it has.
        step: the pass.
        seed: of the draw.
        options: stragglers and the like, for all of them.
    """
    counts = instance.draw(step, np.random.default_rng(seed))
    program, result = _run(_Change("as it is", instance.hardware.name, instance), step, counts, options, record=True)
    base = _alternative("as it is", instance.hardware.name, result, result.time_s)
    others = []
    for change in _changes(instance, step, options):
        how, changed = change.options or options, change.step or step
        same = _counts(change, changed, counts, seed)
        grouped = change.keeps_experts and _are_grouped(program)
        _, found = _run(change, changed, same, how, grouped=grouped)
        others.append(_alternative(change.name, change.note, found, result.time_s))
    layers = tuple(range(len(instance.model.layers)))
    return WhatIf(base, tuple(others), layers, result.wait_map_s(layers), result.port_utilisation, result)


@dataclass(frozen=True, slots=True)
class _Change:
    """One thing changed: the instance, the pass or the options; whether the draw fits it and experts run as they did."""

    name: str
    note: str
    instance: Instance
    draws_alike: bool = True
    keeps_experts: bool = False
    step: Pass | None = None
    options: FlowOptions | None = field(default=None)
    is_even: bool = False


def _counts(change: _Change, step: Pass, drawn: Counts | None, seed: Seed) -> Counts | None:
    """The pass's own counts, even ones, or a draw of their own."""
    if change.is_even:
        return even_draw(change.instance, step)
    return drawn if change.draws_alike else change.instance.draw(step, np.random.default_rng(seed))


def _run(
    change: _Change, step: Pass, counts: Counts | None, options: FlowOptions | None, *, grouped: bool = False,
    record: bool = False,
) -> tuple[Program, FlowResult]:  # fmt: skip
    instance = change.instance
    used = options or instance.options(step.phase)
    program = instance.program(step, counts, pairs=counts is not None and used.granularity is not Granularity.RANK)
    if grouped:
        program = _with_grouped(program)
    return program, simulate(program, instance.cost, record=record, options=used)


def _are_grouped(program: Program) -> bool:
    return any(op.is_grouped for part in (program, *program.micro_batches) for _, op in part.ops())


def _with_grouped(program: Program) -> Program:
    """The program with experts, and the kernels around them, as behind an exchange that crosses domains.

    Kernels do not change with the links below the exchange, so that a comparison of links does not change prices of experts.
    """
    segments = tuple(
        replace(s, ops=tuple(
            replace(op, is_grouped=True) if op.kind is OpKind.GROUPED_GEMM or op.group == "permute" else op for op in s.ops
        )) for s in program.segments
    )  # fmt: skip
    return replace(program, segments=segments, micro_batches=tuple(map(_with_grouped, program.micro_batches)))


def _alternative(name: str, note: str, result: FlowResult, base_s: float) -> Alternative:
    waits_s = sum(seconds for cause, seconds in result.waits_s.items() if cause.is_wait)
    exposed, hidden = result.exposed_comm_s, result.hidden_comm_s
    return Alternative(
        name, note, result.time_s, base_s / result.time_s, exposed, hidden, result.slower_wait_s, waits_s
    )


def _changes(instance: Instance, step: Pass, options: FlowOptions | None) -> list[_Change]:
    """What to try."""
    hardware, found = instance.hardware, []
    crosses = hardware.scale_out is not None and instance.parallel.n_stage_ranks > hardware.scale_up_domain_size
    if crosses and hardware.nic_bytes_per_s:
        faster = hardware.model_copy(update={"nic_bytes_per_s": 2.0 * hardware.nic_bytes_per_s})
        found.append(_Change("twice the NIC", "latencies unchanged", _on(instance, faster)))
    if crosses:
        rack = max(72, instance.parallel.n_stage_ranks)
        whole, note = _one_domain(hardware, rack)
        found.append(_Change(f"one NVLink domain of {rack}", note, _on(instance, whole), keeps_experts=True))
    if instance.routed is not None:
        found.append(_Change("perfect balance", "every slot equally loaded", instance, is_even=True))
    if instance.has_exchanges:
        found += _overlaps(instance, step)
    return found + _healed(instance, step, options)


def _overlaps(instance: Instance, step: Pass) -> list[_Change]:
    found, can_split = [], split_pass(step, instance.parallel.dp_size) is not None
    if instance.overlap:
        found.append(_Change("no overlap", "one thing after another", replace(instance, overlap=Overlap.NONE)))
    if can_split and instance.overlap is not Overlap.TWO_BATCH:
        interleaved = replace(instance, overlap=Overlap.TWO_BATCH)
        found.append(_Change("two micro-batches", "interleaved", interleaved, draws_alike=False))
    return found


def _healed(instance: Instance, step: Pass, options: FlowOptions | None) -> list[_Change]:
    """The pass without what is slow or uneven in it."""
    used, found = options or instance.options(step.phase), []
    if used.slow_ranks or used.slow_links:
        slow = [f"rank {rank}" for rank in used.slow_ranks] + [f"links of rank {rank}" for rank in used.slow_links]
        note = f"without slow {', '.join(slow[:4])}" + (f" and {len(slow) - 4} more" if len(slow) > 4 else "")
        healthy = replace(used, slow_ranks={}, slow_links={})
        found.append(_Change("no stragglers", note, instance, options=healthy))
    if used.launch_s:
        found.append(_Change("no launch time", "as a replayed graph", instance, options=replace(used, launch_s=0.0)))
    if step.group_batch is not None:
        n = float(-(-sum(step.group_batch) // len(step.group_batch)) * len(step.group_batch))
        even = replace(step, batch=n, group_batch=None, group_cached=None)
        found.append(_Change("even loads", "attention-DP groups alike", instance, draws_alike=False, step=even))
    return found


def _one_domain(hardware: Hardware, size: int) -> tuple[Hardware, str]:
    """The devices in one NVLink domain: the rack's measured fabric if they are alike, else their own kernels on its ports."""
    link = load_link("nvlink5_nvl72")
    whole = hardware.model_copy(update={"scale_up": link, "scale_up_domain_size": size})
    racks = [load_hardware(name, 1) for name in ("gb200_nvl72", "gb300_nvl72")]
    alike = [rack for rack in racks if _are_alike(rack.device, hardware.device)]
    if alike:
        rack = min(alike, key=lambda rack: abs(rack.device.memory_bytes - hardware.device.memory_bytes))
        whole = whole.model_copy(update={"fabric": rack.fabric})
        return whole, f"900 GB/s, exchanges as measured on {rack.name}" + (f", whole at {size}" if size > 72 else "")
    if hardware.fabric is not None:
        name = hardware.fabric.name
        return (
            whole,
            f"900 GB/s; exchange kernels of {name}, ports scaled by their peaks (assumption: not a rack's device)",
        )
    return whole, "900 GB/s at default fractions (assumption: the device's exchanges were never measured)"


def _are_alike(a: DeviceSpec, b: DeviceSpec) -> bool:
    """Within 15% in bf16 peak and 5% in compute units: the same chip in another package."""
    units = a.n_compute_units, b.n_compute_units
    peaks = a.peak_flop_per_s.bf16, b.peak_flop_per_s.bf16
    return None not in (*units, *peaks) and _ratio(*peaks) < 1.15 and _ratio(*units) < 1.05


def _ratio(a: float | None, b: float | None) -> float:
    return max(a or 0.0, b or 0.0) / max(min(a or 0.0, b or 0.0), 1e-30)


def _on(instance: Instance, hardware: Hardware) -> Instance:
    cost = lending(
        CostModel.of(hardware, instance.cost.calibration, instance.cost.efficiency), instance.settings.comm_sms
    )
    return replace(instance, hardware=hardware, cost=cost)
