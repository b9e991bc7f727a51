"""A module's process stands still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayemu.faults.fault import Fault, Process


@dataclass(frozen=True)
class Hang(Fault):
    """SIGSTOP of a module, for a while or for good."""

    of_module: ClassVar[bool] = True

    def strike(self, process: Process, seconds: float) -> None:
        """Stop the process."""
        process.stop(seconds)
