"""A trigger by how uneven devices are."""

from __future__ import annotations

from dataclasses import dataclass

from rayemu.balance.metrics import imbalance
from rayemu.balance.monitor import window_average
from rayemu.balance.triggers.history import MOST_BATCHES, History


@dataclass(frozen=True)
class Imbalance:
    """When max/mean of the loads averaged over the last `window` batches is above `over`.

    Loads are averaged before devices are compared: the unevenness that differs from batch to batch cancels,
    and no plan could mend it. `window` batches must have passed since it last fired.
    """

    over: float = 1.2
    window: int = 10

    def __post_init__(self) -> None:
        if not self.over >= 1:
            raise ValueError(f"over: {self.over!r} is not allowed; allowed: 1 and above")
        if not 1 <= self.window <= MOST_BATCHES:
            raise ValueError(f"window: {self.window!r} is not allowed; allowed: 1 to {MOST_BATCHES}")

    @property
    def reach(self) -> int:
        """The window."""
        return self.window

    def fires(self, history: History) -> str | None:
        """Fires while the busiest device has too much on average."""
        if min(history.since, len(history.loads)) < self.window:
            return None
        now = float(imbalance(window_average(history.loads, self.window), history.plan, history.devices))
        if now <= self.over:
            return None
        return f"max/mean over {self.window} batches is {now:.3f}, above {self.over:g}"
