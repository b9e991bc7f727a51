"""The simulator for several threads: a thread of its own runs whatever they ask, one after the other.

Ctrl-C interrupts whoever waits for that thread, never the simulation in the middle of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from rayemu.drivers.simulator import Simulator
from rayemu.drivers.world import SimulationStuck
from rayemu.numerics import denormals_kept
from rayemu.placement import Placement
from rayemu.protocol.client import CLOSED, BatchResult
from rayemu.protocol.messages import Epoch, Moved, Notice


class SerialSimulator:
    """A `Backend` of a simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._thread = ThreadPoolExecutor(1, "simulator")
        self.new_rows = simulator.new_rows

    def submit(self, x: np.ndarray) -> int:
        asked = self._begin(self.simulator.submit, x)
        try:
            return self._end(asked)
        except BaseException:  # interrupted: nobody will know its number
            asked.cancel()
            asked.add_done_callback(self._forget)
            raise

    def result(self, number: int, timeout_s: float = 600.0) -> BatchResult:
        return self._ask(self.simulator.result, number, timeout_s)

    def abandon(self, numbers: Iterable[int]) -> None:
        with suppress(SimulationStuck):  # closed, and all is forgotten
            self._begin(self.simulator.abandon, list(numbers))  # nobody need wait for that

    def move(self, placement: Placement) -> int:
        return self._ask(self.simulator.move, placement)

    def poll(self) -> None:
        self._ask(self.simulator.poll)

    def wait(self, seconds: float) -> None:
        self._ask(self.simulator.wait, seconds)

    def inject(self, fault: dict[str, Any], module: int | None) -> None:
        self._ask(self.simulator.inject, fault, module)

    def take_notices(self) -> list[Notice]:
        return self._ask(self.simulator.take_notices)

    def record(self) -> np.ndarray:
        return self._ask(self.simulator.record)

    def _ask(self, work: Callable[..., Any], *given: Any) -> Any:
        return self._end(self._begin(work, *given))

    def _begin(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        try:
            return self._thread.submit(denormals_kept()(work), *given)
        except RuntimeError:  # it takes no more work
            raise SimulationStuck(CLOSED) from None

    def _end(self, asked: Future[Any]) -> Any:
        try:
            return asked.result()
        except CancelledError:
            raise SimulationStuck(CLOSED) from None

    def _forget(self, asked: Future[int]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self.abandon([asked.result()])

    def close(self) -> None:
        self.simulator.close()
        self._thread.shutdown(cancel_futures=True)

    # What is only read needs no turn, and can be had after the end.
    def moved(self, number: int) -> Moved | None:
        return self.simulator.moved(number)

    @property
    def placement(self) -> Placement:
        return self.simulator.placement

    @property
    def epochs(self) -> Mapping[int, Epoch]:
        return self.simulator.client.epochs

    @property
    def now(self) -> float:
        return self.simulator.now

    @property
    def totals(self) -> dict[str, Any]:
        return self.simulator.totals

    @property
    def pids(self) -> dict[int, tuple[int, str]]:
        return self.simulator.pids

    @property
    def duplicate_results(self) -> int:
        return self.simulator.duplicate_results
