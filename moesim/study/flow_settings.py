"""Whether the settings of simulated passes fit a system, and which of them an engine knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moesim.cost import CostModel
from moesim.cost.served import stack_of
from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.specs.flow import Exchange, FlowSpec, Granularity
from moesim.specs.hardware import Hardware
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.scenario import Engine, ScenarioSpec
from moesim.study.halves import split_pass

if TYPE_CHECKING:
    from moesim.study.instance import Instance

__all__ = ["check_engine", "check_flips", "check_settings", "lending", "notes_of"]

#: Bytes by pair of ranks and layer are kept in memory: 0.7 GB for DeepSeek-V3 on so many.
MOST_PAIRED_RANKS = 512


def check_settings(settings: FlowSpec, parallel: ParallelSpec, hardware: Hardware, *, has_exchanges: bool) -> None:
    """Refuse what does not fit a system.

    Args:
        settings: of the system.
        parallel: its split.
        hardware: its devices.
        has_exchanges: whether tokens travel between its ranks.

    Raises:
        InputError: ranks that it does not have, or exchanges, loads and units that mean nothing to it.
    """
    n_ranks = parallel.n_stage_ranks
    for name in ("slow_ranks", "slow_links"):
        factors: dict[int, float] = getattr(settings, name)
        if factors and parallel.pp_size > 1:
            raise InputError("would be in every stage of the pipeline", field=f"flow.{name}", hint="use pp_size 1")
        for rank in factors:
            if rank >= n_ranks:
                raise InputError("no such rank", field=f"flow.{name}", value=rank, allowed=f"0..{n_ranks - 1}")
    if settings.slow_links and n_ranks == 1:
        raise InputError("a single rank has no links in use", field="flow.slow_links", hint="leave it out")
    _check_exchanges(settings, hardware, n_ranks, has_exchanges)
    for name in ("dp_load", "dp_context"):
        loads: Sequence[float] | None = getattr(settings, name)
        if loads is not None and (parallel.dp_size == 1 or parallel.dp_size % len(loads)):
            n = parallel.dp_size
            allowed = "1 load per group, or as many as divide them" if n > 1 else None
            hint = None if n > 1 else "needs attention-DP groups (dp_size above 1)"
            raise InputError(
                f"does not fit {n} attention-DP group{'s' * (n > 1)}", field=f"flow.{name}", value=list(loads), allowed=allowed,
                hint=hint,
            )  # fmt: skip


def _check_exchanges(settings: FlowSpec, hardware: Hardware, n_ranks: int, has_exchanges: bool) -> None:
    used = {
        "exchange": settings.exchange is not Exchange.AUTO, "comm_sms": settings.comm_sms is not None,
        "granularity": settings.granularity is not Granularity.RANK,
    }  # fmt: skip
    for name, is_used in used.items():
        if is_used and not has_exchanges:
            raise InputError(
                "means nothing here: no tokens travel between ranks", field=f"flow.{name}",
                hint="leave it out, or spread experts (ep_size) over attention-DP ranks (dp_size)",
            )  # fmt: skip
    if settings.granularity is not Granularity.RANK and n_ranks > MOST_PAIRED_RANKS:
        raise InputError(
            f"too many pairs among {n_ranks} ranks", field="flow.granularity", value=settings.granularity.value,
            allowed=f"at most {MOST_PAIRED_RANKS} ranks", hint="use granularity rank",
        )  # fmt: skip
    units, lent = hardware.device.n_compute_units, settings.comm_sms
    if lent is None:
        return
    if hardware.fabric is None:
        raise InputError(
            f"what compute units do for exchanges of {hardware.device.name} was never measured", field="flow.comm_sms",
            value=lent, hint="leave it out, or use hardware with a measured fabric (docs/fabric.md)",
        )  # fmt: skip
    if units is not None and lent >= units:
        raise InputError("leaves no compute units", field="flow.comm_sms", value=lent, allowed=f"1..{units - 1}")


def check_engine(settings: FlowSpec, engine: Engine, field: str = "flow") -> None:
    """Refuse settings that only the simulation knows where passes are timed in closed form.

    Raises:
        InputError: naming the first of them.
    """
    if engine is Engine.ANALYTIC and settings.simulated:
        name = settings.simulated[0]
        value = getattr(settings, name)
        raise InputError(
            "is known to the simulation only", field=f"{field}.{name}", value=getattr(value, "value", value),
            hint="use engine flow, or leave it out",
        )  # fmt: skip


def check_flips(scenario: ScenarioSpec) -> None:
    """Refuse flips of systems whose settings the closed form does not know, as flips are traced in it.

    Raises:
        InputError: naming the first such setting.
    """
    for i, system in enumerate(scenario.systems):
        if scenario.comparison.flips and system.flow.simulated:
            raise InputError(
                "flips are traced in closed form, which does not know it",
                field=f"systems.{i}.flow.{system.flow.simulated[0]}", hint="leave it out, or comparison.flips",
            )  # fmt: skip


def notes_of(instance: Instance, decode: Pass) -> tuple[str, ...]:
    """What a system's overlap and settings mean to its passes, where that is not what one would think."""
    notes, mode = [], instance.overlap
    if mode and not instance.has_exchanges:
        notes.append(
            f"overlap: {mode.value} changes nothing: no tokens travel between ranks, so there is nothing to overlap."
        )
    elif mode is Overlap.SHARED_EXPERTS and not any(op.hidden_under for _, op in instance.program(decode).ops()):
        notes.append("overlap: shared_experts changes nothing: the model has no shared experts.")
    elif mode is Overlap.TWO_BATCH and split_pass(decode, instance.parallel.dp_size) is None:
        notes.append(
            "overlap: a decode pass with one sequence per rank cannot be split; shared experts run beside the dispatch."
        )
    if instance.settings.slow_ranks or instance.settings.slow_links:
        slow = {**instance.settings.slow_links, **instance.settings.slow_ranks}
        notes.append(f"Slow ranks or links ({', '.join(str(rank) for rank in sorted(slow))}) are in every instance.")
    if instance.settings.launch_s is not None and stack_of(instance.cost.calibration) is not None:
        notes.append(
            "launch_s comes before the host time of the serving stack, which has launches of its own in prefill."
        )
    return tuple(notes)


def lending(cost: CostModel, comm_sms: int | None) -> CostModel:
    """Costs with so many compute units lent to high-throughput exchanges, in place of the fabric's own number."""
    fabric = cost.network.fabric
    if comm_sms is None or fabric is None:
        return cost
    lent = fabric.model_copy(update={"n_sms": comm_sms})
    hardware = cost.hardware.model_copy(update={"fabric": lent})
    return replace(cost, hardware=hardware, network=replace(cost.network, fabric=lent))
