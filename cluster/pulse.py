"""Heartbeats between processes of one machine: a number in shared memory instead of a frame.

A frame wakes four threads on its way; at fifty beats a second and eight modules that took a tenth of two
cores. Writing a clock value costs a store, and the coordinator reads all of them at once.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from pathlib import Path

_SLOT = struct.Struct("=qd")
_PIDFD_THREAD = os.O_EXCL  # Linux 6.9: the descriptor tells of one thread's end


class Pulses:
    """One slot per module: (incarnation, time.monotonic() of the last beat), in a file that all map.

    The clock is the machine's, so its values can be compared between processes.
    """

    def __init__(self, directory: str, modules: int) -> None:
        descriptor = os.open(Path(directory) / "pulses", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, modules * _SLOT.size)  # keeps what is there; new slots read as zero
        self._map = mmap.mmap(descriptor, modules * _SLOT.size)
        os.close(descriptor)

    def beat(self, module: int, incarnation: int) -> None:
        """Say that this module lives."""
        _SLOT.pack_into(self._map, module * _SLOT.size, incarnation, time.monotonic())

    def read(self) -> list[tuple[int, float]]:
        """Return (incarnation, time) of every module."""
        return list(_SLOT.iter_unpack(self._map[:]))


def wait_for_death(pid: int, thread: int) -> bool:
    """Wait until a process of this machine, or one of its threads, ends; False where that cannot be told.

    A killed process closes its sockets, and counts as ended, only after its memory is torn down: some 10 to
    40 ms for a module. A thread other than the main one ends at once.
    """
    if not hasattr(os, "pidfd_open"):
        return False
    try:
        try:
            descriptor = os.pidfd_open(thread, _PIDFD_THREAD)
        except ProcessLookupError:
            return True
        except OSError:  # an older kernel
            descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    finally:
        os.close(descriptor)
    return True


def process_state(pid: int) -> str:
    """Return the scheduler's letter for a process here: Z or X for dead, T for stopped, "" if unknown.

    The way to tell a stopped process from one that is late.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read(256)
    except FileNotFoundError:
        return "X" if os.path.isdir("/proc/self") else ""  # not Linux: the other signals must do
    except OSError:
        return ""
    return chr(stat[stat.rindex(b")") + 2])


def machine_busy_s() -> float:
    """Seconds since the start of the machine that a core of it was busy, on average; 0 if that is unknown."""
    try:
        with open("/proc/stat", "rb") as file:
            user, nice, system, _, _, interrupts, soft, stolen = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)
