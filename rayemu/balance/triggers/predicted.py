"""A trigger by what is to come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.balance.metrics import imbalance
from rayemu.balance.monitor import in_windows
from rayemu.balance.predictors import PREDICTORS
from rayemu.balance.triggers.history import MOST_BATCHES, History

LEARNT = 64  # windows, where there are as many: a recurrent network learns nothing from eight
_TRIED = np.ones((1, 1, 2))  # windows [W, L, E] that show whether a predictor has what it needs


@dataclass(frozen=True)
class Predicted:
    """When the forecast of the next `window` batches is above `over` in max/mean under the present plan.

    `predictor` is one of `rayemu.balance.predictors`, with its usual parameters. It is fitted and asked every
    `window` batches, on whole windows of that length, the last ending now, once there are `windows` of them;
    it learns from the last 64, as far as there are any and they have 4,096 batches at most.
    """

    predictor: str = "moving_average"
    over: float = 1.2
    window: int = 5
    windows: int = 4

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise ValueError(
                f"predictor: {self.predictor!r} is not allowed; allowed: {', '.join(PREDICTORS)}"
            )
        try:
            PREDICTORS[self.predictor]().fit(_TRIED)(_TRIED)
        except ImportError as error:  # now, not when it is first asked for a forecast
            raise ValueError(f"predictor: {self.predictor!r} cannot be had: {error}") from None
        if not self.over >= 1:
            raise ValueError(f"over: {self.over!r} is not allowed; allowed: 1 and above")
        if not 1 <= self.window <= MOST_BATCHES:
            raise ValueError(f"window: {self.window!r} is not allowed; allowed: 1 to {MOST_BATCHES}")
        most = MOST_BATCHES // self.window
        if not 1 <= self.windows <= most:
            raise ValueError(f"windows: {self.windows!r} is not allowed; allowed: 1 to {most} of that length")

    @property
    def reach(self) -> int:
        """The windows that it must have, and more for the predictor to learn from."""
        return min(self.window * max(self.windows, LEARNT), MOST_BATCHES)

    def fires(self, history: History) -> str | None:
        """Fires when the forecast is uneven."""
        past = in_windows(history.loads, self.window)  # [W, L, E]
        if not history.since or history.since % self.window or len(past) < self.windows:
            return None
        ahead = PREDICTORS[self.predictor]().fit(past)(past)
        expected = float(imbalance(ahead, history.plan, history.devices))
        if expected <= self.over:
            return None
        return f"{self.predictor} expects max/mean {expected:.3f}, above {self.over:g}"
