"""Frames that overtake each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.faults.fault import Sending
from rayemu.faults.frames import HoldingFault


@dataclass(frozen=True)
class Reorder(HoldingFault):
    """Later frames overtake earlier ones, which are held for up to `delay` seconds."""

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """All copies are held, for a while that chance decides."""
        held = self.delay * rng.random()
        sending.delays = [before + held for before in sending.delays]
