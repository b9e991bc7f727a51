"""Checks whether this machine can run an emulation, and says what to do where it cannot.

Each check returns a `Finding`; none raises. `rayemu doctor` prints them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayemu import machine
from rayemu.cluster.directory import path_fault, room_fault, temporary_directory
from rayemu.cluster.host import loopback_fault, processes_in
from rayemu.cluster.turns import close_turns
from rayemu.units import format_bytes, format_seconds

OK, WARNING, WRONG = "ok", "warning", "wrong"
SHARED_MEMORY_BYTES = 192 << 20  # what a local Ray of ours takes, with some room
RUN_DIRECTORY = re.compile(r"rayemu-[0-9a-f]{8}")
OPEN_FILES = 1024
ORPHAN_AFTER_S = 3600.0  # age of a directory without a note of its owner


@dataclass(frozen=True)
class Finding:
    """What a check found; `remedy` says what to do about it."""

    name: str
    state: str  # ok | warning | wrong
    text: str
    remedy: str = ""


def examine(fix: bool = False, with_ray: bool = True) -> Iterator[Finding]:
    """All findings, one by one as they are made; with `fix`, stale directories are removed."""
    yield check_python()
    yield check_cores()
    yield check_memory()
    yield check_shared_memory(Path("/dev/shm"))
    yield check_temporary_directory(temporary_directory())
    yield check_niceness(os.getpriority(os.PRIO_PROCESS, 0))
    yield check_open_files()
    yield check_ports()
    yield check_blas()
    yield check_stale_directories(temporary_directory(), fix)
    if with_ray:
        yield check_ray()


def check_python() -> Finding:
    """The interpreter, and that everything that is needed is installed."""
    here = f"Python {platform.python_version()} on {platform.platform()}"
    missing = [name for name in machine.PACKAGES if machine.package_version(name) is None]
    if missing:
        text = f"{here}; not installed: {', '.join(missing)}"
        return Finding("python", WRONG, text, "install rayemu again")
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        return Finding("python", WARNING, here, "rayemu is tested with Python 3.10 to 3.14")
    return Finding("python", OK, f"{here}, Ray {machine.package_version('ray')}")


def check_cores() -> Finding:
    """Cores that this process may use."""
    cores = machine.cores()
    if cores < 2:
        return Finding("cores", WARNING, f"{cores} core", "modules will take turns; expect late heartbeats")
    return Finding("cores", OK, f"{cores} cores")


def check_memory() -> Finding:
    """Memory that is left."""
    free = machine.available_bytes()
    if free is None:
        return Finding("memory", OK, "free memory is not known on this system")
    if free < 2 << 30:
        remedy = "a module's process takes about 150 MiB"
        return Finding("memory", WARNING, f"{format_bytes(free)} free", remedy)
    return Finding("memory", OK, f"{format_bytes(free)} free")


def check_shared_memory(path: Path) -> Finding:
    """Room for Ray's object store in shared memory."""
    if not path.is_dir():
        return Finding("shared memory", OK, f"no {path} on this system; Ray uses files instead")
    usage = shutil.disk_usage(path)
    text = f"{format_bytes(usage.free)} of {format_bytes(usage.total)} free in {path}"
    if usage.free < SHARED_MEMORY_BYTES:
        needed = f"{format_bytes(SHARED_MEMORY_BYTES)} are needed; in a container, give it --shm-size=1g"
        return Finding("shared memory", WRONG, text, needed)
    return Finding("shared memory", OK, text)


def check_temporary_directory(path: Path) -> Finding:
    """Where sockets and records go: writable, with room, and a path that sockets and Ray can take."""
    if fault := path_fault(path, with_ray=True):
        return Finding("temporary files", WRONG, fault, "set TMPDIR to a short, plain path, like /tmp")
    try:
        with tempfile.TemporaryDirectory(dir=path):
            fault, free = room_fault(path), shutil.disk_usage(path).free
    except OSError as error:
        text = f"{path}: {error.strerror}"
        return Finding("temporary files", WRONG, text, "set TMPDIR to a writable directory")
    if fault:
        return Finding("temporary files", WRONG, fault, "set TMPDIR to a directory with more room")
    text = f"{format_bytes(free)} free in {path}"
    if free < 1 << 30:
        return Finding("temporary files", WARNING, text, "Ray complains when it fills up")
    return Finding("temporary files", OK, text)


def check_niceness(nice: int) -> Finding:
    """A module at a low priority answers its heartbeats late."""
    if nice > 0:
        remedy = "late heartbeats look like hangs; start it without nice, or raise cluster.suspect_after"
        return Finding("niceness", WARNING, f"this process runs at nice {nice}", remedy)
    return Finding("niceness", OK, f"nice {nice}")


def check_open_files() -> Finding:
    """Open files that a process may have: sockets of modules and Ray count."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        return Finding("open files", WARNING, f"{shown} per process", f"ulimit -n {min(hard, 65536)}")
    return Finding("open files", OK, f"{shown} per process")


def check_ports() -> Finding:
    """TCP on this machine: Ray's own processes talk over it."""
    if fault := loopback_fault():
        remedy = (
            "bring the loopback interface up (`ip link set lo up`); a firewall or sandbox may be in the way"
        )
        return Finding("ports", WRONG, fault, remedy)
    return Finding("ports", OK, "TCP ports on 127.0.0.1 can be opened and reached")


def check_blas() -> Finding:
    """In which way products are made whose rows do not depend on their neighbours, and what that costs."""
    from rayemu.numerics import ByElement, cost, kernels, way

    text = f"{kernels()}: rows are independent of each other to the bit, by {way().name}; a product takes "
    text += f"{cost():.2f} times as long as a plain one"
    if isinstance(way(), ByElement):
        remedy = "nothing quicker is exact with this BLAS; install NumPy from PyPI, which brings OpenBLAS"
        return Finding("BLAS", WARNING, text, remedy)
    return Finding("BLAS", OK, text)


def check_stale_directories(temporary: Path, fix: bool) -> Finding:
    """What runs that were killed left behind: rayemu-* directories whose owner is dead."""
    stale = sorted(d for d in temporary.glob("rayemu-*") if RUN_DIRECTORY.fullmatch(d.name) and is_stale(d))
    if not stale:
        return Finding("left-overs", OK, f"no directories of dead runs in {temporary}")
    listed = ", ".join(d.name for d in stale)
    if not fix:
        text = f"of dead runs, in {temporary}: {listed}"
        return Finding("left-overs", WRONG, text, "rayemu doctor --fix removes them")
    for directory in stale:
        close_turns(directory)
        shutil.rmtree(directory, ignore_errors=True)
    left = ", ".join(d.name for d in stale if d.exists())
    if left:
        text = f"could not remove, in {temporary}: {left}"
        return Finding("left-overs", WRONG, text, "remove them by hand")
    return Finding("left-overs", OK, f"removed from {temporary}: {listed}")


def is_stale(directory: Path) -> bool:
    """Whether a run's directory has outlived its run: its owner is dead, and no process works in it.

    Ray's processes do, and need a moment to end with their run.
    """
    try:
        if directory.stat().st_uid != os.getuid():
            return False
        owner = int((directory / "owner").read_text())
    except FileNotFoundError:  # of a run that was started on another machine
        owner = 0
        if time.time() - directory.stat().st_mtime < ORPHAN_AFTER_S:
            return False
    except (OSError, ValueError):
        return False
    return directory.is_dir() and not (owner and _lives(owner)) and not processes_in(directory)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_ray(emulator: Callable[[Any], Any] | None = None) -> Finding:
    """Whether a small emulation starts on a local Ray, computes exactly, and ends; takes some seconds."""
    import numpy as np

    from rayemu.cluster.host import own_host
    from rayemu.emulator import Emulator
    from rayemu.scenario import Scenario

    dimensions = {"d_model": 32, "d_ff": 64, "experts": 4, "top_k": 2}
    scenario = Scenario.from_dict(
        {"name": "doctor", "model": dimensions, "cluster": {"nodes": 2, "modules_per_node": 1}}
    )
    where = "the Ray cluster of RAY_ADDRESS" if "RAY_ADDRESS" in os.environ else "a local Ray"
    began = time.monotonic()
    try:
        with (emulator or Emulator)(scenario) as running:
            started = time.monotonic() - began
            x = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
            exact = np.array_equal(running.forward(x), running.reference(x))
            local = [pid for pid, host in running.pids.values() if host == own_host()]
            nice = max((os.getpriority(os.PRIO_PROCESS, pid) for pid in local), default=0)
    except Exception as error:
        text = f"{where} did not run two modules: {' '.join(str(error).split())}"
        remedy = "look at the findings above; Ray's log is in its session directory, by default /tmp/ray"
        return Finding("Ray", WRONG, text, remedy)
    took = f"{where} had two modules ready in {format_seconds(started)}"
    if not exact:
        return Finding(
            "Ray", WRONG, f"{took}, but their output was not exact", "please report this as a fault"
        )
    if nice > 0:
        remedy = "set RAY_worker_niceness=0 for `ray start`"
        return Finding("Ray", WARNING, f"{took}; they run at nice {nice}", remedy)
    return Finding("Ray", OK, f"{took}; their output was exact")
