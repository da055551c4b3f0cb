"""Hardware as its makers state it: devices, links, clusters. Peaks only; what is achieved lives in calibrations."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from moesim.specs.base import (
    Bytes,
    BytesPerS,
    Count,
    FlopPerS,
    Frozen,
    Hertz,
    Number,
    Origin,
    Seconds,
    Sourced,
    UsdPerH,
    Watts,
    weakest,
)
from moesim.specs.dtypes import ARITHMETIC, Dtype
from moesim.specs.fabric import FabricSpec

__all__ = ["ClusterSpec", "DeviceSpec", "Hardware", "LinkKind", "LinkSpec", "PeakFlops", "Topology"]


class PeakFlops(Frozen):
    """Peak dense rates per arithmetic (no sparsity), multiply and add counted as two."""

    fp32: FlopPerS | None = None
    bf16: FlopPerS | None = None
    fp8: FlopPerS | None = None
    int8: FlopPerS | None = None
    fp4: FlopPerS | None = None

    @model_validator(mode="after")
    def _some_rate(self) -> Self:
        if self.bf16 is None and self.fp32 is None:
            raise ValueError("needs at least one of bf16 and fp32")
        return self

    def arithmetic_for(self, dtype: Dtype) -> str:
        """The best arithmetic this device has for operands stored as `dtype` (``fp8`` weights run as bf16 on an A100)."""
        for name in ARITHMETIC[dtype]:
            if getattr(self, name) is not None:
                return name
        return "bf16" if self.bf16 is not None else "fp32"

    def rate(self, dtype: Dtype) -> float:
        """Peak flop/s for operands stored as `dtype`, after the fallback of `arithmetic_for`."""
        rate = getattr(self, self.arithmetic_for(dtype))
        return float(rate)


class DeviceSpec(Sourced):
    """One accelerator (or CPU), as one rank sees it. Bandwidths are per direction.

    `same_chip_as` names a device with the same die and memory on a board with other links: its kernels' calibrations stand in.
    """

    name: str
    vendor: str
    year: int = Field(ge=2000, le=2100, strict=True)
    form: str
    aliases: tuple[str, ...] = ()
    memory_bytes: Bytes
    memory_kind: str
    memory_bytes_per_s: BytesPerS
    peak_flop_per_s: PeakFlops
    n_compute_units: Count | None = None
    boost_clock_hz: Hertz | None = None
    l2_bytes: Bytes | None = None
    scale_up_link: str | None = None
    scale_up_domain_size: Count = 1
    nic_bytes_per_s: BytesPerS | None = None
    host_memory_bytes: Bytes | None = None
    host_link_bytes_per_s: BytesPerS | None = None
    board_power_w: Watts | None = None
    idle_power_w: Watts | None = None
    price_usd_per_h: UsdPerH | None = None
    same_chip_as: str | None = None
    note: str | None = None

    @property
    def ridge_flop_per_byte(self) -> float:
        """Arithmetic intensity at which bf16 compute and memory take equally long."""
        return self.peak_flop_per_s.rate(Dtype.BF16) / self.memory_bytes_per_s


class LinkKind(StrEnum):
    """The family a link belongs to."""

    NVLINK = "nvlink"
    XGMI = "xgmi"
    PCIE = "pcie"
    ICI = "ici"
    NEURONLINK = "neuronlink"
    ETHERNET = "ethernet"
    INFINIBAND = "infiniband"
    ROCE = "roce"
    EFA = "efa"
    SHARED_MEMORY = "shared_memory"


class Topology(StrEnum):
    """How the ports of one domain are joined."""

    SWITCH = "switch"
    MESH = "mesh"
    TORUS = "torus"
    HOST_TREE = "host_tree"


class LinkSpec(Sourced):
    """A link as one device sees it: what all its ports of this kind carry together, per direction.

    `latency_s` is the time of an empty message between two devices of the domain; `message_overhead_s` the time a sender
    is busy per message besides moving bytes. `n_neighbours` devices share the ports out among them: all others in a mesh, two
    per dimension in a torus; None where a switch or a host lies between (or, in a torus, for one ring). `in_switch` "reduce"
    is a switch that adds and multicasts (NVLink SHARP). In a host tree all devices together pass at most `shared_bytes_per_s`
    through the root, twice where peers cannot reach each other (`peer_access` "through_host"); `n_below_root` of them reach each
    other without it.
    """

    name: str
    kind: LinkKind
    topology: Topology
    bytes_per_s: BytesPerS
    latency_s: Seconds
    message_overhead_s: Seconds
    n_neighbours: Count | None = None
    in_switch: Literal["forward", "reduce"] = "forward"
    shared_bytes_per_s: BytesPerS | None = None
    peer_access: Literal["direct", "through_host"] = "direct"
    n_below_root: Count | None = None
    note: str | None = None


class ClusterSpec(Sourced):
    """Devices in nodes. `scale_up` joins devices of one domain, `scale_out` joins domains (one NIC per device unless said).

    NICs of equal index share one of `n_rails` switches; what goes to another rail goes through a spine, which carries the NICs'
    rate divided by `spine_oversubscription` (1 unless said). Without rails all traffic between nodes goes through it.
    """

    name: str
    aliases: tuple[str, ...] = ()
    device: str
    n_devices_per_node: Count
    n_nodes: Count = 1
    scale_up_link: str
    scale_up_domain_size: Count
    scale_out_link: str | None = None
    n_nics_per_node: Count | None = None
    n_rails: Count | None = None
    spine_oversubscription: Number | None = Field(default=None, ge=1)
    host_memory_bytes_per_node: Bytes | None = None
    price_usd_per_device_h: UsdPerH | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _domains_fill_nodes(self) -> Self:
        n_devices = self.n_devices_per_node * self.n_nodes
        if n_devices % self.scale_up_domain_size:
            raise ValueError(
                f"scale_up_domain_size: {self.scale_up_domain_size} does not divide the {n_devices} devices of the cluster"
            )
        if n_devices > self.scale_up_domain_size and self.scale_out_link is None:
            raise ValueError("scale_out_link: needed, since the devices are in more than one scale-up domain")
        if self.spine_oversubscription is not None and self.scale_out_link is None:
            raise ValueError("spine_oversubscription: there is no spine without scale_out_link")
        return self


class Hardware(Frozen):
    """A cluster with its names resolved: what the rest of moesim works with.

    `scale_out` is None where all `n_devices` share one scale-up domain; `nic_bytes_per_s` is per device and direction.
    `fabric` is what its links were measured to achieve in expert exchanges, None where nobody measured them. Rails and spine: see
    `ClusterSpec`.
    """

    name: str
    device: DeviceSpec
    n_devices: Count
    scale_up: LinkSpec | None
    scale_up_domain_size: Count
    scale_out: LinkSpec | None = None
    nic_bytes_per_s: float | None = Field(default=None, ge=0)
    host_memory_bytes_per_device: float | None = Field(default=None, ge=0)
    price_usd_per_device_h: float | None = Field(default=None, ge=0)
    fabric: FabricSpec | None = None
    n_rails: Count | None = None
    spine_oversubscription: float = Field(default=1.0, ge=1)

    def with_n_devices(self, n_devices: int) -> Hardware:
        """The same hardware with another number of devices in use; domains keep their size."""
        return self.model_copy(update={"n_devices": n_devices})

    @property
    def n_domains(self) -> int:
        """Scale-up domains that the devices in use are spread over."""
        return -(-self.n_devices // self.scale_up_domain_size)

    @property
    def price_origin(self) -> Origin | None:
        """Origin of the price, or None where no price is known."""
        if self.price_usd_per_device_h is None:
            return None
        if self.device.price_usd_per_h is None:
            return Origin.ASSUMPTION
        return weakest(self.device.source_of("price_usd_per_h").origin)
