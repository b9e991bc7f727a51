"""The faults that act on one actor, each for its own time."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rayemu.faults.fault import Fault, Sending


class ActiveFaults:
    """Asked by whoever drives the actor, which also gives the generator that decides by chance.

    One thread begins faults and sends; another may ask how slow it is.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.counts: Counter[type[Fault]] = Counter()  # frames hit, by kind
        self._active: list[tuple[float, Fault]] = []  # (until, fault); replaced, never changed

    def begin(self, fault: Fault, until: float) -> None:
        """Let a fault act until then, whatever else acts."""
        self._active = [*self._active, (until, fault)]

    def through(
        self, frame: list[np.ndarray], now: float, shared: bool = False
    ) -> tuple[list[np.ndarray], list[float]]:
        """Return a frame (in pieces) as it will arrive, and each copy's delay (s): no copy, no frame.

        Of a `shared` one every second piece lies in shared memory.
        """
        if not self._active:
            return frame, [0.0]
        self._active = [(until, fault) for until, fault in self._active if until > now]
        sending = Sending(frame, shared)
        for _, fault in self._active:
            if sending.delays:
                self.counts[type(fault)] += fault.on_send(sending, self.rng)
        return sending.frame, sending.delays

    def slowness(self, now: float) -> float:
        """How many times as long a job takes that begins now."""
        factor = 1.0
        for until, fault in self._active:
            if until > now:
                factor *= fault.slowness()
        return factor
