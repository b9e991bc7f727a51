"""Pattern similarity: what followed when loads looked like this before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.balance.predictors.forecast import Forecast, in_rows, shares, windows


@dataclass(frozen=True)
class PatternSimilarity:
    """What followed the `neighbours` past patterns of `length` windows that are nearest to the last ones.

    Per layer, on shares; distance is the mean absolute difference, each neighbour weighs 1 / distance (an
    exact repetition takes all). With fewer than `length` + 1 windows there is no past: the last window is
    forecast.
    """

    length: int = 3
    neighbours: int = 3

    def __post_init__(self) -> None:
        for name in ("length", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not allowed; allowed: 1 and above")

    def fit(self, history: np.ndarray) -> Forecast:
        """Nothing to learn beforehand: the past is in the recent windows [W, L, E] too."""
        windows(history)
        return self._forecast

    def _forecast(self, recent: np.ndarray) -> np.ndarray:
        recent = windows(recent)
        past = shares(recent)  # [W, L, E]
        starts = len(past) - self.length
        if starts < 1:
            return recent[-1]
        pattern = past[-self.length :]  # [length, L, E]
        distance = np.mean(
            [np.abs(past[i : i + starts] - pattern[i]).mean(axis=-1) for i in range(self.length)], axis=0
        )  # [starts, L]; pattern p is windows p .. p + length - 1, and p + length followed it
        nearest = np.argsort(distance, axis=0, kind="stable")[: self.neighbours]  # [n, L]
        near = np.take_along_axis(distance, nearest, axis=0)
        weight = 1.0 / np.maximum(near, 1e-12)  # [n, L]
        layers = np.arange(past.shape[1])
        followed = past[nearest + self.length, layers]  # [n, L, E]
        mean = (followed * weight[:, :, None]).sum(axis=0) / weight.sum(axis=0)[:, None]
        return in_rows(mean, recent)
