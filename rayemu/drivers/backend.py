"""What an emulator needs of whatever runs its batches: a cluster's session, or the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from rayemu.placement import Placement
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Epoch, Moved, Notice


class Backend(Protocol):
    """Takes batches and gives their results by number. Any thread may call anything but `close`.

    An interrupt (KeyboardInterrupt) in one call leaves the others as they are.
    """

    def new_rows(self, rows: int, width: int) -> np.ndarray:
        """Memory for a batch [rows, width] float32."""

    def submit(self, x: np.ndarray) -> int:
        """Submit a batch x [T, D] float32, T > 0; return its number."""

    def result(self, number: int, timeout_s: float = ...) -> BatchResult:
        """Wait for a batch, whose result can be had once. Raises StalledError, TimeoutError, ClusterError."""

    def abandon(self, numbers: Iterable[int]) -> None:
        """Forget batches that nobody waits for any more."""

    def move(self, placement: Placement) -> int:
        """Have the experts brought to other slots while batches run; return the move's number."""

    def moved(self, number: int) -> Moved | None:
        """How far a move is, as last told; None before it is told at all."""

    @property
    def placement(self) -> Placement:
        """Where the experts are, also those that are on their way there or leave."""

    @property
    def epochs(self) -> Mapping[int, Epoch]:
        """The memberships by number, as far as they were heard of; only where batches are routed whole."""

    def poll(self) -> None:
        """Handle what has arrived, without waiting for a batch."""

    def wait(self, seconds: float) -> None:
        """Let time pass on the clock of batches. What arrives meanwhile is handled."""

    def inject(self, fault: dict[str, Any], module: int | None) -> None:
        """Begin a fault, told as `rayemu.faults.fault_of` reads it: at one module, or in every actor.

        ValueError for a kind that is none.
        """

    def take_notices(self) -> list[Notice]:
        """Return and forget what was reported."""

    def record(self) -> np.ndarray:
        """Return what the modules recorded so far."""

    def close(self) -> None:
        """Stop everything that was started. Safe to call twice."""

    @property
    def now(self) -> float:
        """The clock of batches and notices, in seconds."""

    @property
    def totals(self) -> dict[str, Any]:
        """Running totals per module, as last reported."""

    @property
    def pids(self) -> dict[int, tuple[int, str]]:
        """Process and host of each module."""

    @property
    def duplicate_results(self) -> int:
        """Slice results that came again and were not taken."""
