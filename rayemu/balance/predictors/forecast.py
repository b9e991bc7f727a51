"""What a predictor and its forecast are, and loads as shares of their layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np

from rayemu.balance.loads import checked_loads

Forecast: TypeAlias = Callable[[np.ndarray], np.ndarray]  # recent windows [W, L, E] -> the next window [L, E]


class Predictor(Protocol):
    """Learns from windows of loads and gives a forecast."""

    def fit(self, history: np.ndarray) -> Forecast:
        """Learn from windows [W, L, E], oldest first, W at least 1."""


def windows(history: np.ndarray) -> np.ndarray:
    """The windows [W, L, E] as float64; ValueError without any, or with negative or infinite loads."""
    array = checked_loads(history, (3,), "history")
    if not len(array):
        raise ValueError("history: 0 windows are not allowed; allowed: 1 and above")
    return array


def shares(history: np.ndarray) -> np.ndarray:
    """Each expert's part of its layer's load [W, L, E]; zeros where a layer has none."""
    total = history.sum(axis=-1, keepdims=True)
    return history / np.where(total > 0, total, 1.0)


def in_rows(share: np.ndarray, recent: np.ndarray) -> np.ndarray:
    """Shares [L, E], made a distribution again, as loads of a window with the rows of the last one."""
    share = np.maximum(share, 0.0)
    total = share.sum(axis=-1, keepdims=True)
    return share / np.where(total > 0, total, 1.0) * recent[-1].sum(axis=-1, keepdims=True)
