"""Transition matrix: the next window as a fitted linear map of the last one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.balance.predictors.forecast import Forecast, in_rows, shares, windows


@dataclass(frozen=True)
class TransitionMatrix:
    """The last shares times a matrix per layer, fitted by ridge regression around "nothing changes".

    With s_t the shares [E] of window t, D minimises sum |s_t+1 - s_t - s_t D|^2 + ridge |D|^2, and the
    forecast is s + s D, negative parts cut and made a distribution again. `ridge` is relative to the mean
    square of a window. 0 chooses it per layer among powers of ten, D = 0 (the naive forecast) included:
    fitted to the first three quarters of the windows, by the error on the last quarter. Later windows, since
    what is left out of the middle is easier to fill in than the future. D is kept in its dual form, [W, E],
    as windows are fewer than experts.
    """

    ridge: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < np.inf:
            raise ValueError(f"ridge: {self.ridge!r} is not allowed; allowed: 0 and above")

    def fit(self, history: np.ndarray) -> Forecast:
        """Fit the map of every layer to the pairs of windows [W, L, E] that follow each other."""
        past = shares(windows(history)).swapaxes(0, 1)  # [L, W, E]
        before, change = past[:, :-1], np.diff(past, axis=1)  # [L, W - 1, E]
        dual = np.stack([self._dual(x, d) for x, d in zip(before, change, strict=True)])  # [L, W - 1, E]

        def forecast(recent: np.ndarray) -> np.ndarray:
            recent = windows(recent)
            last = shares(recent[-1:])[0]  # [L, E]
            step = np.einsum("le,lwe->lw", last, before)  # [L, W - 1]
            return in_rows(last + np.einsum("lw,lwe->le", step, dual), recent)

        return forecast

    def _dual(self, before: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Of one layer [W - 1, E]; s D is s before^T times it."""
        if self.ridge:
            return _fit(before, change, self.ridge)
        seen = 3 * len(before) // 4
        best, least = 0.0, float((change[seen:] ** 2).sum())
        for ridge in 10.0 ** np.arange(2, -5, -1):
            error = change[seen:] - before[seen:] @ before[:seen].T @ _fit(
                before[:seen], change[:seen], ridge
            )
            if (missed := float((error**2).sum())) < least:
                best, least = ridge, missed
        return _fit(before, change, best) if best else np.zeros_like(change)


def _fit(before: np.ndarray, change: np.ndarray, ridge: float) -> np.ndarray:
    """(K + ridge I)^-1 change with K = before before^T, the dual of the ridge regression."""
    pairs = len(before)
    kernel = before @ before.T
    scale = np.trace(kernel) / pairs if pairs else 0.0
    if scale == 0:
        return np.zeros_like(change)
    return np.linalg.solve(kernel + ridge * scale * np.eye(pairs), change)
