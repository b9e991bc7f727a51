"""Turns at the processor: where modules share cores, as many large GEMMs run at once as there are cores.

Left to the scheduler, threads that compute take each other's place whenever a third wakes up, every 3 ms, and
each finds the second-level cache full of someone else's matrices: 6 % of a GEMM's time with four per core.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = "turns"  # of the file in a run's directory that says which semaphores they are
# System V semaphores: waiting has a timeout, and the kernel gives back what a dead process held.
_PRIVATE, _REMOVE, _GET, _SET, _UNDO = 0, 0, 12, 16, 0x1000
_COUNT, _MARK = 0, 1  # the set's semaphores: free turns, and a number to know it by
_OPERATION = struct.Struct("=Hhh")  # semaphore, change, flags
_TAKE, _GIVE = _OPERATION.pack(_COUNT, -1, _UNDO), _OPERATION.pack(_COUNT, 1, _UNDO)
_LOOK_UP = struct.pack("@ll", 0, 100_000_000)  # 0.1 s between two looks at whether to go on without a turn


class Turns:
    """The turns of a run on this machine: those that are in its directory, else `turns` new ones."""

    def __init__(self, directory: Path, turns: int = 0) -> None:
        if turns and not (directory / NAME).exists():
            _open(directory, turns)
        self._libc, self._set = _known(directory)

    @contextlib.contextmanager
    def one(self, hurry: Callable[[], bool]) -> Iterator[None]:
        """Hold a turn for the block, after waiting for it; without one where there are none or `hurry()`."""
        libc, held = self._libc, False
        while libc is not None and not held and not hurry():
            held = libc.semtimedop(self._set, _TAKE, 1, _LOOK_UP) == 0
            if not held and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
                break
        try:
            yield
        finally:
            if held and libc is not None:
                libc.semtimedop(self._set, _GIVE, 1, None)


def _open(directory: Path, turns: int) -> None:
    """Make turns, unless another process is first; none where the system has no such semaphores."""
    libc = _libc()
    if libc is None or (number := libc.semget(_PRIVATE, 2, 0o600)) < 0:
        return
    mark = 1 + int.from_bytes(os.urandom(2), "little") % 32767
    libc.semctl(number, _COUNT, _SET, turns)
    libc.semctl(number, _MARK, _SET, mark)
    part = directory / f"{NAME}-{os.getpid()}"
    try:
        part.write_text(f"{number} {mark}")
        os.link(part, directory / NAME)
    except OSError as error:  # another was first, or the disk is full
        libc.semctl(number, 0, _REMOVE)
        if not isinstance(error, FileExistsError):
            raise OSError(error.errno, error.strerror, str(part)) from None
    finally:
        part.unlink(missing_ok=True)


def close_turns(directory: Path) -> None:
    """Remove a run's turns, which outlive all processes; whoever waits goes on without."""
    libc, number = _known(directory)
    if libc is not None:
        libc.semctl(number, 0, _REMOVE)


def _known(directory: Path) -> tuple[ctypes.CDLL | None, int]:
    """The C library and the number of the run's set, or None and anything; never someone else's set."""
    libc = _libc()
    try:
        number, mark = map(int, (directory / NAME).read_text().split())
    except (OSError, ValueError):
        return None, 0
    return (libc if libc is not None and libc.semctl(number, _MARK, _GET) == mark else None), number


def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    return libc if hasattr(libc, "semtimedop") else None
