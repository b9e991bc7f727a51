"""Frames that come twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.faults.fault import Sending
from rayemu.faults.frames import FrameFault


@dataclass(frozen=True)
class Duplicate(FrameFault):
    """Frames arrive twice."""

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """One copy more arrives."""
        sending.delays = sending.delays + sending.delays[:1]
