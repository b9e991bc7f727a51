"""Heartbeats between processes of one machine: numbers in shared memory instead of frames.

A frame wakes four threads on its way; at fifty beats a second and eight modules that took a tenth of two
cores. Writing a few numbers costs next to nothing, and the coordinator reads all of them at once.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from rayemu.machine import usable_cores
from rayemu.protocol.config import TOTALS
from rayemu.protocol.memory import open_with_room

_SLOT = struct.Struct(f"=qqd{len(TOTALS)}d")
_LOOK_AFTER = 0.25  # of an interval: all modules beat at its multiples, and are looked at this much later
_PIDFD_THREAD = os.O_EXCL  # Linux 6.9: the descriptor tells of one thread's end


class Pulses:
    """One slot per module in a file that all map.

    Its last beat is (incarnation, epoch of the view that it has, time.monotonic()), all 0 before the first.
    That clock is the machine's, so its values can be compared between processes.
    """

    def __init__(self, directory: str, modules: int) -> None:
        descriptor = open_with_room(Path(directory) / "pulses", modules * _SLOT.size)
        try:
            self._map = mmap.mmap(descriptor, modules * _SLOT.size)
        finally:
            os.close(descriptor)

    def beat(self, module: int, incarnation: int, epoch: int, totals: Mapping[str, float]) -> None:
        """Say that this module lives, and what it has done so far."""
        counts = [totals[name] for name in TOTALS]
        _SLOT.pack_into(self._map, module * _SLOT.size, incarnation, epoch, time.monotonic(), *counts)

    def read(self) -> list[tuple[int, int, float]]:
        """Return the last beat of every module."""
        return [slot[:3] for slot in _SLOT.iter_unpack(self._map[:])]  # type: ignore[misc]

    def totals(self, module: int) -> dict[str, float]:
        """Return what a module had done by its last beat."""
        return dict(zip(TOTALS, _SLOT.unpack_from(self._map, module * _SLOT.size)[3:], strict=True))


def next_beat(now: float, interval: float) -> float:
    """When a module beats next. All do at once: a processor that wakes up anyway does it at little cost."""
    return (now // interval + 1) * interval


def next_look(now: float, interval: float) -> float:
    """When the beats are to be read next: a little after they are due."""
    return next_beat(now - _LOOK_AFTER * interval, interval) + _LOOK_AFTER * interval


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
    """Seconds since the start of the machine that a core was busy, on average over those that this process
    may use; 0 if that is unknown."""
    cores = usable_cores()
    ticks = counted = 0
    try:
        with open("/proc/stat", "rb") as file:
            for line in file:
                name, *fields = line.split()
                if not name.startswith(b"cpu"):
                    break
                if name[3:].isdigit() and int(name[3:]) in cores:
                    user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[:8])
                    ticks += user + nice + system + interrupts + soft + stolen
                    counted += 1
    except (OSError, ValueError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK") / max(1, counted)
