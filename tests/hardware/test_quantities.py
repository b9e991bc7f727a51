"""Quantities with units: what is read, what is refused and how."""

from __future__ import annotations

import pytest

from rayemu.hardware.quantities import KINDS, parse, write


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("3.35 TB/s", "rate", 3.35e12),
        ("16GB/s", "rate", 16e9),
        ("1_600 MB/s", "rate", 1.6e9),
        ("100 Gbit/s", "rate", 12.5e9),
        ("64 MiB", "size", 2**26),
        (".5 us", "time", 5e-7),
        ("3 µs", "time", 3e-6),
        ("3 μs", "time", 3e-6),
        ("+2e-3 ms", "time", 2e-6),
        ("0 s", "time", 0.0),
        ("1.2 TFLOPS", "operations", 1.2e12),
        ("10 pJ/B", "energy_per_bit", 1.25e-12),
        ("0.36 USD/kWh", "energy_price", 1e-7),
        ("0.8 mm2", "area", 8e-7),
    ],
)
def test_a_number_with_its_unit(text: str, kind: str, number: float) -> None:
    assert parse(text, kind) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (16, "16 is not allowed; write a number with its unit, like '16 GB/s'"),
        ("16", "write a number with its unit"),
        ("16 GB", "write a number with its unit"),
        ("16 gb/s", "write a number with its unit"),
        ("GB/s", "write a number with its unit"),
        ("nan GB/s", "write a number with its unit"),
        ("inf GB/s", "write a number with its unit"),
        (float("nan"), "nan is not allowed"),
        (True, "True is not allowed"),
        (None, "None is not allowed"),
        ("1__0 GB/s", "write a number with its unit"),
        ("1_ GB/s", "write a number with its unit"),
        ("1.2.3 GB/s", "write a number with its unit"),
        ("1e30 GB/s", "'1e30 GB/s' is not allowed; it must be at most 1000 PB/s"),
        ("1e999 GB/s", "it must be at most"),
        ("9" * 400 + " GB/s", "it must be at most"),
        ("1e-30 GB/s", "'1e-30 GB/s' is not allowed; it must be at least 1 B/s"),
    ],
)
def test_anything_else_is_refused_with_the_value_and_the_remedy(value: object, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(value, "rate")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(kind: str) -> None:
    known = KINDS[kind]
    middle = (known.least * known.most) ** 0.5
    for number in (0.0, known.least, middle, known.most, parse(known.example, kind)):
        assert parse(write(number, kind).replace(",", ""), kind) == pytest.approx(number, rel=1e-3)


def test_what_is_written_is_easy_to_read() -> None:
    assert write(3.35e12, "rate") == "3.35 TB/s"
    assert write(0.55e-12, "energy_per_bit") == "0.55 pJ/bit"
    assert write(30000, "money") == "30,000 USD"
    assert write(0.0, "power") == "0 W"
