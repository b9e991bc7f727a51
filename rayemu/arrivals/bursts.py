"""Bursts of arrivals: busy times and pauses by turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.arrivals.checks import RANDOM_ARRIVALS, check_rate, check_seconds


@dataclass(frozen=True)
class Bursts:
    """Poisson arrivals at `rate` batches per second, but only in bursts of `on` seconds with pauses between.

    Bursts last `on` and pauses `off` seconds on average, both exponential (an interrupted Poisson process);
    over a long time `rate` * on / (on + off) batches per second come. It begins with a burst.
    """

    rate: float = 20.0
    on: float = 1.0
    off: float = 1.0

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_seconds("on", self.on)
        check_seconds("off", self.off)

    def times(self, seed: int) -> Iterator[float]:
        """Seconds from the run's start, without end."""
        rng = np.random.default_rng([seed, RANDOM_ARRIVALS])
        begins = 0.0
        while True:
            ends = begins + rng.exponential(self.on)
            now = begins + rng.exponential(1 / self.rate)
            while now < ends:
                yield now
                now += rng.exponential(1 / self.rate)
            begins = ends + rng.exponential(self.off)
