"""The naive predictor: nothing changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.balance.predictors.forecast import Forecast, windows


@dataclass(frozen=True)
class LastWindow:
    """The next window's loads are those of the last one (the naive forecast)."""

    def fit(self, history: np.ndarray) -> Forecast:
        """Nothing to learn from windows [W, L, E]."""
        windows(history)
        return lambda recent: windows(recent)[-1]
