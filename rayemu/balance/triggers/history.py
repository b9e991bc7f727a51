"""What a trigger looks at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from rayemu.balance.loads import Plan
from rayemu.balance.metrics import imbalance


@dataclass(frozen=True)
class History:
    """The last batches, and the plan under which they are judged: the present one, also for older batches.

    `loads [B, L, E]` are rows per expert, oldest batch first; `since` is how many batches have passed since
    the trigger last fired or the run began (it may be fewer or more than B).
    """

    loads: np.ndarray
    plan: Plan
    devices: int
    since: int

    @cached_property
    def imbalance(self) -> np.ndarray:
        """max/mean per batch [B], averaged over layers, had the present plan been there."""
        return imbalance(self.loads, self.plan, self.devices)


class Trigger(Protocol):
    """Says when to plan anew."""

    def fires(self, history: History) -> str | None:
        """The reason to plan anew now, or None."""
