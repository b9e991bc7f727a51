"""Quantities of modelled hardware: a number with its unit, always written, plain SI inside the program."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from rayemu.plain_yaml import show

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", 1)}
_SMALL = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
_NUMBER = re.compile(r"\s*([+-]?[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?)\s*(\S.*?)\s*")


def _units(prefixes: dict[str, float], unit: str) -> dict[str, float]:
    return {f"{prefix}{unit}": factor for prefix, factor in prefixes.items()}


# What may be measured: the units that a field takes, with what one of each is in SI, and an example.
_SIZES = _units(_PREFIXES | _BINARY, "B")
_TIMES = {**_units(_SMALL, "s"), "h": 3600.0}
KINDS: dict[str, tuple[dict[str, float], str]] = {
    "size": (_SIZES, "16 GB"),
    "rate": ({f"{unit}/s": factor for unit, factor in _SIZES.items()}, "16 GB/s"),
    "time": (_TIMES, "25 ns"),
    "operations": (_units(_PREFIXES, "FLOP/s") | _units(_PREFIXES, "OP/s"), "1 TFLOP/s"),
    "frequency": (_units(_PREFIXES, "Hz"), "300 MHz"),
    "energy_per_bit": (_units(_SMALL, "J/bit"), "3.9 pJ/bit"),
    "energy_per_operation": (_units(_SMALL, "J/FLOP") | _units(_SMALL, "J/OP"), "0.5 pJ/FLOP"),
    "power": (_units(_SMALL | _PREFIXES, "W"), "30 W"),
    "money": ({"USD": 1.0}, "2000 USD"),
    "energy_price": ({"USD/kWh": 1 / 3.6e6}, "0.1 USD/kWh"),
    "area": ({"mm2": 1e-6}, "1.5 mm2"),
}


def parse(value: object, kind: str) -> float:
    """Read a quantity such as "16 GB/s" of one of KINDS, in SI: 1.6e10. Raises ValueError."""
    units, example = KINDS[kind]
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        wanted = f"write a number with its unit, like '{example}' (units: {', '.join(units)})"
        raise ValueError(f"{show(value)} is not allowed; {wanted}")
    number = float(match[1]) * units[match[2]]
    if not math.isfinite(number):
        raise ValueError(f"{show(value)} is not allowed; it is too large")
    return number


def write(number: float, kind: str) -> str:
    """Write a quantity with the largest unit in which it is at least 1, for a person to read."""
    units = {unit: factor for unit, factor in KINDS[kind][0].items() if "i" not in unit.partition("B")[0]}
    by_size = sorted(units.items(), key=lambda item: item[1])
    unit, factor = max(
        (item for item in by_size if abs(number) >= item[1] * (1 - 1e-12)),
        key=lambda item: item[1],
        default=by_size[0],
    )
    return f"{number / factor:.4g} {unit}"


def _field(kind: str, above_zero: bool) -> Any:
    def checked(value: object) -> float:
        number = parse(value, kind)
        if number < 0 or (above_zero and number == 0):
            least = "more than 0" if above_zero else "0 or more"
            raise ValueError(f"{show(value)} is not allowed; it must be {least}")
        return number

    return BeforeValidator(checked)


Size = Annotated[float, _field("size", True), "size"]
Rate = Annotated[float, _field("rate", True), "rate"]
Time = Annotated[float, _field("time", False), "time"]
Operations = Annotated[float, _field("operations", True), "operations"]
Frequency = Annotated[float, _field("frequency", True), "frequency"]
EnergyPerBit = Annotated[float, _field("energy_per_bit", False), "energy_per_bit"]
EnergyPerOperation = Annotated[float, _field("energy_per_operation", False), "energy_per_operation"]
Power = Annotated[float, _field("power", False), "power"]
Money = Annotated[float, _field("money", False), "money"]
EnergyPrice = Annotated[float, _field("energy_price", False), "energy_price"]
Area = Annotated[float, _field("area", True), "area"]
