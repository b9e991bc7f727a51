"""Moving average: noise cancels, and so does what is new."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.balance.monitor import window_average
from rayemu.balance.predictors.forecast import Forecast, windows


@dataclass(frozen=True)
class MovingAverage:
    """The mean of the last `windows` windows."""

    windows: int = 5

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise ValueError(f"windows: {self.windows!r} is not allowed; allowed: 1 and above")

    def fit(self, history: np.ndarray) -> Forecast:
        """Nothing to learn from windows [W, L, E]."""
        windows(history)
        return lambda recent: window_average(windows(recent), self.windows)
