"""What a run's processes used, put together from meters and from what the kernel counted.

Processor seconds throughout, without the thread that writes what the meters read. A process that was not
there at the window's begin counts from nothing; of one that is gone at its end nothing is known.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayemu.profiling.meters import NAME, Calls, Metered, Route, paths
from rayemu.profiling.phases import OTHER, PRODUCTS, THREADS, phase_of
from rayemu.profiling.processes import RAY, Thread, Used

SHOWN = 8  # of lists that go on and on
_ROLES = {"coordinator": "coordinator", "driver": "driver", RAY: RAY}
Seconds = defaultdict[str, float]
MAIN = "loop"
BLAS, ZEROMQ, RAYS_OWN = "BLAS", "ZeroMQ", "Ray's own"


@dataclass(frozen=True)
class Window:
    """What was measured: Unix times, and how many batches of how many layers were begun and ended between."""

    begin_s: float
    end_s: float
    batches: int
    layers: int


def stacks(
    times: tuple[Sequence[Used], Sequence[Used]], meters: tuple[Sequence[Metered], Sequence[Metered]]
) -> Iterator[tuple[str, str, Route, float]]:
    """Process, thread, path of calls and processor seconds; what is in no call of the table is `OTHER`."""
    left: dict[tuple[str, str], float] = {}
    names = {(m.machine, m.pid): m for m in meters[1]}
    then = {(used.machine, used.pid): used for used in times[0]}
    for used in times[1]:
        key = used.machine, used.pid
        for thread, seconds in _threads(used, then.get(key), names.get(key))[0].items():
            left[used.process, thread] = left.get((used.process, thread), 0.0) + seconds
    for process, thread, path, _, own_s, _ in _work(*meters):
        left[process, thread] = left.get((process, thread), 0.0) - own_s
        yield process, thread, path, own_s
    for (process, thread), seconds in left.items():
        yield process, thread, (f"{thread}: {OTHER}",), seconds


def role_of(process: str) -> str:
    """What kind of process it is: modules, coordinator, driver or Ray."""
    return _ROLES.get(process, "modules")


def account(
    times: tuple[Sequence[Used], Sequence[Used]],
    meters: tuple[Sequence[Metered], Sequence[Metered]],
    window: Window,
) -> dict[str, Any]:
    """All figures of processor time, as plain data, from what was known at the window's begin and end."""
    before, after = times
    names = {(m.machine, m.pid): m for m in meters[1]}
    then = {(used.machine, used.pid): used for used in before}
    processes: dict[str, dict[str, Any]] = {}
    threads: dict[str, Seconds] = defaultdict(_none)  # role -> thread -> seconds
    ready: dict[str, Seconds] = defaultdict(_none)
    for used in after:
        key = used.machine, used.pid
        work, waits = _threads(used, then.get(key), names.get(key))
        was_s = then[key].processor_s if key in then else 0.0
        entry = processes.setdefault(used.process, {"processor_s": 0.0, "threads": _none()})
        entry["processor_s"] += used.processor_s - was_s - work[NAME]
        _add(entry["threads"], work)
        _add(threads[role_of(used.process)], work)
        _add(ready[role_of(used.process)], waits)
    phases: dict[str, Seconds] = defaultdict(_none)
    off = _none()
    functions: dict[tuple[str, str], list[float]] = {}
    metered: dict[str, Seconds] = defaultdict(_none)  # role -> thread -> seconds
    calls_s, call_s = 0.0, {m.process: m.call_s for m in meters[1]}
    for process, thread, path, calls, own_s, wall_s in _work(*meters):
        role, phase = role_of(process), phase_of(path)
        phases[role][phase] += own_s
        metered[role][thread] += own_s
        off[f"{role}: {thread} in {path[-1]}"] += max(0.0, wall_s - own_s)
        own = functions.setdefault((path[-1], phase), [0, 0.0])
        own[0] += calls
        own[1] += own_s
        calls_s += calls * call_s[process]
    other = _none()
    for role, of in threads.items():
        for thread, seconds in of.items():
            if thread in (NAME, RAYS_OWN, ZEROMQ):
                continue
            multiplies = thread == BLAS and role == "modules"
            phase = PRODUCTS if multiplies else THREADS.get(thread, OTHER)
            rest = max(0.0, seconds - metered[role][thread])
            phases[role][phase] += rest
            if phase == OTHER:
                other[f"{role}: {thread}"] += rest
    for role, of in threads.items():
        for thread in (ZEROMQ, RAYS_OWN):
            if of[thread]:
                phases[role][thread] += of[thread]
    for of in list(phases.values()):
        _add(phases["all"], of)
    total_s = sum(entry["processor_s"] for entry in processes.values())
    products_s = phases["all"][PRODUCTS]
    for entry in processes.values():
        entry["threads"] = _ordered(entry["threads"])
    return {
        "window_wall_s": window.end_s - window.begin_s,
        "batches": window.batches,
        "layers": window.layers,
        "processor_s": total_s,
        "processor_to_products": total_s / products_s if products_s and total_s else None,
        "phases_to_processes": sum(phases["all"].values()) / total_s if total_s else None,
        "meters_s": calls_s,
        "profiler_thread_s": sum(of[NAME] for of in threads.values()),
        "processes": processes,
        "threads": {
            role: {
                name: {"processor_s": s, "ready_wall_s": ready[role][name]}
                for name, s in _ordered(of).items()
            }
            for role, of in threads.items()
        },
        "phases": {role: _ordered(of) for role, of in phases.items()},
        "off_processor_wall_s": dict(list(_ordered(off).items())[:SHOWN]),
        "other": _ordered(other),
        "functions": [
            {"function": name, "phase": phase, "calls": calls, "own_processor_s": own_s}
            for (name, phase), (calls, own_s) in sorted(functions.items(), key=lambda item: -item[1][1])
        ],
    }


def _none() -> Seconds:
    return defaultdict(float)


def _add(to: Seconds, more: Mapping[str, float]) -> None:
    for name, seconds in more.items():
        to[name] += seconds


def _ordered(counts: Mapping[str, float]) -> dict[str, float]:
    """From the largest; what took nothing is left out."""
    return {name: s for name, s in sorted(counts.items(), key=lambda item: -item[1]) if s > 0}


def _threads(used: Used, was: Used | None, metered: Metered | None) -> tuple[Seconds, Seconds]:
    """Seconds at work, and ready without a core, of a process's threads by their names."""
    work = _none()
    ready = _none()
    python = {} if metered is None else {tid: name for name, tid, _ in metered.threads}
    main = used.threads.get(used.pid)
    for tid, thread in used.threads.items():
        name = RAYS_OWN if used.process == RAY else _name(tid, thread, used.pid, python, main)
        before = was.threads.get(tid) if was is not None else None
        work[name] += thread.processor_s - (before.processor_s if before else 0.0)
        ready[name] += thread.ready_s - (before.ready_s if before else 0.0)
    return work, ready


def _name(tid: int, thread: Thread, pid: int, python: dict[int, str], main: Thread | None) -> str:
    """What people call a thread. Threads that nobody named have the name of the one that made them."""
    if tid == pid:
        return MAIN
    if tid in python:
        return _plain(python[tid])
    if thread.name.startswith("ZMQ"):
        return ZEROMQ
    nameless = thread.name.startswith(("ray::", "python")) or (main is not None and thread.name == main.name)
    return BLAS if nameless else RAYS_OWN


def _plain(name: str) -> str:
    """The kind of a Python thread by its name: those of a pool, say, differ in a number."""
    if name == "MainThread":
        return MAIN
    if name.startswith(("PythonGCThread", "ray")) and not name.startswith("rayemu"):
        return RAYS_OWN
    target = re.fullmatch(r"Thread-\d+ \(_*(.*)\)", name)
    return target[1] if target else re.sub(r"[-_.\d]+$", "", name) or name


def _work(
    before: Sequence[Metered], after: Sequence[Metered]
) -> Iterator[tuple[str, str, Route, int, float, float]]:
    """What was done in between: process, thread, path of calls, calls, own processor and wall seconds."""
    then = {(m.machine, m.pid): {number: dict(_told(top)) for _, number, top in m.threads} for m in before}
    for m in after:
        was = then.get((m.machine, m.pid), {})
        for name, number, top in m.threads:
            old = was.get(number, {})
            for path, (calls, own_s, wall_s) in _told(top):
                calls0, own0_s, wall0_s = old.get(path, (0, 0.0, 0.0))
                if calls > calls0:
                    yield m.process, _plain(name), path, calls - calls0, own_s - own0_s, wall_s - wall0_s


def _told(top: Calls) -> Iterator[tuple[Route, tuple[int, float, float]]]:
    return ((path, figures) for path, *figures in paths(top))  # type: ignore[misc]
