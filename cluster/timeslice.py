"""Longer turns at the processor for threads that compute."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

LONGEST_NS = 100_000_000  # the most that Linux grants
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # system calls; few C libraries know this one
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def ask_long_turns() -> bool:
    """Ask the kernel to let the calling thread compute up to 0.1 s at a time where others want its core.

    A GEMM that is interrupted finds the second-level cache full of someone else's matrices. Threads with
    ordinary, shorter turns still get theirs at once when they wake. Linux 6.12 and later heed it without
    privileges; elsewhere nothing changes. Returns whether it was taken.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    request = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, LONGEST_NS, 0, 0)
    return ctypes.CDLL(None, use_errno=True).syscall(number, 0, request, 0) == 0
