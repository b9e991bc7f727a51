"""What a run's processes used, put together from samples and from what the kernel counted.

Processor seconds throughout, the profiler's own left out. Of processes that were not there at both ends (a module
that died or came) what the kernel says of them counts from nothing, or is not known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rayemu.profiling.phases import OTHER, PRODUCTS, phase_finder
from rayemu.profiling.processes import RAY, Thread, Used
from rayemu.profiling.sampler import NAME, Samples

SHOWN_OTHERS = 8
_ROLES = {"coordinator": "coordinator", "driver": "driver", RAY: RAY}
MAIN = "loop"
BLAS, ZEROMQ, RAYS_OWN = "BLAS", "ZeroMQ", "Ray's own"


@dataclass(frozen=True)
class Window:
    """What was measured: Unix times, and how many batches of how many layers were begun and ended between."""

    begin_s: float
    end_s: float
    batches: int
    layers: int


def role_of(process: str) -> str:
    """What kind of process it is: modules, coordinator, driver or Ray."""
    return _ROLES.get(process, "modules")


def account(
    before: Sequence[Used], after: Sequence[Used], samples: Sequence[Samples], window: Window
) -> dict[str, Any]:
    """All figures of processor time, as plain data."""
    by_pid = {(s.machine, s.pid): s for s in samples}
    processes: dict[str, dict[str, Any]] = {}
    groups: dict[str, Counter[str]] = defaultdict(Counter)  # role -> thread -> seconds
    ready: dict[str, Counter[str]] = defaultdict(Counter)
    native: Counter[str] = Counter()  # process -> seconds of threads that run no Python
    profiler_s = 0.0
    then = {(used.machine, used.pid): used for used in before}
    for used in after:
        was = then.get((used.machine, used.pid))
        threads, waits = _threads(used, was, by_pid.get((used.machine, used.pid)))
        own = threads.pop(NAME, 0.0)
        waits.pop(NAME, None)
        profiler_s += own
        total = used.processor_s - (was.processor_s if was is not None else 0.0) - own
        entry = processes.setdefault(used.process, {"processor_s": 0.0, "threads": Counter()})
        entry["processor_s"] += total
        entry["threads"].update(threads)
        groups[role_of(used.process)].update(threads)
        ready[role_of(used.process)].update(waits)
        native[used.process] += sum(s for name, s in threads.items() if name in (BLAS, ZEROMQ, RAYS_OWN))
    seen = _sampled(samples, window)
    total_s = sum(entry["processor_s"] for entry in processes.values())
    phases = seen["phases"]
    blas_s = sum(threads[BLAS] for threads in groups.values())
    products_s = phases["all"][PRODUCTS] + blas_s
    python_s = sum(e["processor_s"] - native[name] for name, e in processes.items() if name != RAY)
    sampled_s = sum(phases["all"].values())
    for entry in processes.values():
        entry["threads"] = _ordered(entry["threads"])
    return {
        "window_wall_s": window.end_s - window.begin_s,
        "batches": window.batches,
        "layers": window.layers,
        "weights": "wall" if any(s.weights == "wall" for s in samples) else "processor",
        "processor_s": total_s,
        "products_s": products_s,
        "processor_to_products": total_s / products_s if products_s and total_s else None,
        "sampled_to_counted": sampled_s / python_s if python_s else None,
        "profiler_s": profiler_s,
        "looks": seen["looks"],
        "processes": processes,
        "threads": {
            role: {
                name: {"processor_s": s, "ready_wall_s": ready[role][name]}
                for name, s in _ordered(of).items()
            }
            for role, of in groups.items()
        },
        "phases": {role: _ordered(of) for role, of in phases.items()},
        "blas_threads_s": blas_s,
        "waiting_wall_s": seen["waiting"],
        "other": seen["other"],
    }


def _ordered(counts: Counter[str]) -> dict[str, float]:
    return dict(counts.most_common())


def _threads(used: Used, was: Used | None, samples: Samples | None) -> tuple[Counter[str], Counter[str]]:
    """Seconds at work, and ready without a core, of a process's threads by their names."""
    work: Counter[str] = Counter()
    ready: Counter[str] = Counter()
    python = {} if samples is None else {tid: name for name, tid in samples.threads.values()}
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
        return _without_number(python[tid])
    if thread.name == NAME:
        return NAME
    if thread.name.startswith("ZMQ"):
        return ZEROMQ
    nameless = thread.name.startswith(("ray::", "python")) or (main is not None and thread.name == main.name)
    return BLAS if nameless else RAYS_OWN


def _without_number(name: str) -> str:
    """Threads of a pool, and those that watch modules, are one kind each."""
    return name.rstrip("0123456789.-_ ") or name if name[-1:].isdigit() else name


def _sampled(samples: Iterable[Samples], window: Window) -> dict[str, Any]:
    """What the samplers saw in the window: phases by role, waits by thread, and what has no phase."""
    find = phase_finder()
    phases: dict[str, Counter[str]] = defaultdict(Counter)
    waiting: Counter[str] = Counter()
    other: Counter[str] = Counter()
    looks = 0
    for of in samples:
        role = role_of(of.process)
        named = [find(of.frames[frame] for frame in stack) for stack in of.stacks]
        words = [_in_words(of, stack) for stack in of.stacks]
        times = set()
        for at, thread, stack, used_s, passed_s in of.rows:
            if not window.begin_s <= at <= window.end_s:
                continue
            times.add(at)
            phases[role][named[stack]] += used_s
            if named[stack] == OTHER:
                other[words[stack]] += used_s
            if not used_s:
                name = of.threads.get(thread, ("", 0))[0]
                name = MAIN if name == "MainThread" else _without_number(name)
                waiting[f"{role}: {name} in {words[stack]}"] += passed_s
        looks += len(times)
    phases["all"] = sum(phases.values(), Counter())
    return {
        "phases": phases,
        "waiting": dict(waiting.most_common(SHOWN_OTHERS)),
        "other": dict(other.most_common(SHOWN_OTHERS)),
        "looks": looks,
    }


def _in_words(samples: Samples, stack: Sequence[int]) -> str:
    """The innermost function of ours on a stack, and what it was in; else the innermost of all."""
    frames = [samples.frames[frame] for frame in stack]
    ours = next((i for i, frame in enumerate(frames) if frame[0].startswith("rayemu")), 0)
    name = ":".join(frames[ours][:2])
    return name if not ours or frames[0][0].startswith("rayemu") else f"{name} ({frames[0][1]})"
