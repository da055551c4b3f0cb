"""Which calibration a run uses: the one that is named, else the device's own, else none."""

from __future__ import annotations

from pathlib import Path

from moesim.calibrate.store import calibration_names, find_calibration
from moesim.cost import CalibratedOps
from moesim.cost.forms_eager import EAGER_KERNELS
from moesim.cost.layered import BorrowedCalibration, LayeredCalibration
from moesim.cost.stack import StackedCalibration
from moesim.errors import CatalogError, InputError
from moesim.specs.catalog import load_device
from moesim.specs.dtypes import Dtype
from moesim.study.stack_files import base_of, is_stack_file, load_stack

__all__ = ["NO_CALIBRATION", "calibration_for"]

#: Name that asks for the default efficiencies although the device has a calibration.
NO_CALIBRATION = "none"
#: Stacks in the order in which a device's own calibration is chosen.
PREFERRED_STACKS = ("pytorch", "vllm", "sglang", "trtllm")
#: Collectives are measured apart from the stacks that call them.
COLLECTIVES_STACK = "nccl"


def calibration_for(name: str | None, device: str) -> CalibratedOps | None:
    """The calibration for `device`, with the device's collectives beneath it where the stack has none of its own.

    A device without any borrows the kernels of the one that its file names as the same chip.

    Args:
        name: ``device/stack``, a stack of this device, a file, ``none``, or None for the device's first by `PREFERRED_STACKS`;
            of a profile of whole PyTorch layers also ``stack:KERNEL`` (looped, grouped, padded, transformers, user), in place of
            the kernel that was found to be the fastest.
        device: catalog name of the device.

    Raises:
        CatalogError: no calibration of this name.
        InputError: it belongs to another device, or has no such kernel.
    """
    if name == NO_CALIBRATION:
        return None
    if name is not None and name.endswith((".yaml", ".yml")) and is_stack_file(name):
        return _stacked(Path(name), device)
    own = {known.partition("/")[2]: known for known in calibration_names() if known.startswith(f"{device}/")}
    lender = None if own else _same_chip(device)
    if lender is not None:
        lent = calibration_for(name, lender)
        kernels = lent.layers[0] if isinstance(lent, LayeredCalibration) else lent
        return None if kernels is None else BorrowedCalibration(kernels, load_device(lender))
    if name is None:
        chosen = [own[stack] for stack in (*PREFERRED_STACKS, *own) if stack in own]
        if not chosen:
            return None
        name = chosen[0]
    name, kernel = _split(name)
    found = find_calibration(own.get(name, name))
    if found.device != device:
        raise InputError(
            "belongs to another device", field="calibration", value=name, allowed=", ".join(own.values()) or NO_CALIBRATION,
            hint=f"the hardware is {device}",
        )  # fmt: skip
    if kernel:
        found = found.with_kernel(kernel)
    if COLLECTIVES_STACK in own and found.stack != COLLECTIVES_STACK:
        return LayeredCalibration((found, find_calibration(own[COLLECTIVES_STACK])))
    return found


def _same_chip(device: str) -> str | None:
    """The device of the same chip that lends its kernels; None for devices of no catalog."""
    try:
        return load_device(device).same_chip_as
    except CatalogError:
        return None


def _stacked(path: Path, device: str) -> CalibratedOps | None:
    """The tables that a stack's parameters were fitted on, with its factors."""
    from moesim.study.validate.setup import calibration_of, generation_of  # which itself needs this package

    label, stack = load_stack(path)
    base_device, _, backend = base_of(path).partition("/")
    backend = backend or label.partition("_")[0]
    if base_device and generation_of(base_device) != generation_of(device):
        raise InputError("belongs to another GPU generation", field="calibration", value=str(path), allowed=base_device)
    # Blackwell kernels take 8-bit activations with 4-bit experts, older ones 16-bit
    narrow = Dtype.FP8 if generation_of(device) == "blackwell" else Dtype.BF16
    tables = calibration_of(backend, device, narrow)
    if tables is None:
        raise InputError("there are no kernel tables of this stack", field="calibration", value=f"{device}/{backend}")
    return StackedCalibration(tables, stack, label)


def _split(name: str) -> tuple[str, str]:
    """``stack:KERNEL`` as two; a path may hold a colon, so only what follows the last one and is a known kernel counts."""
    head, _, kernel = name.rpartition(":")
    return (head, kernel) if head and kernel in EAGER_KERNELS else (name, "")
