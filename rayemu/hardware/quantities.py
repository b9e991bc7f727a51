"""Quantities of modelled hardware: a number with its unit, always written, plain SI inside the program."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from rayemu.plain_yaml import show

_LARGE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", 1)}
_SMALL = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
_NUMBER = re.compile(
    r"\s*([+-]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)\s*(\S.*?)?\s*"
)


def _units(prefixes: dict[str, float], unit: str, factor: float = 1.0) -> dict[str, float]:
    return {f"{prefix}{unit}": size * factor for prefix, size in prefixes.items()}


@dataclass(frozen=True)
class Kind:
    """What may be measured: units with what one of each is in SI, an example, and what is believable.

    `units` are what is written; `also` are read beside them. Besides 0, where a field takes that, a number
    lies from `least` to `most` (SI): beyond it is a slip of the unit, not hardware.
    """

    units: dict[str, float]
    example: str
    least: float
    most: float
    also: dict[str, float]


_SIZE = _units(_LARGE, "B")
_SIZE_ALSO = _units(_BINARY, "B") | {"KB": 1e3}
_RATE_ALSO = {f"{unit}/s": factor for unit, factor in _SIZE_ALSO.items()} | _units(_LARGE, "bit/s", 1 / 8)
_PER_S = {f"{unit}/s": factor for unit, factor in _SIZE.items()}
_FLOPS = _units(_LARGE, "FLOP/s")
_FLOPS_ALSO = _units(_LARGE, "OP/s") | _units(_LARGE, "FLOPS") | _units(_LARGE, "OPS")
_PER_BIT, _PER_FLOP = ({f"pJ/{one}": 1e-12, f"J/{one}": 1.0} for one in ("bit", "FLOP"))
KINDS: dict[str, Kind] = {
    "size": Kind(_SIZE, "16 GB", 1, 1e18, _SIZE_ALSO),
    "rate": Kind(_PER_S, "16 GB/s", 1, 1e18, _RATE_ALSO),
    "time": Kind(_units(_SMALL, "s"), "25 ns", 1e-15, 3600, {"min": 60.0, "h": 3600.0}),
    "work": Kind(_units(_LARGE, "FLOP"), "1 GFLOP", 1, 1e21, _units(_LARGE, "OP")),
    "operations": Kind(_FLOPS, "1 TFLOP/s", 1, 1e21, _FLOPS_ALSO),
    "frequency": Kind(_units(_LARGE, "Hz"), "300 MHz", 1, 1e13, {}),
    "energy_per_bit": Kind(
        _PER_BIT, "3.9 pJ/bit", 1e-18, 1e-3, _units(_SMALL, "J/bit") | _units(_SMALL, "J/B", 1 / 8)
    ),
    "energy_per_operation": Kind(
        _PER_FLOP, "0.5 pJ/FLOP", 1e-18, 1e-3, _units(_SMALL, "J/FLOP") | _units(_SMALL, "J/OP")
    ),
    "power": Kind(_units(_SMALL | _LARGE, "W"), "30 W", 1e-9, 1e9, {}),
    "money": Kind({"USD": 1.0}, "2000 USD", 1e-3, 1e12, {}),
    "energy_price": Kind({"USD/kWh": 1 / 3.6e6, "USD/J": 1.0}, "0.1 USD/kWh", 1e-6 / 3.6e6, 1e3 / 3.6e6, {}),
    "area": Kind({"mm2": 1e-6, "m2": 1.0}, "1.5 mm2", 1e-15, 1.0, {}),
}


def parse(value: object, kind: str) -> float:
    """Read a quantity such as "16 GB/s" of one of KINDS, in SI: 1.6e10. Raises ValueError."""
    known = KINDS[kind]
    units = known.units | known.also
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    unit = re.sub("[\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}]", "u", (match[2] or "") if match else "")
    if match is None or unit not in units:
        wanted = f"write a number with its unit, like '{known.example}' (units: {', '.join(known.units)})"
        raise ValueError(f"{show(value)} is not allowed; {wanted}")
    number = float(match[1]) * units[unit]
    if abs(number) > known.most * (1 + 1e-9):
        raise ValueError(f"{show(value)} is not allowed; it must be at most {write(known.most, kind)}")
    if float(match[1]) and 0 <= number < known.least * (1 - 1e-9):
        raise ValueError(f"{show(value)} is not allowed; it must be at least {write(known.least, kind)}")
    return number


def write(number: float, kind: str) -> str:
    """Write a quantity with the largest unit in which it is at least 1, for a person to read."""
    by_size = sorted(KINDS[kind].units.items(), key=lambda item: item[1])
    unit, factor = max(
        (item for item in by_size if abs(number) >= item[1] * (1 - 1e-12)),
        key=lambda item: item[1],
        default=min(by_size, key=lambda item: abs(item[1] - 1)) if number == 0 else by_size[0],
    )
    shown = f"{number / factor:.4g}"
    return f"{number / factor:,.0f} {unit}" if "e+" in shown else f"{shown} {unit}"


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
Work = Annotated[float, _field("work", False), "work"]
Operations = Annotated[float, _field("operations", True), "operations"]
Frequency = Annotated[float, _field("frequency", True), "frequency"]
EnergyPerBit = Annotated[float, _field("energy_per_bit", False), "energy_per_bit"]
EnergyPerOperation = Annotated[float, _field("energy_per_operation", False), "energy_per_operation"]
Power = Annotated[float, _field("power", False), "power"]
Money = Annotated[float, _field("money", False), "money"]
EnergyPrice = Annotated[float, _field("energy_price", False), "energy_price"]
Area = Annotated[float, _field("area", True), "area"]
