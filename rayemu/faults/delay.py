"""Frames that come late."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.faults.fault import Sending
from rayemu.faults.frames import HoldingFault


@dataclass(frozen=True)
class Delay(HoldingFault):
    """Frames arrive late, by `delay` seconds."""

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """Every copy is held alike."""
        sending.delays = [held + self.delay for held in sending.delays]
