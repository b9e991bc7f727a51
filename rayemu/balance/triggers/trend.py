"""A trigger by how balance develops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.balance.metrics import imbalance
from rayemu.balance.triggers.history import MOST_BATCHES, History


@dataclass(frozen=True)
class Trend:
    """When max/mean was worse than in the batch before in `worse` of the last `of` batches.

    The rule as it is usually told, 7 of 10. On loads that only fluctuate it fires by chance: 7 or more of 10
    differences of 11 independent values are rises in 5.9 % of cases (Eulerian numbers), so `least` is the
    max/mean that the last `of` batches must have on average.
    """

    worse: int = 7
    of: int = 10
    least: float = 1.1

    def __post_init__(self) -> None:
        if not 1 <= self.of < MOST_BATCHES:
            raise ValueError(f"of: {self.of!r} is not allowed; allowed: 1 to {MOST_BATCHES - 1}")
        if not 1 <= self.worse <= self.of:
            raise ValueError(f"worse: {self.worse!r} is not allowed; allowed: 1 to `of`, {self.of}")
        if not self.least >= 1:
            raise ValueError(f"least: {self.least!r} is not allowed; allowed: 1 and above")

    @property
    def reach(self) -> int:
        """One more than there are differences."""
        return self.of + 1

    def fires(self, history: History) -> str | None:
        """Fires on enough rises among the last differences."""
        if history.since < self.of or len(history.loads) <= self.of:
            return None
        last = imbalance(history.loads[-self.of - 1 :], history.plan, history.devices)  # [of + 1]
        rises = int((np.diff(last) > 0).sum())
        if rises < self.worse or last[1:].mean() < self.least:
            return None
        return f"max/mean was worse in {rises} of the last {self.of} batches, now {last[-1]:.3f}"
