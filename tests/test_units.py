"""Quantities as text: what is read, what is refused, and that GB is not GiB."""

from __future__ import annotations

import math

import pytest

from moesim.errors import InputError
from moesim.units import (
    BYTES,
    BYTES_PER_S,
    FLOP_PER_S,
    GIB,
    HERTZ,
    SECONDS,
    USD_PER_H,
    WATTS,
    Dimension,
    parse,
    show,
)

GOOD = [
    ("141 GB", BYTES, 141e9),
    ("80 GiB", BYTES, 80 * 2.0**30),
    ("1.5 TB", BYTES, 1.5e12),
    ("512 B", BYTES, 512.0),
    ("0 B", BYTES, 0.0),
    ("4.8 TB/s", BYTES_PER_S, 4.8e12),
    ("900GB/s", BYTES_PER_S, 900e9),
    ("400 Gb/s", BYTES_PER_S, 50e9),  # 8 bits to the byte
    ("400 Gbps", BYTES_PER_S, 50e9),
    ("989 TFLOP/s", FLOP_PER_S, 989e12),
    ("3958 TOPS", FLOP_PER_S, 3958e12),
    ("5 us", SECONDS, 5e-6),
    ("0.25 ms", SECONDS, 0.25e-3),
    ("1.98 GHz", HERTZ, 1.98e9),
    ("0.7 kW", WATTS, 700.0),
    ("2.99 USD/h", USD_PER_H, 2.99),
    ("2.99 $/h", USD_PER_H, 2.99),
]


@pytest.mark.parametrize(("text", "dimension", "value"), GOOD)
def test_reads(text: str, dimension: Dimension, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-12, abs=0.0)


def test_gb_is_decimal_and_gib_is_binary() -> None:
    assert parse("1 GiB", BYTES) == GIB == 1073741824.0
    assert parse("1 GB", BYTES) == 1e9
    # the 7% that mixing them would hide
    assert parse("1 GiB", BYTES) / parse("1 GB", BYTES) == pytest.approx(1.0737, abs=1e-4)
    assert parse("1 TiB", BYTES) == 2.0**40


BAD = [
    ("4.8 TB", BYTES_PER_S),
    ("4.8 TB/s", BYTES),
    ("4.8", BYTES),
    ("", BYTES),
    ("   ", BYTES),
    ("fast", BYTES_PER_S),
    ("-1 GB", BYTES),
    ("nan B", BYTES),
    ("inf B", BYTES),
    ("-inf B", BYTES),
    ("1e400 B", BYTES),
    ("700 W", SECONDS),
    ("5 s", WATTS),
    ("5 EUR/h", USD_PER_H),
    ("1 GB GB", BYTES),
    ("1,5 GB", BYTES),  # ten times off where a comma is dropped
    ("x = 5 GB", BYTES),
    ("5 GB # or more", BYTES),
    (141e9, BYTES),
    (141, BYTES),
    (None, BYTES),
    (True, BYTES),
    (["1 GB"], BYTES),
]


@pytest.mark.parametrize(("text", "dimension"), BAD)
def test_refuses(text: object, dimension: Dimension) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, dimension)
    message = str(caught.value)
    assert "\n" not in message
    assert dimension.example in message  # says what would be right


def test_show_has_decimal_prefixes_and_survives_a_round_trip() -> None:
    assert show(4.8e12, "B/s") == "4.8 TB/s"
    assert show(0.00123, "s") == "1.23 ms"
    assert show(1234567.0, "B", digits=3) == "1.23 MB"
    for value in (1.0, 999.0, 1e3, 12.5e9, 3.35e12):
        assert math.isclose(parse(show(value, "B", digits=6), BYTES), value, rel_tol=1e-5)


def test_what_is_left_of_a_difference_of_times_is_nothing() -> None:
    for dust in (1.34e-15, 6.29e-18, -434e-21, 0.0, -0.0):
        assert show(dust, "s") == "0 s"
    assert show(2e-12, "s") == "2 ps"
    assert show(1e-15, "B") != "0 B"
