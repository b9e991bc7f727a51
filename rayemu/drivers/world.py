"""A virtual clock, and a network that loses, doubles, damages and delays: seeded, so all can be replayed."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from rayemu.protocol.client import CLOSED, StalledError


@dataclass(frozen=True)
class Network:
    """What happens to frames: probabilities per frame, delays in virtual seconds.

    Delays are exponential around `delay`, so frames overtake each other.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0001
    straggle: float = 0.0  # probability of a hundredfold delay


@dataclass
class Counters:
    """What the network and the faults did."""

    frames: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0  # by the network: message faults count their own
    refused: int = 0  # frames that nobody could make sense of
    crashes: int = 0
    hangs: int = 0


class SimulationStuck(StalledError):
    """The virtual time limit passed before the run was done, or the emulator was closed."""


class World:
    """Virtual time in seconds, and who hears what at which address."""

    def __init__(self, network: Network, rng: np.random.Generator) -> None:
        self.now = 0.0
        self.network, self.rng = network, rng
        self.counters = Counters()
        self.receivers: dict[int, Callable[[bytes], None]] = {}  # address -> whoever is there now
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._closed = False

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something after a virtual delay; equal times keep the order of these calls."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, action))

    def run_until(self, done: Callable[[], bool], limit: float) -> None:
        """Let time pass until `done()`. SimulationStuck after `limit` seconds, or once it is closed."""
        end = self.now + limit
        while not done():
            if self._closed:
                raise SimulationStuck(CLOSED)
            if not self._queue or self._queue[0][0] > end:
                raise SimulationStuck(f"nothing finished within {limit:g} virtual seconds")
            self.now, _, action = heapq.heappop(self._queue)
            action()

    def run_what_is_due(self) -> None:
        """Do what is to be done now."""
        self.run_until(lambda: not self._queue or self._queue[0][0] > self.now, 1.0)

    def close(self) -> None:
        """End time: whoever waits for something gets SimulationStuck."""
        self._closed = True

    def shares(self, address: int) -> bool:
        """Frames are in one piece here."""
        return False

    def send(self, address: int, frame: list[np.ndarray], delays: list[float], now: float) -> None:
        """Send copies of a frame after these delays to whoever has the address now.

        To one that comes after it they do not go.
        """
        counters, network, rng = self.counters, self.network, self.rng
        counters.frames += 1
        if not delays:
            counters.lost += 1
            return
        counters.duplicated += len(delays) - 1
        lost, doubled, damaged, held_up = rng.random(4)
        if lost < network.loss:
            counters.lost += 1
            return
        if doubled < network.duplicate:
            counters.duplicated += 1
            delays = delays * 2
        sent = b"".join(piece.data for piece in frame)
        if damaged < network.corrupt:
            counters.corrupted += 1
            altered = bytearray(sent)
            altered[rng.integers(len(sent))] ^= 1 << int(rng.integers(8))
            sent = bytes(altered)
        arrive = partial(self.receivers[address], sent)
        for held in delays:
            delay = float(rng.exponential(network.delay))
            self.at(held + (delay * 100 if held_up < network.straggle else delay), arrive)
