"""Numbers and names as people read them. SI base units come in, text with units goes out."""

from __future__ import annotations

import math

from moesim.specs.base import Origin
from moesim.units import plural

__all__ = [
    "BASIS_WORDS",
    "KIND_WORDS",
    "ORIGIN_WORDS",
    "TTFT_WORDS",
    "bytes_text",
    "compact",
    "group_label",
    "multiple",
    "number",
    "parameters",
    "percent",
    "plural",
    "power_of_ten",
    "short_name",
    "time_text",
]

#: How an origin is shown: the word of the legend, and what it means.
ORIGIN_WORDS: dict[Origin, tuple[str, str]] = {
    Origin.MEASURED: ("measured", "measured on the device itself"),
    Origin.FITTED: ("fitted", "fitted to measurements, with its error on points the fit never saw"),
    Origin.DATASHEET: ("quoted", "quoted from a data sheet or the model's own configuration"),
    Origin.PAPER: ("quoted: paper", "quoted from a paper"),
    Origin.SECONDARY: ("quoted: secondary", "quoted from a secondary source such as a price list or a review"),
    Origin.ASSUMPTION: ("assumed", "an assumption; no source says so"),
}

BASIS_WORDS = {
    "named": "as named",
    "equal_active": "equal active parameters",
    "equal_total": "equal total parameters",
    "equal_memory": "equal weight memory",
    "equal_quality": "equal quality",
}

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

#: What the TTFT of `run` and `sweep` is (moesim.study.points).
TTFT_WORDS = (
    "TTFT is a request's own prefill and, with a serving stack, the way to the server and the wait for its scheduler; where "
    "attention-DP ranks or pipeline lanes step together, also the pass under way and prompts that go first. There is no wait for "
    "admission."
)

KIND_WORDS = {"dense": "dense", "ensemble": "ensemble", "moe": "MoE"}


def number(value: float | None, digits: int = 3) -> str:
    """Fixed notation with `digits` significant digits and thousands separators.

    >>> number(1234.5), number(0.012345), number(12.0), number(None)
    ('1,234', '0.0123', '12.0', '–')
    """
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}" if abs(value) < 1e15 else f"{value:.{digits - 1}e}"


def compact(value: float) -> str:
    """Short tick label with a decimal prefix.

    >>> compact(0.5), compact(2048), compact(1.5e6), compact(16)
    ('0.5', '2.05k', '1.5M', '16')
    """
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def time_text(seconds: float | None) -> str:
    """A time with the unit that suits it.

    >>> time_text(0.0123), time_text(4.2e-6), time_text(2.5)
    ('12.3 ms', '4.20 µs', '2.50 s')
    """
    if seconds is None:
        return "–"
    if abs(seconds) < 5e-10:
        return "0"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= factor:
            return f"{number(seconds / factor)} {unit}"
    return f"{number(seconds / 1e-6)} µs"


def bytes_text(n_bytes: float | None) -> str:
    """Bytes in decimal units.

    >>> bytes_text(141e9), bytes_text(327680.0)
    ('141 GB', '328 kB')
    """
    if n_bytes is None:
        return "–"
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(n_bytes) >= factor:
            return f"{number(n_bytes / factor)} {unit}"
    return f"{number(n_bytes)} B"


def parameters(n: float) -> str:
    """A parameter count.

    >>> parameters(46.7e9), parameters(1.03e12)
    ('46.7 B', '1.03 T')
    """
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if n >= factor:
            return f"{number(n / factor)} {unit}"
    return number(n)


def multiple(ratio: float | None) -> str:
    """A ratio as a factor.

    >>> multiple(2.456), multiple(0.5), multiple(None)
    ('2.46×', '0.500×', '–')
    """
    return "–" if ratio is None else f"{number(ratio)}×"


def percent(fraction: float | None) -> str:
    """A fraction in percent.

    >>> percent(0.123)
    '12%'
    """
    if fraction is None:
        return "–"
    return "<1%" if 0 < fraction < 0.005 else f"{fraction:.0%}"


def power_of_ten(log10: float) -> str:
    """A huge count, given as its logarithm.

    >>> power_of_ten(46.3), power_of_ten(2.0)
    ('about 10⁴⁶', '100')
    """
    return f"{10**log10:,.0f}" if log10 < 7 else "about 10" + f"{log10:.0f}".translate(_SUPERSCRIPT)


def group_label(group: str) -> str:
    """An operator group or weight kind as words.

    >>> group_label("dense_ffn"), group_label("lm_head")
    ('dense FFN', 'LM head')
    """
    return " ".join({"ffn": "FFN", "lm": "LM", "kv": "KV"}.get(word, word) for word in group.split("_"))


def short_name(name: str, limit: int = 52) -> str:
    """A system's name cut to fit a legend; matplotlib leaves out labels that begin with an underscore."""
    name = f"\u200b{name}" if name.startswith("_") else name
    return name if len(name) <= limit else name[: limit - 1].rstrip() + "…"
