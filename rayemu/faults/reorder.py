"""Frames that overtake each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rayemu.faults.fault import SECONDS, Sending, refused
from rayemu.faults.frames import FrameFault


@dataclass(frozen=True)
class Reorder(FrameFault):
    """Later frames overtake earlier ones, which are held for up to `delay` seconds."""

    delay: float = field(default=0.005, metadata=SECONDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay < 0:
            raise refused("delay", self.delay, "0 s and above")

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """All copies are held, for a while that chance decides."""
        held = self.delay * rng.random()
        sending.delays = [before + held for before in sending.delays]
