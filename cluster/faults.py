"""Fault injection: real signals to real processes."""

from __future__ import annotations

import os
import signal
from typing import Any

from rayemu.cluster.resume import resume_after

FOREVER_S = 1e6  # a hang of at least this long ends with the run


def hang(pid: int, seconds: float) -> None:
    """Stop a process with SIGSTOP; it is continued after `seconds`, or ends with its run."""
    if seconds < FOREVER_S:
        resume_after(pid, seconds)
    os.kill(pid, signal.SIGSTOP)


def strike(pid: int, fault: dict[str, Any]) -> None:
    """Apply a process fault (kill or hang) to a process of this machine."""
    if fault["kind"] == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        hang(pid, float(fault["for"]))
