"""What the hardware model is held against: figures published or measured, and how near it must come."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure. `published` is written as its source has it: "131", "48-80" (anything between), "6.03".

    `predicted` is in the same unit.
    """

    what: str
    predicted: float
    published: str

    @property
    def error(self) -> float:
        """Relative error against what was published; 0 inside a range; infinite if nothing is predicted."""
        if not math.isfinite(self.predicted):
            return math.inf
        low, _, high = self.published.partition("-")
        least, most = float(low), float(high or low)
        nearest = min(max(self.predicted, least), most)
        return (self.predicted - nearest) / nearest

    @property
    def same_digits(self) -> bool:
        """Whether the prediction, rounded as the published figure is, is that figure."""
        decimals = len(self.published.partition(".")[2])
        return f"{self.predicted:.{decimals}f}" == self.published


@dataclass(frozen=True)
class Check:
    """A table of figures from one source. `bound` of every row's error, `mean` of their average; None: exact.

    `aim` is where the mean error should be some day; it is shown and fails nothing.
    """

    name: str
    source: str
    unit: str
    rows: tuple[Row, ...]
    bound: float | None = None
    mean: float | None = None
    aim: float | None = None

    def holds(self, row: Row) -> bool:
        """Whether a row is inside the bound."""
        return row.same_digits if self.bound is None else abs(row.error) <= self.bound

    @property
    def mean_error(self) -> float:
        """The average of the rows' errors, each without its sign."""
        return sum(abs(row.error) for row in self.rows) / len(self.rows)

    @property
    def passed(self) -> bool:
        """Whether every row and the mean are inside their bounds; a check without rows shows nothing."""
        within = self.mean is None or self.mean_error <= self.mean
        return bool(self.rows) and within and all(map(self.holds, self.rows))
