"""Which processes share a machine: only they may send each other signals and read each other's memory."""

from __future__ import annotations

import contextlib
import os
import socket
from functools import cache
from pathlib import Path


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
