"""What if: one pass again with twice the NIC, in one NVLink rack, in balance, without overlap; tokens' ways for a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CostModel
from moesim.lowering import Pass
from moesim.lowering.route import Counts
from moesim.sim import FlowOptions, FlowResult, simulate
from moesim.specs.catalog import load_hardware, load_link
from moesim.specs.hardware import DeviceSpec, Hardware
from moesim.specs.parallel import Overlap
from moesim.study.instance import Instance
from moesim.timeline import Span, Timeline

__all__ = ["Alternative", "TokenFlow", "WhatIf", "token_flows", "what_if"]


@dataclass(frozen=True, slots=True)
class Alternative:
    """One changed thing: its pass, in seconds, and the factor by which the pass gets quicker."""

    name: str
    note: str
    time_s: float
    speedup: float
    exposed_comm_s: float
    hidden_comm_s: float
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
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class TokenFlow:
    """One hop of a sampled token in a layer: from where and when its row left to where and when work on it began.

    `stage` is ``dispatch`` (home rank to an expert's) or ``combine`` (back).
    """

    token: int
    layer: int
    stage: str
    from_rank: int
    from_s: float
    to_rank: int
    to_s: float


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
    program = instance.program(step, counts)
    result = simulate(program, instance.cost, options=options)
    base = _alternative("as it is", instance.hardware.name, result, result.time_s)
    others = [
        _alternative(name, note, _run(changed, step, counts if same else None, seed, options), result.time_s)
        for name, note, changed, same in _changes(instance)
    ]
    layers = tuple(range(len(instance.model.layers)))
    return WhatIf(
        base, tuple(others), layers, result.wait_map_s(layers), result.port_utilisation, result.timeline
    )


def _run(instance: Instance, step: Pass, counts: Counts | None, seed: Seed, options: FlowOptions | None) -> FlowResult:
    used = counts if counts is not None else instance.draw(step, np.random.default_rng(seed))
    return simulate(instance.program(step, used), instance.cost, record=False, options=options)


def _alternative(name: str, note: str, result: FlowResult, base_s: float) -> Alternative:
    waits_s = sum(seconds for cause, seconds in result.waits_s.items() if cause.is_wait)
    exposed, hidden = result.exposed_comm_s, result.hidden_comm_s
    return Alternative(name, note, result.time_s, base_s / result.time_s, exposed, hidden, waits_s)


def _changes(instance: Instance) -> list[tuple[str, str, Instance, bool]]:
    """Name, note, instance, and whether the same draw fits it."""
    hardware, found = instance.hardware, []
    crosses = hardware.scale_out is not None and instance.parallel.n_stage_ranks > hardware.scale_up_domain_size
    if crosses and hardware.nic_bytes_per_s:
        faster = hardware.model_copy(update={"nic_bytes_per_s": 2.0 * hardware.nic_bytes_per_s})
        found.append(("twice the NIC", "latencies unchanged", _on(instance, faster), True))
    if crosses:
        rack = max(72, instance.parallel.n_stage_ranks)
        whole, note = _one_domain(hardware, rack)
        found.append((f"one NVLink domain of {rack}", note, _on(instance, whole), True))
    if instance.routed is not None:
        found.append(("perfect balance", "every expert equally loaded", instance.balanced(), False))
    if instance.overlap:
        found.append(("no overlap", "one thing after another", replace(instance, overlap=Overlap.NONE), True))
    if instance.routed is not None and instance.overlap is not Overlap.TWO_BATCH:
        found.append(("two micro-batches", "interleaved", replace(instance, overlap=Overlap.TWO_BATCH), False))
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
    cost = CostModel.of(hardware, instance.cost.calibration, instance.cost.efficiency)
    return replace(instance, hardware=hardware, cost=cost)


def token_flows(
    timeline: Timeline, home_ranks: Sequence[int], layers: Sequence[int], ranks: Sequence[Sequence[Sequence[int]]]
) -> tuple[TokenFlow, ...]:
    """Arrows of sampled tokens for a trace: end of the home rank's dispatch to the start of experts, and back.

    Args:
        timeline: of a recorded simulation.
        home_ranks: where each token starts.
        layers: of the model, as `ranks` has them.
        ranks: by token and layer, the ranks of its experts.
    """
    first: dict[tuple[int, int, str], Span] = {}
    for span in timeline:
        if span.cause is None and span.name in ("dispatch", "experts", "combine", "unpermute"):
            first.setdefault((span.rank, span.layer, span.name), span)
    flows: list[TokenFlow] = []
    for token, home in enumerate(home_ranks):
        for position, layer in enumerate(layers):
            sent, back = first.get((home, layer, "dispatch")), first.get((home, layer, "unpermute"))
            for rank in sorted(set(ranks[token][position])):
                work, returned = first.get((rank, layer, "experts")), first.get((rank, layer, "combine"))
                if sent is not None and work is not None:
                    flows.append(TokenFlow(token, layer, "dispatch", home, sent.start_s, rank, work.start_s))
                if returned is not None and back is not None:
                    flows.append(TokenFlow(token, layer, "combine", rank, returned.start_s, home, back.start_s))
    return tuple(flows)
