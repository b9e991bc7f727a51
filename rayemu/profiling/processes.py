"""What the kernel says that processes and their threads have used (Linux; elsewhere nothing is known)."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from rayemu.profiling.meters import PREFIX

RAY = "Ray"  # all processes that are Ray's own


@dataclass(frozen=True)
class Thread:
    """One thread so far: processor seconds, and seconds in which it could have run but had no core."""

    name: str  # the kernel's
    processor_s: float
    ready_s: float


@dataclass(frozen=True)
class Used:
    """What one process has used so far; `process` is the meters' name for it, or `RAY`."""

    process: str
    pid: int
    processor_s: float
    threads: dict[int, Thread] = field(default_factory=dict)  # by the kernel's number
    machine: str = ""


def processor_times(directory: str | Path) -> list[Used]:
    """What the run in this directory has used so far on this machine: metered processes, and Ray's own.

    Ray's are those that the driver started, directly or not, and the one on this machine that started the
    actors (which may serve others, too).
    """
    ours = {}
    for path in sorted(Path(directory).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            header = json.load(file)
            ours[int(header["pid"])] = str(header["process"])
    parents = _parents()
    rays = {parents[pid] for pid, name in ours.items() if name != "driver" and parents.get(pid, 0) > 1}
    rays |= _descendants([pid for pid, name in ours.items() if name == "driver"], parents)
    wanted = {**{pid: RAY for pid in sorted(rays - set(ours))}, **ours}
    return [used for pid, name in wanted.items() if (used := _used(pid, name)) is not None]


def process_seconds(pid: int) -> float:
    """Processor time that all threads of a process have used, ended ones too, of its own clock (Linux).

    To the nanosecond; see clock_getcpuclockid(3): a process's number makes its clock's. OSError where there
    is no such process.
    """
    return time.clock_gettime(~pid << 3 | 2)


def descendants(*roots: int) -> set[int]:
    """All processes of this machine that descend from any of `roots`, without these."""
    return _descendants(roots, _parents())


def _parents() -> dict[int, int]:
    """The parent of each process of this machine."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (folder / "stat").read_bytes()
            found[int(folder.name)] = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return found


def _descendants(roots: Collection[int], parents: dict[int, int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    new = list(roots)
    while new:
        new = [child for pid in new for child in children.get(pid, ()) if child not in found]
        found.update(new)
    return found


def _used(pid: int, name: str) -> Used | None:
    """What a process has used; None where it has ended or nothing is known."""
    threads = {}
    for folder in Path(f"/proc/{pid}/task").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            used, ready, *_ = (folder / "schedstat").read_text().split()
            comm = (folder / "comm").read_text().strip()
            threads[int(folder.name)] = Thread(comm, int(used) * 1e-9, int(ready) * 1e-9)
    try:
        total = process_seconds(pid)
    except OSError:
        return None
    return Used(name, pid, total, threads) if os.path.isdir("/proc/self") else None
