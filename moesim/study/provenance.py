"""Where the inputs of a run come from: data sheets, papers, measurements, fits and assumptions."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.cost import CalibratedOps
from moesim.cost.layered import BorrowedCalibration
from moesim.cost.stack import StackedCalibration
from moesim.errors import InputError
from moesim.specs.base import Origin, Sourced
from moesim.specs.catalog import load_card, load_cluster
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.study.results import InputOrigin
from moesim.study.systems import Candidate
from moesim.units import show

__all__ = ["hardware_origins", "input_origins"]


def input_origins(
    hardware: Hardware, candidates: Sequence[Candidate], calibration: CalibratedOps | None
) -> tuple[InputOrigin, ...]:
    """Every kind of input with its value, origin and source."""
    rows = [*hardware_origins(hardware), _efficiency(calibration)]
    for candidate in candidates:
        rows.append(_model(candidate))
        if candidate.system.instance.routed is not None:
            router = next(iter(candidate.system.instance.routed.routers.values()))
            rows.append(
                InputOrigin(
                    what=f"routing of {candidate.spec.name}", value=candidate.system.instance.routed.spec.family.value,
                    origin=router.origin, source=router.source,
                )
            )  # fmt: skip
    return tuple({(row.what, row.value): row for row in rows}.values())


def hardware_origins(hardware: Hardware) -> list[InputOrigin]:
    """Figures of a device, its links and its price."""
    price = _price(hardware)
    return [*_device(hardware), *_links(hardware), *([price] if price is not None else [])]


def _from(spec: Sourced, path: str, what: str, value: str) -> InputOrigin:
    source = spec.source_of(path)
    return InputOrigin(what=what, value=value, origin=source.origin, source=source.text)


def _device(hardware: Hardware) -> list[InputOrigin]:
    d = hardware.device
    rows = [
        _from(d, "memory_bytes", f"{d.name} memory", show(d.memory_bytes, "B")),
        _from(d, "memory_bytes_per_s", f"{d.name} memory bandwidth", show(d.memory_bytes_per_s, "B/s")),
    ]
    for name, rate in d.peak_flop_per_s.model_dump().items():
        if rate is not None:
            rows.append(_from(d, f"peak_flop_per_s.{name}", f"{d.name} peak {name}", show(rate, "FLOP/s")))
    for field, what in (("board_power_w", "board power"), ("idle_power_w", "idle power")):
        value = getattr(d, field)
        if value is not None:
            rows.append(_from(d, field, f"{d.name} {what}", show(value, "W")))
    return rows


def _links(hardware: Hardware) -> list[InputOrigin]:
    rows = []
    for link in (hardware.scale_up, hardware.scale_out):
        if link is not None:
            rows.append(_from(link, "bytes_per_s", f"{link.name} bandwidth per device", show(link.bytes_per_s, "B/s")))
            rows.append(_from(link, "latency_s", f"{link.name} latency", show(link.latency_s, "s")))
    if hardware.fabric is not None:
        fabric = hardware.fabric
        value = f"{fabric.name} ({fabric.software})"
        rows.append(_from(fabric, "low_latency_dispatch", "rates of expert exchanges", value))
    return rows


def _price(hardware: Hardware) -> InputOrigin | None:
    price = hardware.price_usd_per_device_h
    if price is None:
        return None
    value = f"{price:.2f} USD/h per device"
    try:
        cluster = load_cluster(hardware.name)
        if cluster.price_usd_per_device_h is not None:
            return _from(cluster, "price_usd_per_device_h", "price", value)
    except InputError:
        pass
    return _from(hardware.device, "price_usd_per_h", "price", value)


def _efficiency(calibration: CalibratedOps | None) -> InputOrigin:
    if calibration is None:
        return InputOrigin(
            what="efficiencies", value="default table", origin=Origin.ASSUMPTION,
            source="rounded from public kernels on data-centre GPUs; no calibration of this device was given",
        )  # fmt: skip
    stacked = calibration if isinstance(calibration, StackedCalibration) else None
    tables = calibration if stacked is None else stacked.own
    runs = "" if stacked is None else f", and factors and host times fitted to serving runs ({stacked.label})"
    if isinstance(tables, BorrowedCalibration):
        return InputOrigin(
            what="efficiencies", value=calibration.name, origin=Origin.ASSUMPTION,
            source=f"fitted to operators measured on {tables.lender.name}, the same chip; not on this device{runs}",
        )  # fmt: skip
    return InputOrigin(
        what="efficiencies", value=calibration.name, origin=Origin.FITTED, source=f"fitted to measured operators{runs}"
    )


def _model(candidate: Candidate) -> InputOrigin:
    model: ModelSpec = candidate.system.instance.model
    value = f"{model.n_params / 1e9:.2f}B parameters, {model.n_active_params / 1e9:.2f}B active"
    if candidate.basis.value != "named":
        return InputOrigin(
            what=f"model {model.name}", value=value, origin=Origin.ASSUMPTION, source=f"made by moesim: {model.note}"
        )
    try:
        if model.note:  # a checkpoint that stands for a known model, by its name
            return InputOrigin(what=f"model {model.name}", value=value, origin=Origin.ASSUMPTION, source=model.note)
        source = load_card(candidate.spec.model).source_of("config")
        return InputOrigin(what=f"model {model.name}", value=value, origin=source.origin, source=source.text)
    except (InputError, KeyError):
        return InputOrigin(
            what=f"model {model.name}", value=value, origin=Origin.SECONDARY, source=f"file {candidate.spec.model}"
        )
