"""Ctrl-C, Ctrl-\\, SIGTERM and the closing of the terminal: all end a run in the same, clean way.

A signal that is ignored stays so: `nohup` ignores SIGHUP, and a shell SIGINT for its background jobs.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

TERMINATE = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
INTERRUPTS = (signal.SIGINT, *TERMINATE)


def terminate_as_interrupt() -> dict[int, Any]:
    """Let the others end a run as cleanly as Ctrl-C; return what `restore` puts back."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    return _handle(TERMINATE, interrupt)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ignore all of them while cleaning up: a second one must not leave half of it behind."""
    previous = _handle(INTERRUPTS, signal.SIG_IGN)
    try:
        yield
    finally:
        restore(previous)


def restore(previous: dict[int, Any]) -> None:
    """Put handlers back; for the thread that replaced them."""
    for number, handler in previous.items():
        signal.signal(number, handler)


def _handle(numbers: tuple[signal.Signals, ...], handler: Any) -> dict[int, Any]:
    """Set a handler for those that are neither ignored nor handled outside Python; return the earlier ones.

    Only the main thread can, and only it is interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    heard = {number: old for number, old in handlers.items() if old not in (None, signal.SIG_IGN)}
    for number in heard:
        signal.signal(number, handler)
    return heard
