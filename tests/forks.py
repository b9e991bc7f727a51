"""Tests of what a forked child makes of its parent's things."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable


def in_a_fork(work: Callable[[], object]) -> str:
    """What a forked child makes of it; it has 20 s."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside the fork: that is the point
        child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            said = repr(work())
        except Exception as error:
            said = str(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
