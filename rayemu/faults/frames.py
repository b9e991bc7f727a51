"""What kinds of faults that hit frames by chance have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rayemu.faults.fault import SECONDS, Fault, Sending, refused


@dataclass(frozen=True)
class FrameFault(Fault):
    """Hits the share `rate` of the frames that a module (or everyone) sends."""

    rate: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise refused("rate", self.rate, "more than 0, up to 1")

    def on_send(self, sending: Sending, rng: np.random.Generator) -> bool:
        """Hit a frame, perhaps."""
        if rng.random() >= self.rate:
            return False
        self.hit(sending, rng)
        return True

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """Do to a frame what this kind does."""
        raise NotImplementedError


@dataclass(frozen=True)
class HoldingFault(FrameFault):
    """Holds them, for up to `delay` seconds."""

    delay: float = field(default=0.005, metadata=SECONDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay < 0:
            raise refused("delay", self.delay, "0 s and above")
