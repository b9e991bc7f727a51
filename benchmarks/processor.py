"""Processor time of processes, by what they are. In seconds; Linux alone tells it of others' processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayemu.profiling.processes import descendants, process_seconds

AVAILABLE = sys.platform == "linux"
UNAVAILABLE = "processor time of other processes is told on Linux alone"


def role(pid: int) -> str:
    """What a process of a cluster is: "modules", "coordinator" or "ray"; by the name that Ray gives it."""
    try:
        title = Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return "ray"
    if title.startswith(b"ray::Coordinator"):
        return "coordinator"
    return "modules" if title.startswith((b"ray::Module", b"ray::PlainModule")) else "ray"


class Meter:
    """Measures this process and all that descend from it, but for those in `apart`.

    What a process used that begins and ends within a window is not counted, and where one ends that was there
    before, there is no figure; so clusters are to be warm. Processes on other machines are not seen.
    """

    def __init__(self, apart: Collection[int] = ()) -> None:
        self.me, self.apart = os.getpid(), set(apart)
        self.roles: dict[int, str] = {}
        self.used: dict[str, float] | None = None

    @contextmanager
    def window(self) -> Iterator[None]:
        """Measure what is used within: `used` says it afterwards, in seconds by role; None if unknown."""
        self.used = None
        if not AVAILABLE:
            yield
            return
        before = self._others()
        own = time.process_time()  # last, and first again: looking at the others is not counted
        yield
        own = time.process_time() - own
        after = self._others()
        if before.keys() <= after.keys():
            self.used = {"driver": own}
            for pid, seconds in after.items():
                what = self.roles[pid]
                self.used[what] = self.used.get(what, 0.0) + seconds - before.get(pid, 0.0)

    def _others(self) -> dict[int, float]:
        """What each other process has used so far."""
        found = {}
        for pid in descendants(self.me) - self.apart:
            self.roles[pid] = self.roles.get(pid) or role(pid)
            with suppress(OSError):  # it has ended, or its end waits to be seen
                found[pid] = process_seconds(pid)
        return found
