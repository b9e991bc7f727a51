"""Continues a stopped process after a while: that very process, or nobody.

A pidfd means one process for good, whatever becomes of its number, and tells of its end: with it the waiting
ends too. Light, since a process that stops itself starts this file to be woken up again.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

_helpers: list[int] = []  # children of this process that wait
_POLL_S = 0.05  # between two looks at whether the process is still there, without pidfds


def resume_after(pid: int, seconds: float) -> None:
    """Send SIGCONT to a process of this machine after some seconds, if it lives then. Returns at once."""
    if pid == os.getpid():
        _start_helper(seconds)
        return
    descriptor = _open(pid)
    threading.Thread(target=_wait, args=(pid, descriptor, seconds), name="resume", daemon=True).start()


def _start_helper(seconds: float) -> None:
    """Have a child wait: whoever is stopped cannot. A stop or Ctrl-C of the terminal does not reach it."""
    _helpers[:] = [pid for pid in _helpers if _runs(pid)]
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(seconds)]
    _helpers.append(os.posix_spawn(command[0], command, os.environ, setsid=True))


def _runs(child: int) -> bool:
    """Whether a child still runs; one that has ended is let go of, else it would stay as a zombie."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _open(pid: int) -> int | None:
    """Return a pidfd; None where the system has none. Raises ProcessLookupError if there is no process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        os.kill(pid, 0)
        return None


def _wait(pid: int, descriptor: int | None, seconds: float) -> None:
    if descriptor is None:
        _wait_by_number(pid, seconds)
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(seconds * 1000):
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _wait_by_number(pid: int, seconds: float) -> None:
    """The same by the process's number, looking so often that nobody else can have it meanwhile."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(_POLL_S)
        os.kill(pid, signal.SIGCONT)
    except (ProcessLookupError, PermissionError):
        pass


def main(pid: int, seconds: float) -> None:
    """Do it for the parent of this process."""
    descriptor = _open(pid)
    if os.getppid() == pid:  # else it is gone, and the number may be a stranger's
        _wait(pid, descriptor, seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
