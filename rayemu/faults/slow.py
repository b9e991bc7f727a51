"""A module that computes slowly (fail-slow)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayemu.faults.fault import Fault, refused


@dataclass(frozen=True)
class Slow(Fault):
    """A module takes `factor` times as long to compute."""

    factor: float = 4.0
    of_module: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor <= 1:
            raise refused("factor", self.factor, "more than 1")

    def slowness(self) -> float:
        """How many times as long a job takes."""
        return self.factor
