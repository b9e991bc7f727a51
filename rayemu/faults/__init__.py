"""Faults: what can go wrong in a run, one kind to a file, and where each acts."""

from rayemu.faults.active import ActiveFaults
from rayemu.faults.corrupt import Corrupt
from rayemu.faults.delay import Delay
from rayemu.faults.drop import Drop
from rayemu.faults.duplicate import Duplicate
from rayemu.faults.fault import Fault, Process, Sending
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

__all__ = [
    "FAULTS",
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
]
