"""Fault injection: real signals to real processes, bad weather and slow links on the wire. Seeded."""

from __future__ import annotations

import heapq
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

from rayemu.cluster.link import Link
from rayemu.cluster.resume import resume_after
from rayemu.protocol.faults import MessageFaults

FOREVER_S = 1e6  # a hang of at least this long ends with the run


class Weather:
    """A link whose outgoing frames may be dropped, delayed, doubled, reordered or damaged, or paced.

    `pace` gives for an address the link level and its bytes per second, or None: frames leave one after the
    other at that rate, as from a port of that speed.
    """

    def __init__(
        self, link: Link, seed: list[int], pace: Callable[[int], tuple[int, float] | None] | None = None
    ) -> None:
        self.link = link
        self.pace = pace
        self.free_at: dict[int, float] = {}  # level -> when its port has sent all
        self.endpoint = link.endpoint
        self.faults = MessageFaults(np.random.default_rng(seed))
        self.held: list[tuple[float, int, int, list[np.ndarray]]] = []  # (due, order, address, frame)
        self.order = 0

    def begin(self, fault: dict[str, Any], now: float) -> None:
        """Let a message fault act from now for its duration."""
        self.faults.begin(fault, now)

    def send(self, address: int, frame: list[np.ndarray], now: float) -> None:
        """Send a frame through whatever faults act now."""
        frame, delays = self.faults.through(frame, now)
        for delay in delays:
            self._leave(address, frame, now, now + delay)

    def _leave(self, address: int, frame: list[np.ndarray], now: float, due: float) -> None:
        """Send the frame when it is due and its port has sent it."""
        port = self.pace(address) if self.pace is not None else None
        if port is not None:
            level, rate = port
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


def hang(pid: int, seconds: float) -> None:
    """Stop a process with SIGSTOP; it is continued after `seconds`, or ends with its run."""
    if seconds < FOREVER_S:
        resume_after(pid, seconds)
    os.kill(pid, signal.SIGSTOP)


def strike(pid: int, fault: dict[str, Any]) -> None:
    """Apply a process fault (kill or hang) to a process of this machine."""
    if fault["kind"] == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        hang(pid, float(fault["for"]))
