"""What the steps of a plan share on one kind of hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.cost import CalibratedOps, CostModel
from moesim.errors import InputError
from moesim.memory import kv_bytes_per_sequence
from moesim.specs.catalog import load_cluster, load_hardware
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.study.instance import Instance, build_instance
from moesim.study.plan.spec import PlanSpec
from moesim.study.plan.splits import Split
from moesim.study.stepping import Stepping, stepping_of

__all__ = ["Ground", "devices_of", "transfer_seconds"]

#: Achieved share of a link's peak when a prompt's cache travels; the serving simulation uses the same. Assumption.
TRANSFER_FRAC = 0.85


@dataclass(frozen=True, slots=True)
class Ground:
    """A question on one kind of hardware, with the splits that fit; `name` is as asked."""

    name: str
    spec: PlanSpec
    model: ModelSpec
    hardware: Hardware
    calibration: CalibratedOps | None
    splits: Sequence[Split] = ()
    transfer_s: float | None = None

    @property
    def stepping(self) -> Stepping:
        """How attention-DP ranks take prompts."""
        return stepping_of(self.spec.dp_prefill, self.calibration)

    def instance(self, parallel: ParallelSpec) -> Instance:
        """The model on a split of this hardware."""
        cost = CostModel.of(self.hardware.with_n_devices(parallel.n_ranks), self.calibration)
        rng = np.random.default_rng(self.spec.seed)
        return build_instance(self.model, parallel, self.hardware, self.spec.routing, cost=cost, rng=rng)


def devices_of(name: str, n_devices: int) -> Hardware:
    """Up to `n_devices` of a cluster (all of a smaller one), or of a device (one scale-up domain where it has no NIC).

    Raises:
        InputError: no such hardware.
    """
    try:
        return load_hardware(name, n_devices)
    except InputError as error:
        if error.field != "n_devices":
            raise
    whole = load_hardware(name)
    try:
        load_cluster(name)
    except InputError:
        return load_hardware(name, min(n_devices, whole.device.scale_up_domain_size))
    return load_hardware(name, min(n_devices, whole.n_devices))


def transfer_seconds(model: ModelSpec, hardware: Hardware, input_tokens: int) -> float | None:
    """Moving one prompt's cache to a decode instance: latency + bytes / rate of one link; None where there is no link.

    The NIC where devices are in several scale-up domains, else the scale-up link.
    """
    crosses = hardware.n_devices > hardware.scale_up_domain_size
    link = hardware.scale_out if crosses else hardware.scale_up
    if link is None:
        return None
    rate = hardware.nic_bytes_per_s if crosses and hardware.nic_bytes_per_s else link.bytes_per_s
    kv_bytes = kv_bytes_per_sequence(model, ParallelSpec(), float(input_tokens))
    return link.latency_s + kv_bytes / (rate * TRANSFER_FRAC)
