"""How a Ray of the run's own is started: without the processes that nobody here needs, and interruptibly.

`ray.init` has no settings for either, so some of Ray's private functions are replaced while it runs. Where a
version of Ray has no such function, it starts as it always does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

# The dashboard's server (there without a dashboard, too, and waited for), the autoscaler's monitor, and what
# looks ten times a second for lines to print: 2 s of a start, 1 s of an end, and a hundredth of two cores.
UNWANTED = ("start_api_server", "start_monitor", "start_log_monitor")
PORT_STEP_MS = 200


@contextlib.contextmanager
def lean_start() -> Iterator[None]:
    """Have `ray.init`, within the block, start a Ray with only what a run needs."""
    from ray._private import node

    with contextlib.ExitStack() as replaced:
        for name in UNWANTED:
            replaced.enter_context(_replaced(node.Node, name, lambda original: _nothing))
        replaced.enter_context(_replaced(node, "wait_for_persisted_port", _in_steps))
        yield


def _nothing(*args: Any, **keywords: Any) -> None:
    pass


def _in_steps(wait: Callable[..., Any]) -> Callable[..., Any]:
    """Wait for the port of Ray's first process in steps.

    Ray does it in one, of up to 30 s, and keeps the interpreter's lock: no thread would hear an interrupt.
    """

    def in_steps(*args: Any, timeout_ms: int) -> Any:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            try:
                return wait(*args, timeout_ms=PORT_STEP_MS)
            except Exception:
                if time.monotonic() > deadline:
                    raise

    return in_steps


@contextlib.contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute, if there is one, by what `make` makes of it."""
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)
