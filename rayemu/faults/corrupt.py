"""Frames that are damaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.faults.fault import Sending
from rayemu.faults.frames import FrameFault


@dataclass(frozen=True)
class Corrupt(FrameFault):
    """A bit of a frame flips; the checksum finds it."""

    def hit(self, sending: Sending, rng: np.random.Generator) -> None:
        """Flip a bit of a copy of some piece; what is shared is not on its way."""
        frame = sending.frame
        under_way = [n for n in range(0, len(frame), 1 + sending.shared) if len(frame[n])]
        number = under_way[rng.integers(len(under_way))]
        sending.frame = [*frame]
        piece = sending.frame[number] = np.array(frame[number])
        piece[rng.integers(len(piece))] ^= np.uint8(1 << rng.integers(8))
