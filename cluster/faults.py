"""Fault injection: real signals to real processes."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from rayemu.cluster.resume import resume_after

FOREVER_S = 1e6  # a hang of at least this long ends with the run


@dataclass(frozen=True)
class LocalProcess:
    """A process of this machine, as faults strike it. ProcessLookupError where it has ended."""

    pid: int

    def kill(self) -> None:
        """End it with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self, seconds: float) -> None:
        """Stop it with SIGSTOP; it is continued after `seconds`, or ends with its run."""
        if seconds < FOREVER_S:
            resume_after(self.pid, seconds)
        os.kill(self.pid, signal.SIGSTOP)
