"""Clocks around the functions of the table of phases, in one process: what they took of the processor.

Not a sampler: its look at another thread comes when that lets go of the interpreter's lock, which is where
it begins to wait, and the processor time since the look before is that of something else (docs/profile.md
has figures). While a process is metered, each function of the table is replaced by one that reads the clock
of its thread before and after; a run that is not profiled has nothing of it. What was read is kept as a tree
of calls for each thread, and written to a file twice a second, so that it outlives the process.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from rayemu.profiling.phases import GARBAGE, TABLE, found

WRITE_EVERY_S = 0.5
NAME = "profiler"  # of the thread that writes
PREFIX = "profile-"  # of the files
_processor_s, _wall_s = time.thread_time, time.perf_counter

Route = tuple[str, ...]  # functions from the outermost in


@dataclass
class Calls:
    """Calls of a function by one path; seconds are with what it called."""

    calls: int = 0
    processor_s: float = 0.0
    wall_s: float = 0.0
    inside: dict[str, Calls] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Metered:
    """What one process has done so far: of each thread name, the kernel's number, and its tree of calls."""

    process: str
    pid: int
    call_s: float  # processor seconds that a meter takes for one call
    threads: list[tuple[str, int, Calls]]
    machine: str = ""


class Meters:
    """Meters the process that it is in, from now until `stop`, into a file in a run's directory."""

    def __init__(self, directory: str | Path, name: str, process: str) -> None:
        self.path, self.process = Path(directory) / f"{PREFIX}{name}", process
        self._local = threading.local()
        self._threads: list[tuple[str, int, Calls]] = []
        self._replaced: list[tuple[Any, str, Any]] = []
        self._originals: dict[Callable[..., Any], Callable[..., Any]] = {}  # by meter
        self._over = threading.Event()
        self.call_s = self._cost()
        for _, names in TABLE:
            for each in names:
                if each.partition(":")[0] in sys.modules:  # what is not imported here is not run here
                    self._meter(each)
        gc.callbacks.append(self._on_garbage)
        self._write()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Put the functions back."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._on_garbage)
        for owner, name, original in self._replaced:
            setattr(owner, name, original)
        # What was imported meanwhile took the meters for the functions.
        for module in _ours():
            for name, value in list(vars(module).items()):
                if isinstance(value, FunctionType) and value in self._originals:
                    setattr(module, name, self._originals[value])

    # -- reading clocks ---------------------------------------------------------------------------------
    def _meter(self, name: str) -> None:
        """Put a meter in place of a function, wherever it was imported to."""
        owner, attribute, function = found(name)
        metered = self._metered(function, name)
        self._originals[metered] = function
        owners = [owner]
        if inspect.ismodule(owner):
            owners = [m for m in _ours() if vars(m).get(attribute) is function]
        for each in owners:
            self._replaced.append((each, attribute, function))
            setattr(each, attribute, metered)

    def _metered(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        local, enter = self._local, self._enter

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            try:
                above = local.at
            except AttributeError:
                above = enter()
            here = above.inside.get(name)
            if here is None:
                here = above.inside[name] = Calls()
            local.at = here
            began_s, began = _wall_s(), _processor_s()
            try:
                return function(*args, **keywords)
            finally:
                here.processor_s += _processor_s() - began
                here.wall_s += _wall_s() - began_s
                here.calls += 1
                local.at = above

        return call

    def _enter(self) -> Calls:
        """Begin the tree of a thread that is new."""
        top = self._local.at = Calls()
        self._threads.append((threading.current_thread().name, threading.get_native_id(), top))
        return top

    def _on_garbage(self, phase: str, facts: dict[str, int]) -> None:
        """Python calls this in the thread that collects, before and after."""
        local = self._local
        if phase == "start":
            above = getattr(local, "at", None) or self._enter()
            here = above.inside.setdefault(GARBAGE, Calls())
            local.garbage, local.at = (above, _wall_s(), _processor_s()), here
        elif hasattr(local, "garbage"):
            above, began_s, began = local.garbage
            local.at.processor_s += _processor_s() - began
            local.at.wall_s += _wall_s() - began_s
            local.at.calls += 1
            local.at = above

    def _cost(self, calls: int = 2000) -> float:
        """What a meter takes for a call, with the call of a function that does nothing."""

        def nothing() -> None:
            pass

        metered = self._metered(nothing, "")
        began = _processor_s()
        for _ in range(calls):
            metered()
        took_s = (_processor_s() - began) / calls
        del self._local.at
        self._threads.clear()
        return took_s

    # -- telling it -------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._over.wait(WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        threads = [(name, number, _plain(top)) for name, number, top in list(self._threads)]
        told = {number for _, number, _ in threads}
        others = [t for t in threading.enumerate() if t.native_id and t.native_id not in told]
        threads += [(t.name, t.native_id or 0, _plain(Calls())) for t in others]
        content = {"process": self.process, "pid": os.getpid(), "call_s": self.call_s, "threads": threads}
        part = self.path.with_name(f".{self.path.name}")
        with contextlib.suppress(OSError):  # a full disk, or the end of the run
            part.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
            part.replace(self.path)


def _ours() -> list[ModuleType]:
    """The project's modules that are imported."""
    return [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "rayemu"]


def _plain(node: Calls) -> list[Any]:
    inside = {name: _plain(below) for name, below in list(node.inside.items())}
    return [node.calls, node.processor_s, node.wall_s, inside]


def _calls(plain: list[Any]) -> Calls:
    calls, processor_s, wall_s, inside = plain
    return Calls(calls, processor_s, wall_s, {name: _calls(below) for name, below in inside.items()})


def read_meters(directory: str | Path) -> list[Metered]:
    """Read what the meters of a run have written on this machine."""
    read = []
    for path in sorted(Path(directory).glob(f"{PREFIX}*")):
        content = json.loads(path.read_text(encoding="utf-8"))
        threads = [(name, number, _calls(top)) for name, number, top in content.pop("threads")]
        read.append(Metered(threads=threads, **content))
    return read


def paths(top: Calls, above: Route = ()) -> Iterator[tuple[Route, int, float, float]]:
    """Every path of calls below a node: its calls, processor and wall seconds without what it called.

    A call that is under way may have told less than what it called: it counts as nothing until it ends.
    """
    for name, node in top.inside.items():
        path = (*above, name)
        below = node.inside.values()
        own = node.processor_s - sum(b.processor_s for b in below)
        own_wall = node.wall_s - sum(b.wall_s for b in below)
        yield path, node.calls, max(0.0, own), max(0.0, own_wall)
        yield from paths(node, path)
