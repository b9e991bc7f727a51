"""Message faults: what becomes of the frames that one sender sends while faults act on it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

MESSAGE_FAULTS = ("drop", "delay", "duplicate", "corrupt", "reorder")


class MessageFaults:
    """The message faults that act on one sender, each for its own time. Seeded by whoever drives it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.counts: Counter[str] = Counter()  # frames hit, by kind
        self._active: list[tuple[float, dict[str, Any]]] = []  # (until, fault)

    def begin(self, fault: dict[str, Any], now: float) -> None:
        """Let a fault act from now for its duration, whatever else acts."""
        self._active.append((now + float(fault["for"]), fault))

    def through(
        self, frame: list[np.ndarray], now: float, shared: bool = False
    ) -> tuple[list[np.ndarray], list[float]]:
        """Return a frame (in pieces) as it will arrive, and each copy's delay (s): no copy, no frame.

        Of a `shared` one every second piece lies in shared memory and is not on its way: it is not corrupted.
        """
        if not self._active:
            return frame, [0.0]
        self._active = [(until, fault) for until, fault in self._active if until > now]
        copies, delay = 1, 0.0
        for _, fault in self._active:
            if self.rng.random() >= fault["rate"]:
                continue
            kind = fault["kind"]
            self.counts[kind] += 1
            if kind == "drop":
                return frame, []
            if kind == "duplicate":
                copies += 1
            elif kind == "corrupt":
                under_way = [n for n in range(0, len(frame), 1 + shared) if len(frame[n])]
                number = under_way[self.rng.integers(len(under_way))]
                frame = [*frame]
                piece = frame[number] = np.array(frame[number])
                piece[self.rng.integers(len(piece))] ^= np.uint8(1 << self.rng.integers(8))
            else:  # delay holds all alike; reorder lets later frames overtake
                delay += fault["delay"] * (1.0 if kind == "delay" else self.rng.random())
        return frame, [delay] * copies
