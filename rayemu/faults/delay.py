"""Frames that come late."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.faults.fault import Sending
from rayemu.faults.frames import FrameFault


@dataclass(frozen=True)
class Delay(FrameFault):
    """Frames arrive late, by `delay` seconds."""

    delay: float = 0.005

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """Every copy is held alike."""
        sending.delays = [held + self.delay for held in sending.delays]
