"""Where an actor's frames leave: at once, later, or one after the other at a slow link's pace."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from rayemu.cluster.link import Link


class Port:
    """A link whose frames may leave later.

    `pace` gives for an address the link level and its bytes per second, or None: frames leave one after the
    other at that rate, as from a port of that speed.
    """

    def __init__(self, link: Link, pace: Callable[[int], tuple[int, float] | None] | None = None) -> None:
        self.link = link
        self.pace = pace
        self.free_at: dict[int, float] = {}  # level -> when its port has sent all
        self.held: list[tuple[float, int, int, list[np.ndarray]]] = []  # (due, order, address, frame)
        self.order = 0

    def send(self, address: int, frame: list[np.ndarray], delays: list[float], now: float) -> None:
        """Send a copy of a frame after each of these delays (s), and not before its port is free."""
        for delay in delays:
            due = now + delay
            pace = self.pace(address) if self.pace is not None else None
            if pace is not None:
                level, rate = pace
                due = max(due, self.free_at.get(level, 0.0)) + sum(map(len, frame)) / rate
                self.free_at[level] = due
            if due > now:
                self.order += 1
                heapq.heappush(self.held, (due, self.order, address, frame))
            else:
                self.link.send(address, frame)

    def release(self, now: float) -> float:
        """Send the held frames that are due; return when the next one is."""
        while self.held and self.held[0][0] <= now:
            _, _, address, frame = heapq.heappop(self.held)
            self.link.send(address, frame)
        return self.held[0][0] if self.held else float("inf")
