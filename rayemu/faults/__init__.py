"""Faults: what can go wrong in a run, one kind to a file, and where each acts."""

from collections.abc import Mapping
from typing import Any

from rayemu.faults.active import ActiveFaults
from rayemu.faults.corrupt import Corrupt
from rayemu.faults.delay import Delay
from rayemu.faults.drop import Drop
from rayemu.faults.duplicate import Duplicate
from rayemu.faults.fault import Fault, Process, Sending, refused
from rayemu.faults.hang import Hang
from rayemu.faults.kill import Kill
from rayemu.faults.reorder import Reorder
from rayemu.faults.slow import Slow

FAULTS: dict[str, type[Fault]] = {
    "kill": Kill,
    "hang": Hang,
    "slow": Slow,
    "drop": Drop,
    "delay": Delay,
    "duplicate": Duplicate,
    "corrupt": Corrupt,
    "reorder": Reorder,
}

UNTIL_THE_END_S = 1e9  # how long a fault acts that is told no time

__all__ = [
    "FAULTS",
    "UNTIL_THE_END_S",
    "ActiveFaults",
    "Corrupt",
    "Delay",
    "Drop",
    "Duplicate",
    "Fault",
    "Hang",
    "Kill",
    "Process",
    "Reorder",
    "Sending",
    "Slow",
    "fault_of",
    "kind_of",
]


def kind_of(told: Mapping[str, Any]) -> type[Fault]:
    """The kind of a fault as a message tells it: {"kind": ..., "for": seconds, parameters}."""
    kind = told.get("kind")
    if not isinstance(kind, str) or kind not in FAULTS:
        raise ValueError(f"kind: {kind!r} is none; known: {', '.join(FAULTS)}")
    return FAULTS[kind]


def fault_of(told: Mapping[str, Any]) -> tuple[Fault, float]:
    """Make the fault that a message tells of; return it, and for how many seconds it acts.

    Raises ValueError, which names the field and its value, for a kind or a parameter that is none and for
    values that cannot work.
    """
    kind = kind_of(told)
    given = {name: value for name, value in told.items() if name not in ("kind", "for")}
    for name in given:
        if name not in kind.parameters():
            takes = ", ".join(["for", *kind.parameters()])
            raise ValueError(f"{name}: is not a parameter of {told['kind']}, which takes: {takes}")
    try:
        seconds = float(told.get("for", UNTIL_THE_END_S))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}; for: allowed: seconds, more than 0") from None
    if not seconds > 0:
        raise refused("for", seconds, "seconds, more than 0")
    return kind(**given), seconds
