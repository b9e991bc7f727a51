"""Arrivals at recorded times."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """The times in a file, in seconds from the run's start: one number per line, none before the last.

    `path` is a text file; what follows a # is a comment. It needs as many times as the run has batches.
    """

    path: str = ""

    def __post_init__(self) -> None:
        self.times(0)

    def times(self, seed: int) -> list[float]:
        """Seconds from the run's start, as many as there are. ValueError that starts with "path"."""
        if not self.path:
            raise ValueError("path: '' is not allowed; give a text file with a time in seconds on each line")
        try:
            with open(os.path.expanduser(self.path), encoding="utf-8") as file:
                lines = [line.partition("#")[0].strip() for line in file]
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(f"path: {self.path!r} cannot be read: {why}") from None
        times = [0.0]
        for number, line in enumerate(lines, 1):
            if line:
                times.append(_seconds(line))
                if not times[-2] <= times[-1] < math.inf:
                    raise ValueError(
                        f"path: {self.path!r}, line {number}: {line[:40]!r} is not allowed; allowed: a "
                        f"number of seconds from {times[-2]:g}, the time before, up"
                    )
        return times[1:]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
