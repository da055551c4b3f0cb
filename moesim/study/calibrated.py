"""Which calibration a command uses: the device's serving stack (kernel tables with fitted parameters), or what was asked for."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

from moesim.calibrate.store import calibration_names, find_calibration
from moesim.cost import CalibratedOps
from moesim.cost.forms_eager import EAGER_KERNELS
from moesim.cost.layered import BorrowedCalibration, LayeredCalibration
from moesim.cost.served import ServedTables
from moesim.cost.stack import StackedCalibration, StackParams
from moesim.errors import CatalogError, InputError
from moesim.specs.catalog import load_device
from moesim.specs.dtypes import Dtype
from moesim.study.kernels import (
    BACKENDS,
    SIBLINGS,
    calibration_of,
    contained_kernels,
    generation_of,
    is_like_its_sibling,
    stack_for,
)
from moesim.study.stack_files import base_of, is_stack_file, load_stack, shipped_stacks
from moesim.study.uncertainty import Basis

__all__ = ["NO_CALIBRATION", "TABLES_ONLY", "basis_of", "calibration_for"]

#: Name that asks for the default efficiencies although the device has a calibration.
NO_CALIBRATION = "none"
#: Word that asks for kernel tables without a stack's parameters: alone, or as ``STACK:tables``.
TABLES_ONLY = "tables"
#: Stacks in the order in which a device's own calibration is chosen.
PREFERRED_STACKS = ("pytorch", *BACKENDS)
#: Collectives are measured apart from the stacks that call them.
COLLECTIVES_STACK = "nccl"
#: Devices whose serving runs the shipped parameters were fitted to (docs/validation.md).
WITH_RUNS = ("h100_sxm", "h200_sxm", "b200_sxm")
#: In a label: that the parameters are of other devices.
LENT = " (fitted on other GPUs)"


def calibration_for(name: str | None, device: str, prefer: str | None = None) -> CalibratedOps | None:
    """The calibration for `device`: what a serving stack reaches there, if any is known.

    Args:
        name: None for the device's first stack by `PREFERRED_STACKS`; ``vllm``, ``sglang``, ``trtllm`` (or ``device/stack``) for
            one of them; ``tables`` or ``STACK:tables`` for kernel tables as measured; a file of ``calibrate runs`` or
            ``calibrate fit``; ``none`` for default efficiencies. Of a profile of whole PyTorch layers also ``stack:KERNEL``
            (looped, grouped, padded, transformers, user), in place of the kernel that was found to be the fastest.
        device: catalog name of the device.
        prefer: the backend to take where `name` is None and the device has it.

    Raises:
        CatalogError: no calibration of this name.
        InputError: it belongs to another device, or has no such kernel.
    """
    if name == NO_CALIBRATION:
        return None
    if name is not None and name.endswith((".yaml", ".yml")) and is_stack_file(name):
        return _of_file(Path(name), device)
    own = {known.partition("/")[2]: known for known in calibration_names() if known.startswith(f"{device}/")}
    plain, lender = name == TABLES_ONLY, None if own else _same_chip(device)
    if lender is not None and name is not None and (plain or name.endswith(f":{TABLES_ONLY}")):
        tables = calibration_for(name, lender)
        kernels = tables.layers[0] if isinstance(tables, LayeredCalibration) else tables
        return None if kernels is None else BorrowedCalibration(kernels, load_device(lender))
    if name is None or plain:
        chosen = [stack for stack in (prefer, *PREFERRED_STACKS, *own) if stack in own and stack != COLLECTIVES_STACK]
        if not chosen:
            return None if plain else _lent(prefer if prefer in BACKENDS else BACKENDS[0], device)
        name = str(chosen[0])
    name, kernel = _split(name)
    stack = name.removeprefix(f"{device}/").removeprefix(f"{lender}/")
    if stack in BACKENDS and not plain and not kernel:
        found_here = _served(stack, device) if stack in own else _lent(stack, device)
        if found_here is not None:
            return found_here
        if name == stack and stack not in own:
            raise CatalogError(
                f"{device} has no kernel tables of this stack", field="calibration", value=name,
                allowed=", ".join((*own.values(), NO_CALIBRATION)), hint="without tables, efficiencies are assumptions",
            )  # fmt: skip
    found = find_calibration(own.get(name, name))
    if found.device != device:
        raise InputError(
            "belongs to another device", field="calibration", value=name, allowed=", ".join(own.values()) or NO_CALIBRATION,
            hint=f"the hardware is {device}",
        )  # fmt: skip
    if kernel and kernel != TABLES_ONLY:
        found = found.with_kernel(kernel)
    if COLLECTIVES_STACK in own and found.stack != COLLECTIVES_STACK:
        return LayeredCalibration((found, find_calibration(own[COLLECTIVES_STACK])))
    return found


def basis_of(calibration: CalibratedOps | None) -> Basis:
    """What stands behind results by this calibration."""
    while calibration is not None and not isinstance(calibration, StackedCalibration) and hasattr(calibration, "inner"):
        calibration = calibration.inner
    if calibration is None:
        return Basis.ASSUMPTION
    if not isinstance(calibration, StackedCalibration):
        return Basis.KERNELS
    is_lent = calibration.label.endswith(LENT) or any(word in calibration.name for word in ("(lent)", "(borrowed"))
    return Basis.LENT if is_lent else Basis.RUNS


def _served(backend: str, device: str) -> CalibratedOps | None:
    """Tables of a backend with the parameters fitted to serving runs: its own, else what backends have in common."""
    key, stacks = f"{backend}_{generation_of(device)}", shipped_stacks()
    known = next((name for name in (key, backend) if name in stacks), "default")
    label = known if known == key and device in WITH_RUNS else f"{known}{LENT}"
    return _stacked(backend, device, stack_for(key, stacks), label)


def _lent(backend: str, device: str) -> CalibratedOps | None:
    """Tables of another device with the same chip; None where there is none."""
    if _same_chip(device) is None and (device not in SIBLINGS or not is_like_its_sibling(device)):
        return None
    return _served(backend, device)


def _same_chip(device: str) -> str | None:
    """The device of the same chip that lends its kernels, links apart; None for devices of no catalog."""
    try:
        return load_device(device).same_chip_as
    except CatalogError:
        return None


def _of_file(path: Path, device: str) -> CalibratedOps:
    """The tables that a stack file's parameters were fitted on, with those parameters."""
    label, stack = load_stack(path)
    base_device, _, backend = base_of(path).partition("/")
    backend = backend or label.partition("_")[0]
    if base_device and generation_of(base_device) != generation_of(device):
        raise InputError("belongs to another GPU generation", field="calibration", value=str(path), allowed=base_device)
    found = _stacked(backend, device, stack, f"{label} of {path.name}")
    if found is None:
        raise InputError("there are no kernel tables of this stack", field="calibration", value=f"{device}/{backend}")
    return found


@lru_cache(maxsize=64)
def _stacked(backend: str, device: str, stack: StackParams, label: str) -> CalibratedOps | None:
    lender = _same_chip(device)
    wide = calibration_of(backend, lender or device, _experts_of(device), by_point=True)
    if wide is None:
        return None
    tables: CalibratedOps = ServedTables(wide, partial(_narrow, backend, lender or device))
    if lender is not None:
        tables = BorrowedCalibration(tables, load_device(lender))
    return StackedCalibration(tables, stack, label, contained_kernels(backend, device))


def _narrow(backend: str, device: str) -> CalibratedOps:
    found = calibration_of(backend, device, Dtype.FP8, by_point=True)
    if found is None:  # the other formats' tables were there
        raise CatalogError("no calibration of this name", field="calibration", value=f"{device}/{backend}")
    return found


def _experts_of(device: str) -> Dtype:
    """Activations of four-bit experts that do not run in 8 bits."""
    return Dtype.NVFP4 if generation_of(device) == "blackwell" else Dtype.BF16


def _split(name: str) -> tuple[str, str]:
    """``stack:KERNEL`` as two; a path may hold a colon, so only what follows the last one and is known counts."""
    head, _, kernel = name.rpartition(":")
    return (head, kernel) if head and (kernel in EAGER_KERNELS or kernel == TABLES_ONLY) else (name, "")
