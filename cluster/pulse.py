"""Heartbeats between processes of one machine: a number in shared memory instead of a frame.

A frame wakes four threads on its way; at fifty beats a second and eight modules that took a tenth of two
cores. Writing a clock value costs a store, and the coordinator reads all of them at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np


class Pulses:
    """One slot per module: (incarnation, time.monotonic() of the last beat), in a file that all map.

    The clock is the machine's, so its values can be compared between processes.
    """

    def __init__(self, directory: str, modules: int) -> None:
        path = Path(directory) / "pulses"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, modules * 16)  # keeps what is there; new slots read as zero
        os.close(descriptor)
        self._slots = np.memmap(path, np.float64, "r+", shape=(modules, 2))

    def beat(self, module: int, incarnation: int) -> None:
        """Say that this module lives."""
        slot = self._slots[module]
        slot[0] = incarnation
        slot[1] = time.monotonic()

    def read(self) -> list[list[float]]:
        """Return (incarnation, time) of every module."""
        return self._slots.tolist()  # type: ignore[no-any-return]
