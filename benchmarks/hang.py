"""Recovery from hanging modules: `python -m benchmarks.hang`.

As `benchmarks.recovery`, but the module is stopped with SIGSTOP and continued after half a second: its
process and its connections stay, so only silence tells. It comes back as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Sequence

from . import faultreport


class Hang:
    """Stops processes and continues each a while later; `end` continues those that still stand."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.timers: list[tuple[threading.Timer, int]] = []

    def __call__(self, pid: int) -> None:
        timer = threading.Timer(self.seconds, _resume, [pid])
        self.timers = [(t, p) for t, p in self.timers if t.is_alive()] + [(timer, pid)]
        os.kill(pid, signal.SIGSTOP)
        timer.start()

    def end(self) -> None:
        """Continue what is still stopped."""
        for timer, pid in self.timers:
            if timer.is_alive():
                timer.cancel()
                _resume(pid)


def _resume(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when no token was lost, doubled or wrong."""
    description = "Stops modules in mid-stream and measures detection and the first batch that needed them."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hang", description=description)
    parser.add_argument("--hangs", type=int, default=50, help="default: 50")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each lasts; default: 0.5")
    faultreport.add_arguments(parser, "hang")
    args = parser.parse_args(argv)
    title = f"{args.hangs} modules stopped for {args.seconds:g} s"
    hang = Hang(args.seconds)
    try:
        return faultreport.run(
            args,
            "hang",
            title,
            args.hangs,
            hang,
            ("recovered", "joined"),
            args.seconds,
            "detected and survived: must 200 ms, aim 60 ms",
        )
    finally:
        hang.end()


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
