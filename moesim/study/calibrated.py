"""Which calibration a run uses: the one that is named, else the shipped one of the device, else none."""

from __future__ import annotations

from moesim.cost import CalibratedOps
from moesim.errors import CatalogError

__all__ = ["find_calibration"]


def find_calibration(name: str | None, device: str) -> CalibratedOps | None:
    """The calibration for `device`.

    Raises:
        CatalogError: `name` is not among the device's calibrations.
    """
    if name is not None:
        raise CatalogError("no calibration of this name", field="calibration", value=name,
                           hint=f"none is shipped for {device} yet; leave it out for default efficiencies")  # fmt: skip
    return None
