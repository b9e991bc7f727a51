"""Triggers: when to think about a new plan. Whether it is worth its moves is for `rayemu.balance.judge`.

A trigger is a frozen dataclass with `fires(history) -> str | None`: the reason in words, or None; and with
`reach`, the batches that it looks back on. It is asked after every batch, unless a plan is being made; who
asks sets `History.since` back to 0 when it has fired, whatever came of it.
"""

from rayemu.balance.triggers.every import Every
from rayemu.balance.triggers.history import History, Trigger
from rayemu.balance.triggers.imbalance import Imbalance
from rayemu.balance.triggers.predicted import Predicted
from rayemu.balance.triggers.trend import Trend

TRIGGERS: dict[str, type[Trigger]] = {
    "every": Every,
    "imbalance": Imbalance,
    "trend": Trend,
    "predicted": Predicted,
}

__all__ = ["TRIGGERS", "Every", "History", "Imbalance", "Predicted", "Trend", "Trigger"]
