"""What a trigger looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rayemu.balance.loads import Plan


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


MOST_BATCHES = 4096  # that a trigger may look back


class Trigger(Protocol):
    """Says when to plan anew. `reach`: batches that it looks back on at least."""

    @property
    def reach(self) -> int:
        """Batches that must be remembered for it."""

    def fires(self, history: History) -> str | None:
        """The reason to plan anew now, or None."""
