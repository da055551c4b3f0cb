"""Quantities as text at the edge, SI base units inside (bytes, seconds, flops, watts, dollars per hour).

GB is 10^9 bytes and GiB is 2^30 bytes; there is nothing in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantiphy import InvalidNumber, Quantity

from moesim.errors import InputError

__all__ = [
    "BYTES",
    "BYTES_PER_S",
    "FLOP_PER_S",
    "GIB",
    "HERTZ",
    "SECONDS",
    "USD_PER_H",
    "WATTS",
    "Dimension",
    "parse",
    "plural",
    "show",
]

GIB = 2.0**30
#: Shorter times are what is left of a difference of longer ones.
_LEAST_S = 1e-12
#: quantiphy takes "1,5 GB" for 15 GB, and names and comments around a quantity.
_NOT_IN_A_NUMBER = (",", "=", "#", "--")


@dataclass(frozen=True)
class Dimension:
    """A physical dimension: the unit spellings it accepts and what one of each is in the SI base unit."""

    name: str
    base_unit: str
    unit_factors: tuple[tuple[str, float], ...]
    example: str

    def factor(self, unit: str) -> float | None:
        """What one `unit` is in the base unit, or None if the spelling is not of this dimension."""
        return dict(self.unit_factors).get(unit)


BYTES = Dimension("an amount of memory", "B", (("B", 1.0),), "141 GB")
BYTES_PER_S = Dimension(
    "a bandwidth", "B/s", (("B/s", 1.0), ("b/s", 0.125), ("bit/s", 0.125), ("bps", 0.125)), "4.8 TB/s"
)
FLOP_PER_S = Dimension(
    "a compute rate",
    "FLOP/s",
    (("FLOP/s", 1.0), ("flop/s", 1.0), ("FLOPS", 1.0), ("OP/s", 1.0), ("OPS", 1.0)),
    "989 TFLOP/s",
)
SECONDS = Dimension("a time", "s", (("s", 1.0),), "5 us")
HERTZ = Dimension("a frequency", "Hz", (("Hz", 1.0),), "1.98 GHz")
WATTS = Dimension("a power", "W", (("W", 1.0),), "700 W")
USD_PER_H = Dimension("a price", "USD/h", (("USD/h", 1.0), ("$/h", 1.0)), "2.99 USD/h")


def parse(text: object, dimension: Dimension) -> float:
    """Read a quantity such as ``4.8 TB/s`` into the dimension's base unit.

    Args:
        text: a number with a unit, as text. Decimal prefixes (k, M, G, T, P) and binary ones (Ki, Mi, Gi, Ti).
        dimension: what the quantity must be.

    Raises:
        InputError: no number, no unit, a unit of another dimension, NaN, infinite or negative.

    >>> parse("80 GiB", BYTES)
    85899345920.0
    >>> parse("400 Gb/s", BYTES_PER_S)
    50000000000.0
    """
    allowed = f"{dimension.name} such as '{dimension.example}'"
    if not isinstance(text, str):
        raise InputError("needs a number with a unit, as text", value=text, allowed=allowed)
    if any(mark in text for mark in _NOT_IN_A_NUMBER):
        raise InputError("is not a number with a unit", value=text, allowed=allowed)
    try:
        quantity = Quantity(text, binary=True)
    except InvalidNumber:
        raise InputError("is not a number with a unit", value=text, allowed=allowed) from None
    if not math.isfinite(float(quantity)):
        raise InputError("must be finite and not negative", value=text, allowed=allowed)
    factor = dimension.factor(quantity.units)
    if factor is None:
        problem = f"unit {quantity.units!r} is not {dimension.name}" if quantity.units else "has no unit"
        raise InputError(problem, value=text, allowed=allowed)
    value = float(quantity) * factor
    if not math.isfinite(value) or value < 0:
        raise InputError("must be finite and not negative", value=text, allowed=allowed)
    return value


def show(value: float, unit: str, digits: int = 3) -> str:
    """A value in its base unit as short text with a decimal prefix.

    >>> show(4.8e12, "B/s")
    '4.8 TB/s'
    >>> show(0.00123, "s"), show(1.979e15, "FLOP/s")
    ('1.23 ms', '1.98 PFLOP/s')
    >>> show(4.3e-19, "s")
    '0 s'
    """
    if unit == "s" and abs(value) < _LEAST_S:
        value = 0.0
    return str(_Shown(value, unit).render(prec=digits - 1))


class _Shown(Quantity):
    """A quantity as people read it: 1.98 PFLOP/s, not 1.98e15."""


_Shown.set_prefs(output_sf="PTGMkmunpfa")


def plural(n: float, one: str, many: str | None = None) -> str:
    """A count with its noun.

    >>> plural(1, "device"), plural(2, "device")
    ('1 device', '2 devices')
    """
    return f"{n:,.0f} {one if n == 1 else many or one + 's'}"
