"""Quantities with units, as people write them: "64 MiB", "10 ms".

Inside the program a size is an int in bytes and a time a float in seconds; text is read and written here.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

BYTE_UNITS = {
    "B": 1,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
    "KB": 1000,
}
SECOND_UNITS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
}

_QUANTITY = re.compile(
    r"\s*([0-9]{1,99}(?:\.[0-9]{0,99})?|\.[0-9]{1,99})([eE][+-]?[0-9]{1,3})?\s*([A-Za-zµμ]*)\s*"
)


def _split(text: str) -> tuple[Fraction, str] | None:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    return Fraction(match[1] + (match[2] or "")), match[3]


def _exact(value: object) -> Fraction | None:
    """An int, of any size, or a float as it is; None for anything else, NaN and Inf included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return Fraction(value) if isinstance(value, int) or math.isfinite(value) else None


def parse_bytes(value: object) -> int:
    """Reads a size: a whole number of bytes, or text such as "64 MiB" (1024s) or "64 MB" (1000s).

    Raises ValueError when the value is neither, is negative, or is not a whole number of bytes.
    """
    if isinstance(value, str):
        parts = _split(value)
        if parts is None or (parts[1] or "B") not in BYTE_UNITS:
            raise ValueError(
                f"is not a size; write a number with one of {', '.join(BYTE_UNITS)}, like '64 MiB'"
            )
        exact = parts[0] * BYTE_UNITS[parts[1] or "B"]
    elif (number := _exact(value)) is None:
        raise ValueError("is not a size; write bytes as a number, or like '64 MiB'")
    else:
        exact = number
    if not 0 <= exact < 2**63 or exact.denominator != 1:
        raise ValueError("is not a size; it must be a whole number of bytes, 0 or more, below 8 EiB")
    return int(exact)


def parse_rate(value: object) -> int:
    """Reads bytes per second: a whole number above 0, or text such as "200 MB/s". Raises ValueError."""
    wanted = "is not a rate; write bytes per second as a number above 0, or like '200 MB/s'"
    size = value
    if isinstance(value, str):
        size, slash, unit = value.partition("/")
        if slash and unit.strip() != "s":
            raise ValueError(wanted)
    try:
        rate = parse_bytes(size)
    except ValueError:
        raise ValueError(wanted) from None
    if not rate:
        raise ValueError(wanted)
    return rate


def parse_seconds(value: object) -> float:
    """Reads a time: a number of seconds, or text such as "10 ms". Raises ValueError for anything else."""
    if isinstance(value, str):
        parts = _split(value)
        unit = "s" if parts is None else parts[1].replace("µ", "u").replace("μ", "u") or "s"
        if parts is None or unit not in SECOND_UNITS:
            raise ValueError(
                f"is not a time; write a number with one of {', '.join(SECOND_UNITS)}, like '10 ms'"
            )
        value = float(min(parts[0] * SECOND_UNITS[unit], Fraction(10**12)))
    seconds = _exact(value)
    if seconds is None:
        raise ValueError("is not a time; write seconds as a number, or like '10 ms'")
    if not 0 <= seconds < 10**12:
        raise ValueError("is not a time; it must be 0 or more, below 1e12 s")
    return float(seconds)


def exact_bytes(count: int) -> str:
    """Writes a size so that `parse_bytes` gives it back: the largest 1024-unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % BYTE_UNITS[unit] == 0:
            return f"{count // BYTE_UNITS[unit]} {unit}"
    return f"{count} B"


def exact_rate(rate: int) -> str:
    """Writes a rate so that `parse_rate` gives it back."""
    return f"{exact_bytes(rate)}/s"


def exact_seconds(seconds: float) -> str:
    """Writes a time so that `parse_seconds` gives it back to the bit."""
    for unit in ("s", "ms", "us", "ns"):
        scaled = seconds / float(SECOND_UNITS[unit])
        text = f"{scaled:g} {unit}"
        if (scaled >= 1 or seconds == 0) and parse_seconds(text) == seconds:
            return text
    return f"{seconds!r} s"


def format_bytes(count: float) -> str:
    """Writes a size for a person to read: three digits, 1024-units ("1.53 MiB")."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= BYTE_UNITS[unit]:
            return f"{_three_digits(count / BYTE_UNITS[unit])} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Writes a time for a person to read: three digits ("12.3 ms")."""
    for unit in ("h", "min", "s", "ms", "us"):
        scaled = seconds / float(SECOND_UNITS[unit])
        if scaled >= 1:
            return f"{_three_digits(scaled)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns"


def format_joules(energy: float) -> str:
    """Writes an energy for a person to read: three digits ("12.3 mJ")."""
    for unit, size in (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6)):
        if energy >= size:
            return f"{energy / size:.3g} {unit}"
    return f"{energy * 1e9:.3g} nJ"


def format_rate(rate: float) -> str:
    """Writes bytes per second for a person to read: three digits, 1000-units ("200 MB/s")."""
    for unit in ("TB", "GB", "MB", "kB"):
        if rate >= BYTE_UNITS[unit]:
            return f"{_three_digits(rate / BYTE_UNITS[unit])} {unit}/s"
    return f"{rate:.0f} B/s"


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"
