"""How the 90% interval of a result is made: which errors add, which compensate.

Half-widths are of logarithms (0.1 is about 10% either way), so that factors of times, rates and prices are treated alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ASSUMPTION_WIDTH", "OUTSIDE_WIDTH", "Widths", "ratio_width"]

#: Added for time spent outside the tables' domain, in proportion, and taken where no table stands behind a result. Assumptions.
OUTSIDE_WIDTH = 0.5
ASSUMPTION_WIDTH = 0.7


@dataclass(frozen=True, slots=True)
class Widths:
    """Half-widths from sources that do not know of each other.

    `held_out` is that of whole runs that the fit never saw where there are any; it contains the kernels' residuals, so `kernels`
    is not added. Else `kernels`, weighted by time, fully correlated in a pass. `seeds` is what routing and arrivals scatter,
    `outside_frac` the part of the time outside measured shapes; `is_assumption` where nothing was measured.
    """

    kernels: float | None = None
    held_out: float | None = None
    seeds: float = 0.0
    outside_frac: float = 0.0
    is_assumption: bool = False

    @property
    def total(self) -> float:
        """Half-width of the 90% interval: sources in quadrature.

        >>> round(Widths(kernels=0.3, held_out=0.3, seeds=0.4).total, 3)
        0.5
        """
        if self.is_assumption or (self.held_out is None and self.kernels is None):
            base = ASSUMPTION_WIDTH
        else:
            base = self.held_out if self.held_out is not None else float(self.kernels or 0.0)
        return math.hypot(base, self.seeds, OUTSIDE_WIDTH * self.outside_frac)

    def interval(self, value: float) -> tuple[float, float]:
        """Around a positive value."""
        return value * math.exp(-self.total), value * math.exp(self.total)


def ratio_width(first: Widths, second: Widths, shared: float = 0.0) -> float:
    """Half-width of a ratio of two results: quadrature, less what both have in common.

    `shared` is the half-width of an error that both carry alike (the same stack's host time, say), which a ratio cancels.

    >>> round(ratio_width(Widths(held_out=0.3), Widths(held_out=0.4)), 3)
    0.5
    """
    common = min(shared, first.total, second.total)
    return math.sqrt(max(0.0, first.total**2 + second.total**2 - 2.0 * common**2))
