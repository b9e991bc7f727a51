"""When batches arrive: as fast as results come, or at times of their own, whether or not there is room.

A strategy is a frozen dataclass with `times(seed)`: seconds from the run's start at which its batches are
meant to begin, in order, without end or as a list of so many; None for a batch whenever there is room. The
same seed gives the same times.
"""

from __future__ import annotations

from rayemu.arrivals.bursts import Bursts
from rayemu.arrivals.closed import Closed
from rayemu.arrivals.file import File
from rayemu.arrivals.poisson import Poisson

ARRIVALS = {"closed": Closed, "poisson": Poisson, "bursts": Bursts, "file": File}

__all__ = ["ARRIVALS", "Bursts", "Closed", "File", "Poisson"]
