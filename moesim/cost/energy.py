"""Energy from published board power, and dollars from a price per hour. Both are estimates and say so."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.cost.result import Bound
from moesim.specs.base import Origin
from moesim.specs.hardware import DeviceSpec, Hardware

__all__ = ["IDLE_FRAC", "Energy", "pass_energy", "usd_per_million_tokens"]

#: Idle power over board power where no figure is given. Assumption: H100 SXM idles near 70-120 W of 700 W.
IDLE_FRAC = 0.15
#: Share of the dynamic power drawn while an operator of each bound runs. Assumption: compute-bound kernels draw board power,
#: memory-bound ones somewhat less, communication and launch gaps little.
DYNAMIC_FRAC = {Bound.COMPUTE: 1.0, Bound.MEMORY: 0.75, Bound.LINK: 0.35, Bound.LATENCY: 0.25}


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of one pass on all devices: what idling would have drawn anyway, and what the work added."""

    idle_j: float
    dynamic_j: float
    origin: Origin = Origin.ASSUMPTION

    @property
    def total_j(self) -> float:
        """Idle and dynamic energy together."""
        return self.idle_j + self.dynamic_j


def pass_energy(device: DeviceSpec, n_devices: int, time_s: float, busy_s: dict[Bound, float]) -> Energy | None:
    """Energy of a pass that takes `time_s`, in which a device is busy for `busy_s` by bound; None without a board power.

    n (P_idle t + (P_board - P_idle) sum_b f_b t_b). Source: board power from the data sheet, shares f_b are assumptions.
    """
    if device.board_power_w is None:
        return None
    idle_w = device.idle_power_w if device.idle_power_w is not None else IDLE_FRAC * device.board_power_w
    weighted_s = sum(DYNAMIC_FRAC[bound] * seconds for bound, seconds in busy_s.items())
    return Energy(n_devices * idle_w * time_s, n_devices * (device.board_power_w - idle_w) * min(weighted_s, time_s))


def usd_per_million_tokens(hardware: Hardware, n_devices: int, tokens_per_s: float) -> float | None:
    """Price of a million tokens at a steady rate: n price / (3600 rate) x 10^6; None where no price is known."""
    price = hardware.price_usd_per_device_h
    return None if price is None or tokens_per_s <= 0 else n_devices * price / 3600.0 / tokens_per_s * 1e6
