"""Poisson arrivals: many independent users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.arrivals.checks import RANDOM_ARRIVALS, check_rate


@dataclass(frozen=True)
class Poisson:
    """`rate` batches per second on average, each independent of when the others come."""

    rate: float = 10.0

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def times(self, seed: int) -> Iterator[float]:
        """Seconds from the run's start, without end."""
        rng = np.random.default_rng([seed, RANDOM_ARRIVALS])
        now = 0.0
        while True:
            now += rng.exponential(1 / self.rate)
            yield now
