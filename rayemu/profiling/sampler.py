"""Looks at a process's own threads some two hundred times a second: what they run, and what that took.

A thread of ours wakes up at uneven moments, takes the stack of every other Python thread, and weighs it with the
processor time that this thread has used since the last look. A look needs the interpreter's lock, so it
comes when a thread lets go of it: see docs/profile.md for what that bends. What was seen is written to a file
every quarter of a second, one JSON object a line, so that it outlives the process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

EVERY_S = 0.005  # between two looks, on average
WRITE_EVERY_S = 0.25
SWITCH_S = 0.0005  # how long a look waits before it asks for the lock; Python's own is 5 ms
NAME = "profiler"  # of the thread
PREFIX = "profile-"  # of the files
_GOLDEN = 0.618034  # a sequence of its multiples is even and has no period that others could share

Frame = tuple[str, str, str, int]  # module, function, file, first line
GARBAGE: Frame = ("gc", "collect", "", 0)


@dataclass(frozen=True, eq=False)
class Samples:
    """What a sampler saw of one process. Stacks are from the innermost function out."""

    process: str
    pid: int
    weights: str  # "processor", or "wall" where threads have no clocks
    frames: list[Frame] = field(default_factory=list)
    stacks: list[list[int]] = field(default_factory=list)  # places in `frames`
    threads: dict[int, tuple[str, int]] = field(default_factory=dict)  # number -> name, kernel's number
    # Unix time, thread's number, place in `stacks`, processor and wall seconds since the look before
    rows: list[tuple[float, int, int, float, float]] = field(default_factory=list)
    machine: str = ""


class Sampler:
    """Samples the process that it is in, from `start` to `stop`, into a file in a run's directory."""

    def __init__(self, directory: str | Path, name: str, process: str, every_s: float) -> None:
        self.every_s = every_s
        self._clocks = hasattr(time, "pthread_getcpuclockid")  # not on macOS
        self._file = open(Path(directory) / f"{PREFIX}{name}", "w", encoding="utf-8")  # noqa: SIM115
        weights = "processor" if self._clocks else "wall"
        self._put({"process": process, "pid": os.getpid(), "weights": weights})
        self._over = threading.Event()
        self._frames: dict[CodeType | None, int] = {}
        self._stacks: dict[tuple[CodeType | None, ...], int] = {}
        self._new: dict[str, Any] = {"frames": [], "stacks": [], "threads": {}, "rows": []}
        self._known: dict[int, tuple[int, float, float]] = {}  # thread -> its clock, and its last times
        self._garbage_s: dict[int, float] = {}  # thread -> what it spent on garbage since the last look
        self._collecting = 0.0
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_S, self._switch_s))
        gc.callbacks.append(self._on_garbage)
        self._thread.start()

    def stop(self) -> None:
        """End, with all written."""
        self._over.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_s)
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._on_garbage)
        self._write()
        self._file.close()

    def _write(self) -> None:
        """Write what was seen since the last time; on a full disk no more is written."""
        names = {t.ident: (t.name, t.native_id or 0) for t in threading.enumerate()}
        seen, self._new = self._new, {"frames": [], "stacks": [], "threads": {}, "rows": []}
        looked_at = {self._thread.ident, *(row[1] for row in seen["rows"])}
        seen["threads"] = {i: names[i] for i in looked_at if i in names}
        with contextlib.suppress(OSError):
            self._put(seen)

    def _put(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content, separators=(",", ":")) + "\n")
        self._file.flush()

    def _run(self) -> None:
        look, write_at = 0.0, time.monotonic() + WRITE_EVERY_S
        while not self._over.wait(self.every_s * (0.5 + look)):
            look = (look + _GOLDEN) % 1.0
            self._look()
            if time.monotonic() >= write_at:
                self._write()
                write_at = time.monotonic() + WRITE_EVERY_S

    def _look(self) -> None:
        me, rows, now = threading.get_ident(), self._new["rows"], time.time()
        for thread, frame in sys._current_frames().items():
            if thread == me:
                continue
            used, passed = self._since(thread, now)
            rubbish = min(used, self._garbage_s.pop(thread, 0.0))
            if rubbish:
                rows.append((now, thread, self._number((None,), None), rubbish, 0.0))
            rows.append((now, thread, self._place(frame), used - rubbish, passed))

    def _since(self, thread: int, now: float) -> tuple[float, float]:
        """Processor and wall seconds of a thread since the last look; none at its first."""
        clock, used, at = self._known.get(thread, (0, 0.0, now))
        if not self._clocks:
            self._known[thread] = 0, 0.0, now
            return now - at, now - at
        try:
            if thread not in self._known:
                # Of a thread that has just ended this is undefined. We hold the lock that it needs to end.
                clock = time.pthread_getcpuclockid(thread)
                used = time.clock_gettime(clock)
            total = time.clock_gettime(clock)
        except OSError:  # it has ended; another may have got its number
            self._known.pop(thread, None)
            return 0.0, 0.0
        self._known[thread] = clock, total, now
        return max(0.0, total - used), now - at

    def _place(self, frame: FrameType | None) -> int:
        codes: list[CodeType | None] = []
        innermost = frame
        while frame is not None:
            codes.append(frame.f_code)
            frame = frame.f_back
        return self._number(tuple(codes), innermost)

    def _number(self, codes: tuple[CodeType | None, ...], frame: FrameType | None) -> int:
        """The number of a stack, which is told the reader when it is new."""
        known = self._stacks.get(codes)
        if known is None:
            numbers = []
            for code in codes:
                if code not in self._frames:
                    self._frames[code] = len(self._frames)
                    self._new["frames"].append(_described(code, frame))
                numbers.append(self._frames[code])
                frame = None if frame is None else frame.f_back
            known = self._stacks[codes] = len(self._stacks)
            self._new["stacks"].append(numbers)
        return known

    def _on_garbage(self, phase: str, facts: dict[str, int]) -> None:
        """Python calls this in the thread that collects, before and after."""
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            me = threading.get_ident()
            spent = time.thread_time() - self._collecting
            self._garbage_s[me] = self._garbage_s.get(me, 0.0) + spent


def _described(code: CodeType | None, frame: FrameType | None) -> Frame:
    if code is None:
        return GARBAGE
    module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.11
    return module, name, code.co_filename, code.co_firstlineno


def read_samples(directory: str | Path) -> list[Samples]:
    """Read what the samplers of a run have written on this machine; a line that was cut is left out."""
    found = []
    for path in sorted(Path(directory).glob(f"{PREFIX}*")):
        samples: Samples | None = None
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                content = json.loads(line)
            except ValueError:  # the process was killed while it wrote
                break
            if samples is None:
                samples = Samples(**content)
                continue
            samples.frames.extend((m, f, p, n) for m, f, p, n in content["frames"])
            samples.stacks.extend(content["stacks"])
            samples.threads.update({int(k): (name, tid) for k, (name, tid) in content["threads"].items()})
            samples.rows.extend((t, i, s, used, wall) for t, i, s, used, wall in content["rows"])
        if samples is not None:
            found.append(samples)
    return found
