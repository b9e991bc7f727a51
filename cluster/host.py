"""This machine: who shares it, who works in a directory, whether TCP works.

Only processes of one machine may send each other signals and read each other's memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from functools import cache
from pathlib import Path

END_S = 5.0  # that killed processes may take to end
REACH_S = 2.0


@cache
def own_host() -> str:
    """Return a name that is the same for two processes if they see each other's pids and files.

    Host names alone do not tell: machines may share one, and so do containers of a machine with its other
    processes. So it goes on with what the kernel says of this boot and of the process's namespaces.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8])
        parts += [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "mnt")]
    return "-".join(parts).replace("|", "_")


def processes_in(directory: Path) -> list[int]:
    """Return the pids of the processes that were started with a path in this directory (Linux)."""
    needle, found = os.fsencode(directory) + b"/", []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def end_processes_in(directory: Path) -> None:
    """Kill what was started with a path in this directory, and what it starts meanwhile."""
    deadline = time.monotonic() + END_S
    while (pids := processes_in(directory)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def loopback_fault() -> str:
    """Say why TCP to 127.0.0.1 does not work; empty where it does."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(REACH_S)
            with socket.create_connection(server.getsockname(), timeout=REACH_S) as client:
                accepted, _ = server.accept()
                with accepted:
                    client.sendall(b"?")
                    accepted.settimeout(REACH_S)
                    accepted.recv(1)
    except OSError as error:
        return f"127.0.0.1 (loopback) cannot be reached over TCP: {error}"
    return ""
