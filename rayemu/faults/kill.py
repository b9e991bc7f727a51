"""A module's process ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayemu.faults.fault import Fault, Process


@dataclass(frozen=True)
class Kill(Fault):
    """SIGKILL of a module."""

    of_module: ClassVar[bool] = True
    lasts: ClassVar[bool] = False

    def strike(self, process: Process, seconds: float) -> None:
        """End the process."""
        process.kill()
