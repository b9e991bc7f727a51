"""A figure of the texts that follows by arithmetic, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

AGREES, DIFFERS, CONTRADICTS = "agrees", "differs", "contradicts itself"
VERDICTS = (AGREES, DIFFERS, CONTRADICTS)
TEXTS = {
    "000": "a book's chapter: Mixture of Experts on PIM",
    "001": "a note: scheduling experts and moving their data",
    "002": "an article: optimising MoE kernels",
}

Input = int | float | str | tuple[float, ...]

_PREFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12}
_PREFIXED = "B B/s s J J/bit ops ops/s tokens tokens/s Hz".split()
_PLAIN = "x USD mm2 cycles hops units copies chips experts modules slots entries batches/s ops/bit".split()
UNITS: dict[str, float] = {
    **{f"{prefix}{unit}": scale for unit in _PREFIXED for prefix, scale in _PREFIXES.items()},
    **dict.fromkeys(["", *_PLAIN], 1),
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "%": 0.01,
    "M params": 1e6,
    "B params": 1e9,
    "M/s/mm2": 1e6,
}
_FUNCTIONS = {name: getattr(math, name) for name in ("ceil", "erfc", "log2", "sqrt")}
_FUNCTIONS |= {f.__name__: f for f in (int, len, max, min, range, sum, zip)}


@dataclass(frozen=True)
class Row:
    """One figure of one text. The verdict is worked out, never written down.

    `inputs` are what the text gives, as numbers, lists or quantities like "12.5 GB/s"; `formula` is an
    expression of Python over their names, in SI units. `theirs` is the figure as the text writes it, in
    `unit`; "5-6" is a range. It agrees if ours, rounded or cut off after its last digit, is theirs (the texts
    do both), or after `step` where the digits do not show what was kept. Where it does not agree, the text
    contradicts itself if the formula and inputs are its own; `corrected` says that they are not, but what the
    figure's name asks for. `reading` is how an ambiguous text was taken, `why` where the difference is from.
    """

    id: str
    section: str
    what: str
    inputs: Mapping[str, Input]
    formula: str
    theirs: str
    unit: str = ""
    corrected: bool = False
    step: float | None = None
    reading: str = ""
    why: str = ""
    ours: float = field(init=False)  # in `unit`

    def __post_init__(self) -> None:
        names = {name: si(value) for name, value in self.inputs.items()}
        # As globals, because a comprehension within eval does not see its locals.
        value = eval(self.formula, {"__builtins__": {}, **_FUNCTIONS, **names})
        object.__setattr__(self, "ours", value / UNITS[self.unit])

    @property
    def text(self) -> str:
        """The number of the text, which an id begins with."""
        return self.id[:3]

    @property
    def bounds(self) -> tuple[float, float]:
        """The text's figure, in `unit`: its range, or itself twice."""
        parts = self.theirs.replace(",", "").split("-") if "e-" not in self.theirs else [self.theirs]
        return float(parts[0]), float(parts[-1])

    @property
    def last_digit(self) -> float:
        """What one unit of the figure's last digit is worth, in `unit`."""
        _, _, decimals = self.theirs.split("-")[-1].partition(".")
        return self.step or 10.0 ** -len(decimals)

    @property
    def factor(self) -> float:
        """Ours relative to theirs (of a range, to its nearer end, and 1 within it)."""
        low, high = self.bounds
        return self.ours / min(max(self.ours, low), high)

    @property
    def verdict(self) -> str:
        low, high = self.bounds
        unit = self.last_digit
        if low - unit / 2 <= self.ours * (1 + 1e-9) and self.ours < high + unit:
            return AGREES
        return DIFFERS if self.corrected else CONTRADICTS


def si(value: Input) -> float | tuple[float, ...]:
    """A quantity like "12.5 GB/s" in SI units; a bare number, or several, as they are."""
    if not isinstance(value, str):
        return value
    number, _, unit = value.partition(" ")
    return float(number.replace(",", "")) * UNITS[unit]
