"""Memory for rows that are going to be sent: whoever drives a state machine may know a better place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NewRows = Callable[[int, int], np.ndarray]  # (n, D) -> float32 [n, D], its content is whatever was there


def fresh_rows(rows: int, width: int) -> np.ndarray:
    """Ordinary memory."""
    return np.empty((rows, width), np.float32)


def rows_at(rows: np.ndarray, index: np.ndarray, new_rows: NewRows) -> np.ndarray:
    """Copy rows [index] of `rows` [n, D]; every index must be in range."""
    taken = new_rows(len(index), rows.shape[1])
    return np.take(rows, index, axis=0, out=taken, mode="clip")  # without a mode it would buffer
