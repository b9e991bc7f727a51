from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.units import (
    exact_bytes,
    exact_rate,
    exact_seconds,
    format_bytes,
    format_joules,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_rate,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (0, 0),
        (4096, 4096),
        (4096.0, 4096),
        ("17", 17),
        ("17 B", 17),
        ("64 MiB", 67_108_864),
        ("64MiB", 67_108_864),
        (" 64  MiB ", 67_108_864),
        ("64 MB", 64_000_000),
        ("1.5 KiB", 1536),
        ("1 KB", 1000),
        ("1 kB", 1000),
        ("0.001 kB", 1),
        ("2 TiB", 2_199_023_255_552),
        ("1e3 B", 1000),
        ("1e6", 1_000_000),
        (".5 kB", 500),  # the point counts, wherever it stands
        ("5. kB", 5000),
        (".5e1 B", 5),
        ("1E3 B", 1000),
    ],
)
def test_bytes_are_read(text: object, count: int) -> None:
    assert parse_bytes(text) == count
    assert type(parse_bytes(text)) is int


@pytest.mark.parametrize(
    "value",
    [
        "",
        "MiB",
        "64 Mb",
        "64 mib",
        "-1 B",
        "1.5 B",
        -1,
        1.5,
        True,
        None,
        [1],
        "64 MiB x",
        "nan",
        "1 s",
        10**400,
    ],
)
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sizes_and_times_are_finite(value: float) -> None:
    for parse in (parse_bytes, parse_seconds):
        with pytest.raises(ValueError, match="is not a"):
            parse(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.25, 0.25),
        ("10 ms", 0.01),
        ("10ms", 0.01),
        ("1.5 s", 1.5),
        ("250 us", 0.00025),
        ("250 µs", 0.00025),
        ("3 ns", 3e-9),
        ("2 min", 120.0),
        ("1 h", 3600.0),
        ("1e-3 s", 0.001),
        ("5", 5.0),
        (".5 s", 0.5),
        ("5. s", 5.0),
        (".25e1 s", 2.5),
    ],
)
def test_seconds_are_read(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds
    assert type(parse_seconds(text)) is float


@pytest.mark.parametrize(
    "value", ["", "ms", "10 sec", "10 MS", "-1 s", -1, True, None, {}, "1 MiB", "1:30", 10**400, "9" * 5000]
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_seconds(value)


@given(st.integers(0, 2**60))
def test_written_sizes_read_back(count: int) -> None:
    assert parse_bytes(exact_bytes(count)) == count


@given(st.floats(0, 1e9, allow_nan=False))
def test_written_times_read_back(seconds: float) -> None:
    assert parse_seconds(exact_seconds(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        (5, 5),
        ("200 MB/s", 2 * 10**8),
        ("1 GiB / s", 1 << 30),
        ("3 kB", 3000),
        (2e6, 2000000),
        (".5 GB/s", 5 * 10**8),
    ],
)
def test_rates_are_read(text: object, rate: int) -> None:
    assert parse_rate(text) == rate == parse_rate(exact_rate(rate))


@pytest.mark.parametrize("value", [0, "0 B/s", -1, "5 MB/h", "fast", None, True, "1 MB/", "/s"])
def test_what_is_no_rate_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not a rate.* like '200 MB/s'"):
        parse_rate(value)


def test_rates_are_written_for_people() -> None:
    assert [format_joules(e) for e in (0, 3.8e-7, 2e-6, 0.0123, 45.67)] == [
        "0 nJ",
        "380 nJ",
        "2 uJ",
        "12.3 mJ",
        "45.7 J",
    ]
    assert [format_rate(r) for r in (7, 50e6, 1.25e9)] == ["7 B/s", "50.0 MB/s", "1.25 GB/s"]


def test_written_quantities_look_as_people_write_them() -> None:
    assert [exact_bytes(n) for n in (0, 1, 1536, 4 << 20, 10**6)] == [
        "0 B",
        "1 B",
        "1536 B",
        "4 MiB",
        "1000000 B",
    ]
    assert [exact_seconds(t) for t in (0, 0.02, 1.0, 0.00025)] == ["0 s", "20 ms", "1 s", "250 us"]
    assert [format_bytes(n) for n in (0, 999, 1536, 123_456_789)] == ["0 B", "999 B", "1.50 KiB", "118 MiB"]
    assert [format_seconds(t) for t in (0, 0.0123, 1.5, 90, 2e-6)] == [
        "0.00 ns",
        "12.3 ms",
        "1.50 s",
        "1.50 min",
        "2.00 us",
    ]
