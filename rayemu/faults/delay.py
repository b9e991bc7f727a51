"""Frames that come late."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rayemu.faults.fault import SECONDS, Sending, refused
from rayemu.faults.frames import FrameFault


@dataclass(frozen=True)
class Delay(FrameFault):
    """Frames arrive late, by `delay` seconds."""

    delay: float = field(default=0.005, metadata=SECONDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay < 0:
            raise refused("delay", self.delay, "0 s and above")

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """Every copy is held alike."""
        sending.delays = [held + self.delay for held in sending.delays]
