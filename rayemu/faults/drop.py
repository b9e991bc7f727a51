"""Frames that are lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.faults.fault import Sending
from rayemu.faults.frames import FrameFault


@dataclass(frozen=True)
class Drop(FrameFault):
    """Frames get lost."""

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """No copy arrives."""
        sending.delays = []
