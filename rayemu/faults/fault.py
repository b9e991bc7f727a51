"""What a fault is: at which points of a run it acts, and what it does there.

A kind is a frozen dataclass of its parameters in a file of its own, listed in `FAULTS`. Whoever drives a
state machine, the running cluster and the simulator alike, asks the faults that are under way at fixed
points: when a process is struck, a frame sent, a job computed. A kind says which of them concern it by
overriding them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol

import numpy as np

SECONDS = {"unit": "s"}  # the metadata of a parameter that is a time


def refused(name: str, value: object, allowed: str) -> ValueError:
    """The error of a parameter that cannot work."""
    shown = repr(value).removesuffix(".0")
    return ValueError(f"{name}: {shown} is not allowed; allowed: {allowed}")


class Process(Protocol):
    """A module's process, as a fault strikes it."""

    def kill(self) -> None:
        """End it at once, as SIGKILL does."""

    def stop(self, seconds: float) -> None:
        """Let it do nothing for so long, as between SIGSTOP and SIGCONT."""


@dataclass(slots=True)
class Sending:
    """A frame on its way to an address, and what becomes of it."""

    frame: list[np.ndarray]  # in pieces
    shared: bool  # every second piece lies in shared memory, and is not on its way
    delays: list[float] = field(default_factory=lambda: [0.0])  # seconds, of each copy; none: it is lost


@dataclass(frozen=True)
class Fault:
    """A kind of fault. It does nothing at the points that it does not override.

    Parameters are finite numbers with defaults; a kind refuses those that cannot work, by their names.
    """

    of_module: ClassVar[bool] = False  # it happens to one module, which must be named; else to all, or one
    lasts: ClassVar[bool] = True  # it acts for a while: `for`, by default until the end of the run

    def __post_init__(self) -> None:
        for name in self.parameters():
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise refused(name, value, "a finite number")

    @classmethod
    def parameters(cls) -> dict[str, str]:
        """Its parameters, and what reports call them: `delay` is `delay_s`, of a number alone its name."""
        units = {one.name: one.metadata.get("unit") for one in fields(cls)}
        return {name: f"{name}_{unit}" if unit else name for name, unit in units.items()}

    @classmethod
    def strikes(cls) -> bool:
        """Whether it does anything to the module's process."""
        return cls.strike is not Fault.strike

    def strike(self, process: Process, seconds: float) -> None:
        """What it does to the module's process as it begins, for so long."""

    def on_send(self, sending: Sending, rng: np.random.Generator) -> bool:
        """What it does to a frame that is sent; whether it did anything."""
        return False

    def slowness(self) -> float:
        """How many times as long a job takes."""
        return 1.0
