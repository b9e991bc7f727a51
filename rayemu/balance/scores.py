"""How good predictors are on windows that they have not seen, beside the naive forecast.

W windows, L layers, E experts, G devices. Each held-out window is forecast from all windows before it; a
predictor is fitted once, on the windows before the first held-out one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rayemu.balance.loads import Plan
from rayemu.balance.metrics import imbalance
from rayemu.balance.predictors import LastWindow, Predictor
from rayemu.balance.predictors.forecast import windows

Planner = Callable[[np.ndarray], Plan]  # loads [L, E] -> where experts are


@dataclass(frozen=True)
class Score:
    """A predictor's errors over the held-out windows.

    `mae` is in rows per expert; `relative` is the sum of absolute errors over the sum of loads;
    `against_naive` is the MAE over that of the naive forecast (below 1 is better). `balance` is the max/mean
    on the held-out windows of plans made from the forecasts, `naive_balance` of plans from the last window,
    `hindsight_balance` of plans from the window itself, the best that a perfect forecast gets; None without a
    planner.
    """

    predictor: str
    held_out: int
    mae: float
    relative: float
    against_naive: float
    balance: float | None = None
    naive_balance: float | None = None
    hindsight_balance: float | None = None

    @property
    def verdict(self) -> str:
        """In words, by MAE: how much better or worse than to expect no change."""
        change = self.against_naive - 1
        if abs(change) < 0.005:
            return "as good as naive"
        return f"{abs(change):.0%} {'worse' if change > 0 else 'better'} than naive"


def score_predictors(
    history: np.ndarray,
    held_out: int,
    predictors: Mapping[str, Predictor],
    planner: Planner | None = None,
    devices: int | None = None,
) -> list[Score]:
    """Score predictors on the last `held_out` of windows [W, L, E], best MAE first, ties in the given order.

    With a `planner` (loads [L, E] to a plan for `devices` devices) also by the balance that its plans get.
    """
    history = windows(history)
    seen = len(history) - held_out
    if held_out < 1 or seen < 1:
        raise ValueError(
            f"held_out: {held_out!r} is not allowed; allowed: 1 to {len(history) - 1}, of {len(history)}"
        )
    if planner is not None and devices is None:
        raise ValueError("devices: None is not allowed with a planner; allowed: the number of devices")
    actual = history[seen:]

    def balance(forecasts: np.ndarray) -> float | None:
        if planner is None or devices is None:
            return None
        rates = [imbalance(a, planner(f), devices) for f, a in zip(forecasts, actual, strict=True)]
        return float(np.mean(rates))

    def forecasts(predictor: Predictor) -> np.ndarray:
        forecast = predictor.fit(history[:seen])
        return np.stack([forecast(history[:now]) for now in range(seen, len(history))])

    naive = forecasts(LastWindow())
    naive_mae = float(np.abs(naive - actual).mean())
    naive_balance, hindsight = balance(naive), balance(actual)
    scores = []
    for name, predictor in predictors.items():
        made = forecasts(predictor)
        mae = float(np.abs(made - actual).mean())
        against = mae / naive_mae if naive_mae else (1.0 if mae == 0 else float("inf"))
        relative = float(np.abs(made - actual).sum() / actual.sum()) if actual.any() else 0.0
        found = balance(made)
        scores.append(Score(name, held_out, mae, relative, against, found, naive_balance, hindsight))
    return sorted(scores, key=lambda score: score.mae)
