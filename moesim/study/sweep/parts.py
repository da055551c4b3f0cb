"""What the cases of a group share: rules, a system's model, split, hardware and calibration, and its routers, each remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.cost import CalibratedOps
from moesim.cost.served import stack_of
from moesim.errors import InputError
from moesim.lowering import Routed, route_model
from moesim.lowering.route import place_experts
from moesim.specs.catalog import load_hardware
from moesim.specs.flow import EVEN
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementSpec, RoutingSpec
from moesim.specs.scenario import SystemKind, SystemSpec
from moesim.study.calibrated import calibration_for
from moesim.study.flow_settings import check_settings
from moesim.study.instance import travel
from moesim.study.kernels import as_run
from moesim.study.resolve import resolve_model
from moesim.study.sweep.constraints import Target
from moesim.study.sweep.paths import Variant, patched_model
from moesim.study.sweep.shapes import changed_model

__all__ = [
    "NUMBERS", "WITH_ENDS", "GroupCases", "Parts", "Rules", "check_base", "is_quick", "model_key", "routed_of", "system_parts",
]  # fmt: skip

Floats = NDArray[np.float64]
#: Results that carry the ends of their 90% intervals.
WITH_ENDS = ("ttft_s", "tpot_s", "output_tokens_per_s", "usd_per_million_output_tokens", "energy_j_per_output_token")
#: Result columns that hold numbers, in order.
NUMBERS = (
    "n_params", "n_active_params", "n_experts", "top_k", "expert_width", "concurrency", "train_tokens", "loss", "other_loss",
    "n_instances", "memory_bytes", "ttft_s", "tpot_s", "decode_step_s", "output_tokens_per_s",
    "output_tokens_per_s_per_device", "output_tokens_per_s_per_user", "usd_per_million_output_tokens",
    "energy_j_per_output_token", "exposed_comm_frac", "rank_imbalance_ratio", "error_frac",
    *(f"{name}_{end}" for name in WITH_ENDS for end in ("low", "high")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all cases of a sweep."""

    targets: tuple[Target, ...] = ()
    law: str | None = None
    other_law: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class GroupCases:
    """Cases of one system in one variant: `numbers` of the workload (and training), and of the experts where they vary.

    `model` and `parallel` stand in for the system's own. Constraints on experts hold for the system that is swept, not for one
    `is_other`.
    """

    variant: Variant
    system: int
    numbers: Mapping[str, Floats]
    model: ModelSpec | None = None
    parallel: ParallelSpec | None = None
    is_other: bool = False

    @property
    def n(self) -> int:
        """How many."""
        return len(self.numbers["concurrency"])

    @property
    def spec(self) -> SystemSpec:
        """The system."""
        return self.variant.scenario.systems[self.system]

    @property
    def parts(self) -> Parts:
        """Model, split, hardware and calibration."""
        own = system_parts(self.variant, self.system)
        model = own.model if self.model is None else self.model
        return replace(own, model=model, parallel=self.parallel or own.parallel)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a system of a variant consists of."""

    model: ModelSpec
    parallel: ParallelSpec
    hardware: Hardware
    calibration: CalibratedOps | None


def is_quick(variant: Variant, system: int) -> bool:
    """Whether the arrays can answer: one model per slot, at most shared experts beside communication, and even loads."""
    spec = variant.scenario.systems[system]
    return spec.n_members == 1 and spec.overlap is not Overlap.TWO_BATCH and spec.flow == EVEN


@lru_cache(maxsize=64)
def _hardware(name: str, n_devices: int | None, calibration: str | None) -> tuple[Hardware, CalibratedOps | None]:
    hardware = load_hardware(name, n_devices)
    return hardware, calibration_for(calibration, hardware.device.name)


@lru_cache(maxsize=64)
def _model(name: str, weight_dtype: Any, kv_dtype: Any, shape: tuple[tuple[str, int], ...]) -> ModelSpec:
    spec = SystemSpec.model_construct(
        name="-", kind=SystemKind.MOE, model=name, weight_dtype=weight_dtype, kv_dtype=kv_dtype
    )
    return patched_model(resolve_model(spec), dict(shape))


@lru_cache(maxsize=256)
def routed_of(
    model: tuple[str, Any, Any, tuple[tuple[str, int], ...]], experts: tuple[tuple[str, int], ...], routing: RoutingSpec,
    parallel: ParallelSpec, domain_size: int, seed: int,
) -> Routed:  # fmt: skip
    """Routers are drawn from the seed alone, so that cases that differ elsewhere see the same popularity."""
    alike = _routers(model, experts, routing.model_copy(update={"placement": PlacementSpec()}), seed)
    changed = changed_model(_model(*model), dict(experts))
    groups = {(f.n_routed_experts, f.num_experts_per_tok): f.n_group for f in _blocks(changed)}
    placements = {
        key: place_experts(routing.placement, router, parallel, domain_size, groups[key])
        for key, router in alike.routers.items()
    }
    return replace(alike, spec=routing, placements=placements)


def _blocks(model: ModelSpec) -> list[MoeFfn]:
    """MoE blocks, the last of each kind first, so that the first one's groups count where two kinds are routed alike."""
    return [layer.ffn for layer, _ in reversed(model.layer_kinds) if isinstance(layer.ffn, MoeFfn)]


@lru_cache(maxsize=64)
def _routers(
    model: tuple[str, Any, Any, tuple[tuple[str, int], ...]], experts: tuple[tuple[str, int], ...], routing: RoutingSpec,
    seed: int,
) -> Routed:  # fmt: skip
    """Routers of a model, wherever its experts lie."""
    changed = changed_model(_model(*model), dict(experts))
    return route_model(changed, routing, ParallelSpec(), 1, np.random.default_rng(seed))


def system_parts(variant: Variant, system: int) -> Parts:
    """Model, split, hardware and calibration of a system.

    Raises:
        InputError: names that do not exist, a model that is not of the system's kind.
        ValueError: a shape that the model cannot take, settings that do not fit its split.
    """
    scenario, spec = variant.scenario, variant.scenario.systems[system]
    hardware, calibration = _hardware(scenario.hardware, scenario.n_devices, scenario.calibration)
    model = _model(*model_key(variant, system))
    if (spec.kind is SystemKind.MOE) != model.is_moe and spec.kind is not SystemKind.ENSEMBLE:
        raise InputError("is not of the system's kind", field="model", value=spec.model, allowed=spec.kind.value)
    try:
        _check_fit(spec, model, hardware)
    except InputError as error:
        raise ValueError(str(error)) from None
    if stack_of(calibration) is not None:
        model = as_run(model, hardware.device.name)
    return Parts(model, spec.parallel, hardware, calibration)


def check_base(variant: Variant, system: int) -> None:
    """Refuse a base whose own settings do not fit its split.

    Raises:
        InputError: which, and what would fit.
    """
    scenario, spec = variant.scenario, variant.scenario.systems[system]
    hardware, _ = _hardware(scenario.hardware, scenario.n_devices, scenario.calibration)
    try:
        _check_fit(spec, _model(*model_key(variant, system)), hardware)
    except InputError as error:
        error.field = f"systems.{system}.{error.field}"
        raise


def _check_fit(spec: SystemSpec, model: ModelSpec, hardware: Hardware) -> None:
    if spec.flow != EVEN:
        check_settings(spec.flow, spec.parallel, hardware, has_exchanges=travel(model, spec.parallel))


def model_key(variant: Variant, system: int) -> tuple[str, Any, Any, tuple[tuple[str, int], ...]]:
    """What tells a system's model: name, formats, changes of shape."""
    spec = variant.scenario.systems[system]
    return spec.model, spec.weight_dtype, spec.kv_dtype, tuple(sorted(variant.shapes.get(system, {}).items()))
